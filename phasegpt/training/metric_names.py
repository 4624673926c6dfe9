"""The name of every metric, in one table: what it means, and what it was called before.

A name is `phase/MEASURE/layerN` for rows of the training batch, `phase/val/MEASURE/layerN` for
validation text; `/headH` behind it is one head, and in place of the layer `mean` and `sum` are over
the phase layers. docs/metrics.md is this table:

    python -m phasegpt.training.metric_names > docs/metrics.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

LOCKED_WITHIN = 0.05  # radians per unit time, for the locked fraction
HARMONICS = 4  # Daido harmonics R_1..R_4

#: What callbacks.phase_monitor measures of each layer, and its null: as phase/MEASURE/layerN of a
#: few rows of the training batch, without its noise, and as phase/val/MEASURE/layerN of the same
#: windows of the validation text each time. Means over tokens that count, heads and rows. The
#: arrays of the run folder have the same names (phasegpt.training.run_folder.read_phases).
MEASURES = {
    "R_start": "R before the first integration step; null sqrt(pi / 4n), n: phases that R is over",
    "R_end": "R after the last step, without training noise; null as above",
    "dR": "R_end minus R at K = 0 with the same weights and layer inputs; null 0",
    "dR_se": "standard error of dR over rows; coupling synchronizes if dR is well above it",
    "ppc": "pairwise phase consistency, R free of its bias by the number of phases, all tokens of "
    "a prefix alike; null 0",
    "daido_2": "R_2 = |mean exp(2 i theta)|, high and R low: two clusters; null that of R",
    "daido_3": "R_3; null that of R",
    "daido_4": "R_4; null that of R",
    "metastability": "variance of R over integration steps, mean over heads; 0 if R stands",
    "chimera": "variance of R over heads, mean over integration steps; null (1 - pi/4) / n, "
    "over a prefix, whose R is a mean over N channels, 1 / N of that",
    "frequency": "spread (standard deviation, radians per unit time) over the coupled phases "
    "of (theta(S) - theta(0)) / (S dt); null (K = 0): that of omega, or 0 over a prefix; "
    "none is given where a drive turns phases too (lohe)",
    "locked": f"share of those within {LOCKED_WITHIN} of their mean",
    "locked_null": "the same at K = 0",
    "budget": "coupling budget K S dt; off control 0",
    "participation": "participation ratio: directions in which [cos, sin] differ over tokens, at "
    "most 2N; null 2N / (1 + 2N / tokens), 0 if the phases do not tell tokens apart",
    "offsets": "spread over oscillators of the token-mean theta(0), radians: moves R for free",
    "band_final": "share of tokens and heads whose R ends in the band (kuramoto alone); "
    "null: that of random phases, 0.02 for N = 32 and 0.35 to 0.55",
    "band_inside": "integration time spent in the band, in units of time: at most (S + 1) dt",
    "band_entry": "integration time to its first sample in the band, of those that enter",
    "band_exits": "times that R leaves the band",
}
#: Those that have one value per layer; the others have one per head.
SINGLE = ("dR_se", "metastability", "chimera")
#: The budget of all layers together.
TOTAL_BUDGET = "budget/sum"

#: All other metrics.
LOGGED = {
    "train/loss": "cross-entropy of the training batch alone, nats per token",
    "train/grad_norm": "global norm of the gradient before clipping",
    "train/lr": "learning rate of the step",
    "train/skipped_steps": "steps left out so far because their gradient was not finite (with "
    "trainer.skip_nonfinite alone)",
    "val/loss": "cross-entropy of the validation split, nats per token",
    "val/ppl": "its exponential, perplexity per token",
    "val/bpb": "the same in bits per byte of text (of a generated task there is none)",
    "val/accuracy": "of a generated task: share of scored positions where the likeliest token is "
    "right; as val/loss over the loads that were trained on",
    "val/accuracy/LOAD": "the same of one length, or what else the task is harder by, of several",
    "val/accuracy/beyond": "mean over the loads beyond the training, where there are some",
    "val/exact": "of a generated task: share of rows in which every scored position is right, as "
    "scores per string are; over the loads that were trained on",
    "val/exact/LOAD": "the same of one load, of several; val/exact/beyond as above",
    "phase/R/layerN": "R of the training batch as it was trained on, with its noise: mean over all "
    "tokens, heads and micro-batches (over a prefix also over short ones); null sqrt(pi / 4n)",
    "phase/R/layerN/headH": "the same of one head",
    "phase/R/mean": "mean over layers of phase/R/layerN",
    "phase/val/R/layerN": "R of every scored position of the validation split, as the collapse "
    "guard judges it (with callbacks.collapse_guard alone)",
    "phase/budget/sum": "coupling budget of all layers; phase/val/budget/sum is the same number",
    "reg/coherence": "coherence penalty, part of the loss that is trained on",
    "reg/lambda": "its weight",
    "guard/in_a_row": "validations in a row in which R was out of the guard's limits",
    "guard/rollbacks": "rollbacks so far",
    "guard/collapsed": "1 where this validation was a collapse",
    "perf/tokens_per_s": "training speed, tokens per second of all processes",
    "perf/mfu": "model FLOPs utilization: flops_per_token of run.json, with all keys, as a "
    "share of the GPUs' dense bf16 peak; of a task the head counts where something is scored",
}

#: Names of earlier versions and today's; [val/] may stand there. They are read everywhere.
RENAMED = {
    "phase/R/layerN/mean": "phase/R/layerN",
    "phase/R/final": "phase/R/mean",
    "phase/[val/]R/layerN/start": "phase/[val/]R_start/layerN",
    "phase/[val/]R/layerN/end": "phase/[val/]R_end/layerN",
    "phase/[val/]daido/layerN/m2": "phase/[val/]daido_2/layerN",
    "phase/[val/]daido/layerN/m3": "phase/[val/]daido_3/layerN",
    "phase/[val/]daido/layerN/m4": "phase/[val/]daido_4/layerN",
    "phase/[val/]band/layerN/final": "phase/[val/]band_final/layerN",
    "phase/[val/]band/layerN/inside": "phase/[val/]band_inside/layerN",
    "phase/[val/]band/layerN/entry": "phase/[val/]band_entry/layerN",
    "phase/[val/]band/layerN/exits": "phase/[val/]band_exits/layerN",
    "guard/R/layerN": "phase/val/R/layerN",
}


def _pattern(name: str) -> str:
    """A regular expression for a name of RENAMED; its groups are `val/` and the layer's number."""
    words = re.escape(name.replace("[val/]", "VAL"))
    return words.replace("VAL", "(?P<val>val/)?").replace("layerN", r"layer(?P<layer>\d+)")


