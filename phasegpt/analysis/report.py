"""Self-contained HTML reports: one page per run, per sweep and per study, readable from disk.

A page is a template (the folder `page`) and the data as JSON, with plotly's JavaScript or, for a
study, what phasegpt.analysis.study_figures has drawn. The same data give the same bytes.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

import phasegpt
from phasegpt.analysis.names import arm_names
from phasegpt.core import figures
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import flat
from phasegpt.training.run_folder import curves, read_record

if TYPE_CHECKING:
    from torch import Tensor

_CURVES = r"train/loss|val/loss|phase/R/mean|phase/R/layer\d+"
_POINTS = 500  # of a curve of training


def run_page(
    statistics: Mapping[str, Any],
    view: Mapping[str, Any],
    folder: Path,
    config: Mapping[str, Any] | None,
) -> str:
    """The page of one run: statistics, phasegpt.interpretation.views.view, its folder's files."""
    record = {key: value for key, value in read_record(folder).items() if key != "config"}
    title = folder.resolve().name
    name = title if config is None else f"{config['name']} \u00b7 {title}"
    data = {
        "name": name,
        "version": phasegpt.__version__,
        "statistics": statistics,
        "view": view,
        "curves": _curves(folder),
        "config": config,
        "record": record,
    }
    return _page("run", name, data, _plotly())


def sweep_page(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The page of several runs; see sweep_row."""
    values: dict[str, list[str]] = {}
    for run in runs:
        for key, value in run["values"].items():
            values.setdefault(key, []).append(json.dumps(value))
    names = arm_names({run["name"]: [{"config": run.get("config") or {}}] for run in runs})
    changed = [key for key, found in values.items() if len(set(found)) > 1]
    data = {
        "name": name,
        "version": phasegpt.__version__,
        "changed": changed,
        "sources": sorted({run["source"] for run in runs if run["source"]}),
        "runs": [
            {key: run[key] for key in run if key != "config"}
            | {"values": {k: v for k, v in run["values"].items() if k in changed}}
            | {"label": names[run["name"]].whole}
            for run in runs
        ],
    }
    return _page("sweep", name, data, _plotly())


def study_page(
    view: Mapping[str, Any], sources: Mapping[str, str], drawn: Mapping[str, bytes]
) -> str:
    """The page of a study: phasegpt.analysis.study_view, texts by name, and figures as SVG."""
    data = {key: view[key] for key in ("name", "caption", "leaky_note", "tables", "attention")}
    compared = {k: v for k, v in (data["attention"] or {}).items() if k != "layers"}
    runs = sum(len(arm["seeds"]) for arm in view["arms"])
    data |= {"attention": compared or None, "runs": runs, "arms": len(view["arms"])}
    pictures = {
        name: "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
        for name, svg in drawn.items()
    }
    data |= {"version": phasegpt.__version__, "sources": sources, "figures": pictures}
    return _page("study", view["name"], data)


def leaderboard_page(view: Mapping[str, Any]) -> str:
    """The page of a leaderboard: phasegpt.analysis.leaderboard.view."""
    return _page("leaderboard", view["name"], {"version": phasegpt.__version__, **view})


def sweep_row(
    name: str, statistics: Mapping[str, Any], folder: Path, *, link: str | None
) -> dict[str, Any]:
    """What the page of a sweep needs of one run; its statistics may hold a `reason` alone."""
    record = read_record(folder)
    keys = ("layer", "R", "R_uncoupled", "null", "dR", "ppc", "status")
    return {
        "name": name,
        "link": link,
        "reason": statistics.get("reason"),
        "values": flat(record.get("config") or {}),
        "config": record.get("config"),
        "ppl": (record.get("best") or {}).get("val/ppl"),
        "loss": statistics.get("loss"),
        "source": statistics.get("source"),
        "layers": [{k: layer[k] for k in keys} for layer in statistics.get("layers", [])],
        "interventions": statistics.get("interventions", []),
        "curves": _curves(folder),
    }


def pack(values: Tensor, *, step: float, bits: int) -> dict[str, Any]:
    """Values in [0, step (2^bits - 1)] as the nearest multiples of step."""
    integers = (values.double() / step).round().clamp(0, 2**bits - 1).numpy()
    raw = integers.astype(f"<u{bits // 8}").tobytes()
    data = base64.b64encode(raw).decode("ascii")
    return {"shape": list(values.shape), "bits": bits, "step": step, "data": data}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The values that `pack` kept."""
    raw = np.frombuffer(base64.b64decode(packed["data"]), f"<u{packed['bits'] // 8}")
    return raw.reshape(packed["shape"]) * packed["step"]


def _curves(folder: Path) -> dict[str, list[list[float]]]:
    """Loss and R of a run over training; empty without a metrics.csv."""
    found = curves(folder / "metrics.csv", _CURVES, _POINTS)
    return {name: [[step, round(value, 5)] for step, value in c] for name, c in found.items()}


def _page(kind: str, title: str, data: Mapping[str, Any], library: str = "") -> str:
    page = files("phasegpt.analysis") / "page"

    def read(name: str) -> str:
        return (page / name).read_text(encoding="utf-8")

    colours = {"coupled": figures.colour("kuramoto"), "off": figures.colour("softmax")}
    colours |= {"null": figures.INK, "ink": figures.INK, "band": figures.BAND}
    data = {**data, "colours": {**colours, "cycle": figures.PLAIN}}
    style = read("style.css") + "".join(f":root {{ --{k}: {v}; }}\n" for k, v in colours.items())
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Template(read("frame.html")).substitute(
        title=html.escape(title),
        style=style,
        body=read(f"{kind}.html"),
        library=library,
        data=text.replace("<", "\\u003c"),  # no token can end the element
        script=read("common.js") + read(f"{kind}.js"),
    )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError(
            "the HTML report needs plotly; install it with pip install 'phasegpt[report]'"
        ) from error
    return get_plotlyjs()
