"""The pictures of the leaderboard: every run's score, and curves by load and by learning rate.

A panel is a task or a mechanism; colours are those of families (phasegpt.core.figures). A
mechanism's off control is hollow, or dashed, in the same colour.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phasegpt.analysis.leaderboard.board import Board, Column
from phasegpt.analysis.leaderboard.cells import BASELINE
from phasegpt.analysis.leaderboard.costs import rates, shown_runs
from phasegpt.analysis.leaderboard.runs import CONTROLS, human, human_task, mechanism
from phasegpt.core import figures

Curves = Mapping[str, Mapping[Any, float]]

_ACROSS = 3  # panels of a row
_SHORT = {"softmax": "softmax", "softmax_learned": "learned", "token_shift": "token shift"}


def draw(found: Board, folder: Path) -> list[Path]:
    """scores.png, and for each task TASK_loads.png and TASK_rates.png where it has such curves."""
    drawn = {"scores": _scores(found)}
    for column in found.columns:
        if column.key == column.task:
            drawn[f"{column.task}_loads"] = _loads(found, column)
            drawn[f"{column.task}_rates"] = _rates(found, column)
    written = []
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            written += figures.save(figure, path)
    return written


def _scores(found: Board) -> Any:
    """A panel for each column, a row for each mechanism, a point for each seed."""
    columns = [column for column in found.columns if column.stages]
    rows = [arm for arm in found.arms if not arm.endswith("_off") or arm[:-4] not in found.arms]
    if not columns:
        return None
    with figures.house():
        down = -(-len(columns) // _ACROSS)
        figure = figures.new(height=down * (1.0 + 0.19 * len(rows)) + 0.3)
        panels = figure.subplots(down, _ACROSS, squeeze=False, sharey=True)
        for axes, column in zip(panels.flat, columns, strict=False):
            _points(axes, column, rows)
        for axes in panels.flat[len(columns) :]:
            axes.set_axis_off()
        for axes in panels[:, 0]:
            axes.set(yticks=range(len(rows)), yticklabels=map(human, rows))
            axes.set_ylim(len(rows) - 0.4, -0.6)
            for text, arm in zip(axes.get_yticklabels(), rows, strict=True):
                text.set_color(figures.ink(figures.colour(mechanism(arm))))
        figure.supxlabel(
            "a point is a seed, a bar the mean; hollow: the mechanism's off control", fontsize=8
        )
    return figure


def _points(axes: Any, column: Column, rows: list[str]) -> None:
    for row, arm in enumerate(rows):
        shade = figures.colour(mechanism(arm))
        for name, y, face in ((arm, row - 0.12, shade), (f"{arm}_off", row + 0.2, "none")):
            if cell := column.cell(name):
                x = list(cell.scores.values())
                axes.scatter(x, [y] * len(x), s=11, facecolor=face, edgecolor=shade, lw=0.8)
                axes.plot([cell.mean] * 2, [y - 0.25, y + 0.25], color=shade, lw=1.2)
    for value, name in ((column.chance, "chance"), (column.ceiling, "ceiling")):
        if value is not None:
            axes.axvline(value, color=figures.SOFT, lw=0.8, ls=":")
            axes.annotate(
                name,
                (value, 1.0),
                **{"xycoords": ("data", "axes fraction"), "xytext": (0, 2)},
                **{"textcoords": "offset points", "ha": "center", "fontsize": 7},
                color=figures.SOFT,
            )
    if column.higher:
        axes.set(xlim=(-0.04, 1.06), xticks=(0, 0.5, 1))
    axes.tick_params(axis="y", length=0)
    axes.set_title(human_task(column.key), pad=14)
    axes.set_xlabel("accuracy" if column.higher else "bits per byte", fontsize=8)
    axes.grid(axis="y", color=figures.FAINT, lw=0.5)
    axes.set_axisbelow(True)


def load_curves(found: Board, column: Column) -> dict[str, dict[int, float]]:
    """Accuracy by load, the mean over the seeds that a column shows, of every arm."""
    curves = {}
    for arm, by_seed in shown_runs(found, column).items():
        every = [run.loads for run in by_seed.values()]
        loads = sorted({load for one in every for load in one})
        curves[arm] = {n: plain.fmean(one[n] for one in every if n in one) for n in loads}
    return {arm: curve for arm, curve in curves.items() if curve}


def _loads(found: Board, column: Column) -> Any:
    curves = load_curves(found, column)
    trained = next((run.trained for run in found.runs if run.task == column.task), None)
    said = "length or load (shaded: trained on)"
    return _multiples(curves, "accuracy", said, chance=column.chance, trained=trained)


def _rates(found: Board, column: Column) -> Any:
    measure = "accuracy" if column.higher else "bits per byte"
    return _multiples(rates(found, column), measure, "learning rate", log=True)


def _multiples(
    curves: Curves,
    measure: str,
    along: str,
    *,
    chance: float | None = None,
    trained: int | None = None,
    log: bool = False,
) -> Any:
    """A panel of the controls, and one of every mechanism beside its off control and softmax."""
    groups = {"controls": [arm for arm in curves if arm in CONTROLS]}
    for arm in curves:
        name = arm.removesuffix("_off")
        if arm not in CONTROLS:
            groups.setdefault(name, [BASELINE] * (BASELINE in curves)).append(arm)
    groups = {name: arms for name, arms in groups.items() if arms}
    if not groups:
        return None
    with figures.house():
        down = -(-len(groups) // _ACROSS)
        figure = figures.new(height=1.65 * down + 0.3)
        panels = figure.subplots(down, _ACROSS, squeeze=False, sharex=True, sharey=True)
        for axes, (name, arms) in zip(panels.flat, groups.items(), strict=False):
            if trained is not None:
                axes.axvspan(0, trained, color=figures.BAND, lw=0, zorder=0, label="_trained")
            shades = [figures.colour(mechanism(arm)) for arm in arms]
            if name == "controls":
                shades = figures.shades(shades[0], len(arms))
            for arm, shade in zip(arms, shades, strict=True):
                x, y = zip(*sorted(curves[arm].items()), strict=True)
                style = "--" if arm.endswith("_off") else "-"
                axes.plot(x, y, style, color=shade, marker="o", ms=2.5, label=_short(arm))
            figures.level(axes, chance, "chance")
            axes.set_title(name)
        if log:
            axes.set_xscale("log")
            grid = sorted({lr for curve in curves.values() for lr in curve})
            for axes in panels.flat:
                axes.set_xticks(grid, [f"{lr:g}" for lr in grid], fontsize=7)
                axes.minorticks_off()
        for axes in panels.flat[len(groups) :]:
            axes.set_axis_off()
        for axes in panels.flat[max(len(groups) - _ACROSS, 0) : len(groups)]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel(along, fontsize=9)
        figure.supylabel(measure, fontsize=9)
        figures.label_ends(*panels.flat[: len(groups)])
    return figure


def _short(arm: str) -> str:
    """What a line of a panel that names its mechanism is called at its end."""
    if arm in CONTROLS:
        return _SHORT.get(arm, human(arm))
    return "off" if arm.endswith("_off") else "on"