_OLD = [(re.compile(_pattern(old)), new) for old, new in RENAMED.items()]


def today(name: str) -> str:
    """Today's name of a metric."""
    for pattern, new in _OLD:
        if found := pattern.fullmatch(name):
            parts = found.groupdict()
            new = new.replace("[val/]", parts.get("val") or "")
            return new.replace("layerN", f"layer{parts.get('layer')}")
    return name


def today_array(name: str) -> str:
    """Today's name of an array of a run folder, such as layer7/R_end for layer7/R/end."""
    layer, _, measure = name.partition("/")
    measure, _, part = measure.partition("/")
    found = today(f"phase/{measure}/layer0/{part}") if part else ""
    return f"{layer}/{found.split('/')[1]}" if found.endswith("/layer0") else name


def with_names_of_today(record: dict[str, Any]) -> dict[str, Any]:
    """A run record (run.json) whose last values and curves have today's names."""
    renamed = {
        key: {today(name): value for name, value in record[key].items()}
        for key in ("final", "curves")
        if isinstance(record.get(key), Mapping)
    }
    return {**record, **renamed}


def any_version(name: str) -> str:
    """A regular expression for a name with layerN in it, as it is called and as it was."""
    val = "val/" if name.startswith("phase/val/") else ""
    old = [o.replace("[val/]", val) for o, n in RENAMED.items() if n.replace("[val/]", val) == name]
    either = "|".join([name, *old]).replace("layerN", "layer[0-9]+").replace("headH", "head[0-9]+")
    return f"^({either})$"


def page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Every name in `metrics.csv`, in `run.json` (`final`) and with the loggers. This page is",
        "made by `python -m phasegpt.training.metric_names > docs/metrics.md`.",
        "",
        "A name is `phase/MEASURE/layerN` for rows of the training batch and",
        "`phase/val/MEASURE/layerN` for validation text. `/headH` behind it is one head; `mean`",
        "and `sum` in place of the layer are over the phase layers. R is the layer's",
        "`order_parameter`: over the oscillators of a token and head (`kuramoto`), or over the",
        "prefix of a channel with the weights that it has there (`phase_sync`). Tables of",
        "`results/` take R (`R_end`), dR and all else from `phase/val/`: the same windows.",
        "",
        "## Training and validation",
        "",
        "| name | meaning |",
        "|---|---|",
        *(f"| `{name}` | {_cell(meaning)} |" for name, meaning in LOGGED.items()),
        "",
        "## Measures of each phase layer",
        "",
        "By `callbacks.phase_monitor`: `phase/MEASURE/layerN` is of a few rows of the training",
        "batch, `phase/val/MEASURE/layerN` of fixed windows of the validation text. Over a prefix,",
        "tokens from the 32nd on count. Measures that `statistics.json` of `phasegpt.interpret`",
        "has too are called the same there.",
        "",
        "| MEASURE | meaning |",
        "|---|---|",
        *(f"| `{name}` | {_cell(meaning)} |" for name, meaning in MEASURES.items()),
        "",
        "## Names of earlier versions",
        "",
        "Run folders, records and exports with these names are read as if they had today's; values",
        "are the same.",
        "",
        "| before | now |",
        "|---|---|",
        *(f"| `{old}` | `{new}` |" for old, new in RENAMED.items()),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.stdout.write(page())
