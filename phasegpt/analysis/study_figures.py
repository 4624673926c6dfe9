"""The figures of a study, drawn from phasegpt.analysis.study_view: PNG files, and SVG for its page.

Arms have the colour of their mechanism's family, and a panel has at most figures.MOST lines. Arms
that see the future are in leaky.png and in no other.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from phasegpt.analysis.attention_figure import attention
from phasegpt.core import figures

Arm = dict[str, Any]

_WIDE = 10.0  # inches, of figures with many names
_COLUMNS = 4  # of histograms
_ROW = 0.22  # inches of an arm in a list
_FAR = 1.5  # times the median perplexity; beyond it an arm is told in words
_NULL, _BAND = "random phases", "target band"


@figures.house()
def draw(view: dict[str, Any], study: Path) -> tuple[list[Path], dict[str, bytes]]:
    """Write every figure that the records of a study allow; its PNGs, and each as SVG by name.

    A PNG that nothing would be in is deleted.
    """
    causal = [arm for arm in view["arms"] if not arm["leaky"]]
    leaky = [arm for arm in view["arms"] if arm["leaky"]]
    made = {
        "forest": _forest(causal, view["baseline"]),
        "curves": _curves(causal, view),
        "phases": _phases(causal, view["band"]),
        "histograms": _histograms(causal, view["band"]),
        "spread": _spread(causal),
        "leaky": _leaky(leaky, view),
        "attention": attention(view["attention"]),
    }
    written, drawn = [], {}
    for name, figure in made.items():
        path = study / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        written += figures.save(figure, path)
        drawn[name] = figures.content(figure, "svg")
    return written, drawn


def _groups(arms: Sequence[Arm], most: int) -> list[list[Arm]]:
    """Arms of one family together, at most so many."""
    found: list[list[Arm]] = []
    ranked = sorted(arms, key=_family)  # stable: best first within
    for _, members in groupby(ranked, _family):
        its = list(members)
        size = math.ceil(len(its) / math.ceil(len(its) / most))
        found += [its[i : i + size] for i in range(0, len(its), size)]
    return found


def _family(arm: Arm) -> str:
    return figures.family(arm["mechanism"]) or arm["mechanism"]


def _common(arms: Sequence[Arm]) -> str | None:
    """The mechanism of all, which their names need not repeat."""
    found = {arm["mechanism"] for arm in arms}
    return found.pop() if len(found) == 1 and all(a["short"] != a["whole"] for a in arms) else None


def _colours(arms: Sequence[Arm]) -> list[str]:
    """A shade of its family's colour for each arm of one panel."""
    return figures.shades(figures.colour(arms[0]["mechanism"]), len(arms))


def _named(arm: Arm, name: str = "whole") -> str:
    return f"{arm[name]} (n {arm['n']})"


def _curves(arms: Sequence[Arm], view: dict[str, Any]) -> Any:
    """Perplexity and R of every arm over training, mean over seeds and range, a family a row.

    The baseline is grey in every row.
    """
    arms = [arm for arm in arms if arm["curve"]]
    base = next((arm for arm in arms if arm["whole"] == view["baseline"]), None)
    groups = _groups([arm for arm in arms if arm is not base], figures.MOST - 1)
    groups = groups or [list(arms)] * bool(arms)  # the baseline alone
    if not groups:
        return None
    measured = any(arm["R_curves"] for arm in arms)
    figure = figures.new(0.5 + 2.3 * len(groups), _WIDE if measured else figures.WIDTH)
    panels = figure.subplots(len(groups), 1 + measured, squeeze=False, sharex=True)
    for row, group in zip(panels, groups, strict=True):
        _perplexity(row[0], group, base)
        if measured and any(arm["R_curves"] for arm in group):
            _orders(row[1], group, view["band"])
        elif measured:
            row[1].set_axis_off()
    panels[0][0].set_title("validation perplexity")
    if measured:
        first = next(row[1] for row in panels if row[1].axison)
        first.set_title("R of training batches, mean of an arm's phase layers")
    for axes in panels[-1]:
        axes.set_xlabel("optimizer step")
    figures.label_ends(*panels.flat)
    return figure


def _perplexity(axes: Any, arms: Sequence[Arm], base: Arm | None = None) -> None:
    """Validation perplexity over training, with that of the baseline in grey."""
    if base is not None and base not in arms:
        _curve(axes, base["curve"], figures.colour("softmax"), base["whole"], "--")
    common = _common(arms)
    for arm, colour in zip(arms, _colours(arms), strict=True):
        _curve(axes, arm["curve"], colour, _named(arm, "short" if common else "whole"))
    axes.set(yscale="log", ylabel=common or _family(arms[0]))
    axes.yaxis.set_major_locator(_ticks())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, steps=[1, 2, 5, 10])


