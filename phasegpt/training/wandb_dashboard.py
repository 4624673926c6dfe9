"""How runs look in W&B: their x-axis, their summaries, and the saved workspace of a project.

The workspace needs the package wandb-workspaces (the extra `dashboard`); building it asks no
server.
"""

from __future__ import annotations

import json
from typing import Any

from phasegpt.core.errors import ConfigError
from phasegpt.training.metric_names import HARMONICS, TOTAL_BUDGET, any_version

#: Lightning's name of the optimizer step, the x-axis.
STEP = "trainer/global_step"
#: What W&B keeps of a metric in place of its last value.
SUMMARY = {"val/ppl": "min", "val/loss": "min", "val/bpb": "min", "perf/tokens_per_s": "mean"}

#: Axes of the parallel coordinates: what sweeps vary, and at the end what comes out.
_SWEPT = ("attention.name", "attention.coupling", "attention.num_oscillators", "attention.steps",
          "attention.dt", "attention.noise_sigma", "regularizer.mode", "regularizer.target",
          "regularizer.weight", "optimizer.lr", "seed")  # fmt: skip
_RESULTS = ("phase/R/mean", "perf/tokens_per_s", "val/ppl")


def _val(measure: str) -> str:
    return any_version(f"phase/val/{measure}/layerN")


#: Sections of line charts: title of a chart, and its metrics or a regular expression for them.
_CHARTS: dict[str, dict[str, tuple[str, ...] | str]] = {
    "Synchronization": {
        "R by layer": any_version("phase/R/layerN"),
        "R by head": any_version("phase/R/layerN/headH"),
        "R before and after the integration": f"{_val('R_start')}|{_val('R_end')}",
        "dR, by coupling": _val("dR"),
        "Pairwise phase consistency": _val("ppc"),
        "Daido harmonics": "|".join(_val(f"daido_{m}") for m in range(2, HARMONICS + 1)),
        "Share that ends in the band": _val("band_final"),
        "Integration time in the band": f"{_val('band_inside')}|{_val('band_entry')}",
        "Locked fraction, and without coupling": f"{_val('locked')}|{_val('locked_null')}",
        "Metastability and chimera index": f"{_val('metastability')}|{_val('chimera')}",
        "Participation ratio": _val("participation"),
        "Offsets": _val("offsets"),
        "Coupling budget": f"{_val('budget')}|^phase/val/{TOTAL_BUDGET}$",
    },
    "Language model": {
        "Validation perplexity": ("val/ppl",),
        "Loss": ("train/loss", "val/loss"),
        "Learning rate": ("train/lr",),
        "Gradient norm": ("train/grad_norm",),
    },
    "Regularizer": {"Coherence penalty": ("reg/coherence",), "Its weight": ("reg/lambda",)},
    "Throughput": {"Tokens per second": ("perf/tokens_per_s",), "MFU": ("perf/mfu",)},
}
_PICTURES = ("phase/R_by_head", "phase/R_by_integration_step")


def workspace(entity: str, project: str, name: str = "PhaseGPT") -> Any:
    """The workspace, ready to save(). Raises ConfigError where wandb-workspaces is missing."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ConfigError(
            "the dashboard needs the package wandb-workspaces, which is not installed; "
            "pip install 'phasegpt[dashboard]'"
        ) from error

    def chart(title: str, metrics: tuple[str, ...] | str) -> Any:
        if isinstance(metrics, str):
            return wr.LinePlot(title=title, x=STEP, metric_regex=metrics)
        return wr.LinePlot(title=title, x=STEP, y=list(metrics))

    axes = [wr.ParallelCoordinatesPlotColumn(wr.Config(key)) for key in _SWEPT]
    axes += [
        wr.ParallelCoordinatesPlotColumn(
            wr.SummaryMetric(f"{key}.{SUMMARY[key]}" if key in SUMMARY else key)
        )
        for key in _RESULTS
    ]
    sections = [
        ws.Section(
            name=title, panels=[chart(*entry) for entry in charts.items()], is_open=index < 2
        )
        for index, (title, charts) in enumerate(_CHARTS.items())
    ]
    sections[0].panels += [wr.MediaBrowser(title="R", media_keys=list(_PICTURES))]
    sweep = wr.ParallelCoordinatesPlot(title="Sweep", columns=axes)
    sections.append(ws.Section(name="Sweep", panels=[sweep], is_open=True))
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections)


def specification(view: Any) -> str:
    """The workspace as the JSON that save() would send; asks no server and needs no account."""
    return json.dumps(view._spec, indent=2, sort_keys=True, default=str) + "\n"
