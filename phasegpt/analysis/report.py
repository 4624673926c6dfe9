"""Self-contained HTML reports: one page per run, per sweep and per study, readable from disk.

The page is a template (the folder `page`), plotly's JavaScript and the data as JSON. The same
data give the same bytes.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import phasegpt
from phasegpt.errors import ConfigError
from phasegpt.record import read_metrics, read_record

_CURVES = re.compile(r"train/loss|val/loss|phase/R/final|phase/R/layer\d+/mean")
_POINTS = 500  # of a curve; longer ones are thinned


def run_page(
    statistics: Mapping[str, Any],
    view: Mapping[str, Any],
    folder: Path,
    config: Mapping[str, Any] | None,
) -> str:
    """The page of one run: its statistics, phasegpt.analysis.views.view, and its folder's files."""
    record = {key: value for key, value in read_record(folder).items() if key != "config"}
    title = folder.resolve().name
    name = title if config is None else f"{config['name']} \u00b7 {title}"
    data = {
        "name": name,
        "version": phasegpt.__version__,
        "statistics": statistics,
        "view": view,
        "curves": curves(folder),
        "config": config,
        "record": record,
    }
    return _page("run", name, data)


def sweep_page(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The page of several runs; see sweep_row."""
    values: dict[str, list[str]] = {}
    for run in runs:
        for key, value in run["values"].items():
            values.setdefault(key, []).append(json.dumps(value))
    changed = [key for key, found in values.items() if len(set(found)) > 1]
    data = {
        "name": name,
        "version": phasegpt.__version__,
        "changed": changed,
        "sources": sorted({run["source"] for run in runs if run["source"]}),
        "runs": [
            {**run, "values": {k: v for k, v in run["values"].items() if k in changed}}
            for run in runs
        ],
    }
    return _page("sweep", name, data)


def study_page(view: Mapping[str, Any]) -> str:
    """The page of a study: phasegpt.analysis.arms.study_view."""
    return _page("study", view["name"], {"version": phasegpt.__version__, **view})


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
        "ppl": (record.get("best") or {}).get("val/ppl"),
        "loss": statistics.get("loss"),
        "source": statistics.get("source"),
        "layers": [{k: layer[k] for k in keys} for layer in statistics.get("layers", [])],
        "interventions": statistics.get("interventions", []),
        "curves": curves(folder),
    }


def curves(folder: Path) -> dict[str, list[list[float]]]:
    """Loss and R of a run's metrics.csv as [step, value] pairs by name; empty without one."""
    found: dict[str, list[list[float]]] = {}
    for row in read_metrics(folder / "metrics.csv"):
        for name, value in row.items():
            if _CURVES.fullmatch(name):
                found.setdefault(name, []).append([int(row["step"]), round(value, 5)])
    return {name: _thinned(points) for name, points in sorted(found.items())}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return result


def _thinned(points: list[list[float]]) -> list[list[float]]:
    every = -(-len(points) // _POINTS)
    return points[::every] if (len(points) - 1) % every == 0 else [*points[::every], points[-1]]


def _page(kind: str, title: str, data: Mapping[str, Any]) -> str:
    page = files("phasegpt.analysis") / "page"

    def read(name: str) -> str:
        return (page / name).read_text(encoding="utf-8")

    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Template(read("frame.html")).substitute(
        title=html.escape(title),
        style=read("style.css"),
        body=read(f"{kind}.html"),
        plotly=_plotly(),
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