def _orders(axes: Any, arms: Sequence[Arm], target: Sequence[float]) -> None:
    low, high = target
    figures.band(axes, low, high, f"{_BAND} {low:g} to {high:g}")
    for null in sorted({arm["null"] for arm in arms} - {None}):
        figures.level(axes, null, f"{_NULL} {null:.2f}")
    name = "short" if _common(arms) else "whole"
    for arm, colour in zip(arms, _colours(arms), strict=True):
        layers = [curve for curve in arm["R_curves"].values() if curve]
        layers = [curve for curve in layers if curve["steps"] == layers[0]["steps"]]
        if layers:
            mean = {k: np.mean([curve[k] for curve in layers], 0) for k in ("mean", "low", "high")}
            _curve(axes, {"steps": layers[0]["steps"], **mean}, colour, arm[name])
    axes.set(ylim=(0, 1))


def _curve(axes: Any, curve: Arm | None, colour: str, name: str, style: str = "-") -> None:
    if curve is not None:
        axes.plot(curve["steps"], curve["mean"], style, color=colour, label=name)
        ends = curve["low"], curve["high"]
        axes.fill_between(curve["steps"], *ends, color=colour, alpha=0.12, lw=0)


def _histograms(arms: Sequence[Arm], target: Sequence[float]) -> Any:
    """R of heads and positions at the last validation, an arm each."""
    arms = [arm for arm in arms if arm["histogram"]]
    if not arms:
        return None
    rows, columns = math.ceil(len(arms) / _COLUMNS), min(_COLUMNS, len(arms))
    figure = figures.new(0.6 + 1.5 * rows, max(4.0, _WIDE * columns / _COLUMNS))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, arm in zip(panels, arms, strict=False):
        shares, colour = arm["histogram"], figures.colour(arm["mechanism"])
        axes.axvspan(*target, color=figures.BAND, lw=0)
        axes.stairs(shares, np.linspace(0, 1, len(shares) + 1), fill=True, color=colour)
        if arm["null"]:
            axes.axvline(arm["null"], color=figures.INK, ls=":", lw=1)
        name = re.sub(r"(?<!,) ", "\xa0", _named(arm))  # a line breaks after a comma alone
        axes.set_title("\n".join(textwrap.wrap(name, 30)), fontsize=8)
        axes.set(xlim=(0, 1), yticks=[], xticks=[0, 0.25, 0.5, 0.75])
    for axes in panels[len(arms) :]:
        axes.set_axis_off()
    said = f"share of heads and positions at each R, last validation\nshaded: {_BAND}"
    figure.supxlabel(said + f"; dotted: {_NULL}" * any(arm["null"] for arm in arms), fontsize=9)
    return figure


def _listed(arms: Sequence[Arm], panels: int, extra: float = 0.8) -> tuple[Any, Any, list[int]]:
    """A figure with a line for every arm, the first above, named at the left; panels; places."""
    figure = figures.new(extra + _ROW * len(arms), _WIDE)
    row = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    places = list(range(len(arms), 0, -1))
    row[0].set(yticks=places, yticklabels=[_named(arm) for arm in arms])
    row[0].set_ylim(0.3, len(arms) + 0.7)
    for axes in row:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", color=figures.FAINT, lw=0.5)
        axes.xaxis.set_major_locator(_ticks())
    return figure, row, places


def _spread(arms: Sequence[Arm]) -> Any:
    """Over seeds, the best perplexity about its mean; over training, the noise of the loss."""
    arms = [arm for arm in arms if len(arm["spread"]) > 1]
    if not arms:
        return None
    figure, row, places = _listed(arms, 2)
    panels: dict[str, Callable[[Arm], Any]] = {
        "log of the best perplexity, minus the arm's mean": lambda arm: arm["spread"],
        "sd of the training loss about its line,\nlast quarter, nats": lambda arm: arm["loss_sd"],
    }
    for axes, (label, of) in zip(row, panels.items(), strict=True):
        for arm, y in zip(arms, places, strict=True):
            found = [v for v in of(arm) if v is not None]
            _seeds(axes, found, y, figures.colour(arm["mechanism"]))
        axes.set_xlabel(f"{label}\na point is a seed")
    return figure


def _seeds(axes: Any, values: Sequence[float], y: float, colour: str, **words: Any) -> None:
    """A point for each seed, and a line from the lowest to the highest."""
    if values:
        axes.plot([min(values), max(values)], [y, y], color=colour, lw=1, alpha=0.5)
        axes.plot(values, [y] * len(values), "o", color=colour, **{"ms": 4, **words})


def _forest(arms: Sequence[Arm], baseline: str | None) -> Any:
    """Paired differences of perplexity with 95% intervals, to the baseline and to K = 0."""
    panels = {f"perplexity minus {baseline}": "difference", "minus its own K = 0": "off"}
    panels = {label: name for label, name in panels.items() if any(a[name] for a in arms)}
    arms = [arm for arm in arms if any(arm[name] for name in panels.values())]
    if not arms:
        return None
    figure, row, places = _listed(arms, len(panels), 1.1)
    for axes, (label, name) in zip(row, panels.items(), strict=True):
        _intervals(axes, arms, places, name, label)
    return figure


def _intervals(axes: Any, arms: Sequence[Arm], places: list[int], name: str, label: str) -> None:
    """An effect and its interval on every arm's line; far out the axis may be logarithmic."""
    far, sizes = "", sorted(abs(arm[name]["effect"]) for arm in arms if arm[name])
    typical = sizes[len(sizes) // 2]
    if typical and sizes[-1] > 20 * typical:
        axes.set_xscale("symlog", linthresh=4 * typical)
        axes.xaxis.set_major_formatter("{x:g}")
        far = f"\nthe axis is logarithmic beyond {4 * typical:.2g}"
    for arm, y in zip(arms, places, strict=True):
        if found := arm[name]:
            colour = figures.colour(arm["mechanism"])
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [y, y], color=colour)
            axes.plot(found["effect"], y, "s", color=colour)
    axes.axvline(0, color=figures.SOFT, lw=0.8)
    axes.set_xlabel(f"{label}\npaired by seed, 95% interval; below 0 is better{far}")


def _phases(arms: Sequence[Arm], target: Sequence[float]) -> Any:
    """R after the integration and what of it is the coupling's, and perplexity, ordered by R."""
    arms = [arm for arm in arms if arm["n"] and None not in (*arm["R"], *arm["dR"], *arm["ppl"])]
    if not arms:
        return None
    arms = sorted(arms, key=lambda arm: -np.mean(arm["R"]))
    figure, (left, right), places = _listed(arms, 2, 1.2)
    left.axvspan(*target, color=figures.BAND, lw=0)
    usual = _FAR * np.median([np.mean(arm["ppl"]) for arm in arms])
    for arm, y in zip(arms, places, strict=True):
        colour = figures.colour(arm["mechanism"])
        R, free = np.array(arm["R"]), np.array(arm["R"]) - np.array(arm["dR"])
        left.plot([free.mean(), R.mean()], [y, y], color=colour, lw=1, alpha=0.5)
        left.plot(free, [y] * len(R), "o", color=colour, ms=4.5, mfc="white")
        left.plot(R, [y] * len(R), "o", color=colour, ms=4)
        if arm["null"]:
            left.plot(arm["null"], y, "|", color=figures.INK, ms=8)
        if np.mean(arm["ppl"]) > usual:
            far = {"ha": "right", "va": "center", "fontsize": 8, "color": figures.ink(colour)}
            far["transform"] = right.get_yaxis_transform()
            right.text(0.99, y, f"beyond the axis, {np.mean(arm['ppl']):.1f}", **far)
            continue
        _seeds(right, arm["ppl"], y, colour)
    nulls = f"; bar: {_NULL}" * any(arm["null"] for arm in arms)
    left.set_xlabel(
        "R of the last validation\nfilled: as trained; hollow: K = 0, the same weights\n"
        f"shaded: {_BAND}{nulls}"
    )
    left.set_xlim(0, 1)
    right.set_xlabel("best validation perplexity\na point is a seed")
    return figure


def _leaky(arms: Sequence[Arm], view: dict[str, Any]) -> Any:
    """The arms that see the future, by themselves: curves, and what the leak buys."""
    arms = [arm for arm in arms if arm["curve"]]
    if not arms:
        return None
    differing = [arm for arm in arms if arm["difference"]]
    groups = _groups(arms, figures.MOST)
    heights = [0.5 + 2.3 * len(groups), *([0.9 + _ROW * len(differing)] * bool(differing))]
    figure = figures.new(sum(heights), _WIDE)
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    panels = parts[0].subplots(len(groups), 1, squeeze=False)[:, 0]
    panels[0].set_title("these arms see the future: validation perplexity")
    for axes, group in zip(panels, groups, strict=True):
        _perplexity(axes, group)
    panels[-1].set_xlabel("optimizer step")
    if differing:
        axes = parts[1].subplots()
        places = list(range(len(differing), 0, -1))
        label = f"what the leak buys: perplexity minus {view['baseline']}"
        _intervals(axes, differing, places, "difference", label)
        axes.set(yticks=places, yticklabels=[_named(arm) for arm in differing])
    figures.label_ends(*panels)
    return figure
