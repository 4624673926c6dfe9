"""The figures of a study as PNG, drawn from phasegpt.analysis.study_view: same records, same bytes.

Arms that see the future are in leaky.png and in no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phasegpt.analysis.report import unpack

Arm = dict[str, Any]

_BAND, _BASE, _PHASE = "#12805c", "#8a94a6", "#2f5bea"
_COLUMNS = 4  # of histograms
_STYLES = ("-", "--", ":", "-.")
_TOGETHER = 8  # arms of different colours in one panel


def draw(view: dict[str, Any], study: Path) -> list[Path]:
    """Every figure that the records of a study allow; a figure that nothing is in is not there."""
    causal = [arm for arm in view["arms"] if not arm["leaky"]]
    leaky = [arm for arm in view["arms"] if arm["leaky"]]
    figures = {
        "curves": _curves(causal, view["band"]),
        "histograms": _histograms(causal, view["band"]),
        "spread": _spread(causal),
        "forest": _forest(causal, view["baseline"]),
        "phases": _phases(causal),
        "leaky": _leaky(leaky, view["baseline"]),
        "attention": _attention(view["attention"]),
    }
    written = []
    for name, figure in figures.items():
        path = study / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        figure.savefig(path, dpi=110, metadata={"Software": None})
        written.append(path)
    return written


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _curves(arms: Sequence[Arm], target: Sequence[float]) -> Any:
    """Validation perplexity and R of every arm over training, mean over seeds and range.

    A row for every few arms, so that no two of one panel share a colour; the others are grey.
    """
    if not any(arm["curve"] for arm in arms):
        return None
    groups = [arms[i : i + _TOGETHER] for i in range(0, len(arms), _TOGETHER)]
    figure = _figure(12, max(4.0, 3.2 * len(groups)))
    rows = figure.subplots(len(groups), 2, squeeze=False, sharex=True, sharey="col")
    for (left, right), group in zip(rows, groups, strict=True):
        for arm in arms:
            if arm not in group and arm["curve"]:
                left.plot(arm["curve"]["steps"], arm["curve"]["mean"], color="0.85", lw=0.8)
        _perplexity(left, group)
        for number, arm in enumerate(group):
            for style, curve in zip(_STYLES * 9, arm["R_curves"].values(), strict=False):
                _band(right, curve, f"C{number}", style=style)
        if any(arm["R_curves"] for arm in arms):
            right.axhspan(*target, color=_BAND, alpha=0.1, lw=0)
            right.set(ylim=(0, 1))
        else:
            right.set_axis_off()
        right.legend(
            *left.get_legend_handles_labels(),
            **{"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False},
            fontsize=8,
        )
    rows[0][0].set_title("validation perplexity")
    if rows[0][1].axison:
        band = f"shaded: target band, {target[0]:.2f} to {target[1]:.2f}"
        rows[0][1].set_title(f"R of training batches ({band})")
    for axes in rows[-1]:
        axes.set_xlabel("optimizer step")
    return figure


def _perplexity(axes: Any, arms: Sequence[Arm]) -> None:
    """Validation perplexity of every arm over training."""
    for number, arm in enumerate(arms):
        _band(axes, arm["curve"], f"C{number}", label=f"{arm['arm']} (n={arm['n']})")
    axes.set(yscale="log")
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis("{x:g}")


def _band(axes: Any, curve: Arm | None, colour: Any, *, label: str = "", style: str = "-") -> None:
    if curve is None:
        return
    axes.plot(curve["steps"], curve["mean"], style, color=colour, label=label or None, lw=1.3)
    axes.fill_between(curve["steps"], curve["low"], curve["high"], color=colour, alpha=0.15, lw=0)


def _histograms(arms: Sequence[Arm], target: Sequence[float]) -> Any:
    """R of heads and positions at the last validation, an arm each."""
    arms = [arm for arm in arms if arm["histogram"]]
    if not arms:
        return None
    rows = math.ceil(len(arms) / _COLUMNS)
    figure = _figure(11, 0.5 + 1.7 * rows)
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes, arm in zip(panels, arms, strict=False):
        shares = arm["histogram"]
        axes.stairs(shares, np.linspace(0, 1, len(shares) + 1), fill=True, color=_PHASE)
        axes.axvspan(*target, color=_BAND, alpha=0.12, lw=0)
        axes.set_title(f"{arm['arm']} (n={arm['n']})", fontsize=7)
        axes.tick_params(labelsize=7)
        axes.set(xlim=(0, 1), yticks=[])
    for axes in panels[len(arms) :]:
        axes.set_axis_off()
    figure.supxlabel("R of a head and position, last validation", fontsize=8)
    return figure


def _spread(arms: Sequence[Arm]) -> Any:
    """Over seeds, the best perplexity about its mean; over training, the noise of the loss."""
    shown = [arm for arm in arms if len(arm["spread"]) > 1]
    if not shown:
        return None
    panels = {
        "log best perplexity, less the arm's mean: a seed each": "spread",
        "sd of the training loss about its line, last quarter (nats)": "loss_sd",
    }
    figure = _figure(11, 1.0 + 0.26 * len(shown))
    places = range(len(shown), 0, -1)
    for axes, (label, name) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        values = [[v for v in arm[name] if v is not None] for arm in shown]
        axes.boxplot(values, positions=list(places), orientation="horizontal", showfliers=False)
        for y, found in zip(places, values, strict=True):
            axes.plot(found, [y] * len(found), "o", ms=3, color=_PHASE)
        axes.set(yticks=list(places), yticklabels=[f"{a['arm']} (n={a['n']})" for a in shown])
        axes.set_xlabel(label, fontsize=9)
    return figure


def _forest(arms: Sequence[Arm], baseline: str | None) -> Any:
    """Paired differences of perplexity with 95% intervals, to the baseline and to K = 0."""
    panels = {f"perplexity minus {baseline}": "difference", "minus its own K = 0": "off"}
    panels = {label: name for label, name in panels.items() if any(a[name] for a in arms)}
    if not panels:
        return None
    figure = _figure(11, 1.0 + 0.26 * len(arms))
    for axes, (label, name) in zip(
        figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True
    ):
        far = _intervals(axes, arms, name)
        axes.set_xlabel(f"{label}\npaired by seed, 95% interval{far}", fontsize=9)
    return figure


def _intervals(axes: Any, arms: Sequence[Arm], name: str) -> str:
    """An arm per line; returns what to say of the axis where it must be logarithmic far out."""
    arms = [arm for arm in arms if arm[name]]
    for y, arm in enumerate(reversed(arms)):
        found = arm[name]
        if found["low"] is not None:
            axes.plot([found["low"], found["high"]], [y, y], color=_PHASE, lw=1.4)
        axes.plot(found["effect"], y, "s", ms=4, color=_PHASE)
    axes.axvline(0, color="0.5", lw=0.8)
    labels = [f"{arm['arm']} (n={arm['n']})" for arm in reversed(arms)]
    axes.set(yticks=range(len(arms)), yticklabels=labels)
    sizes = sorted(abs(arm[name]["effect"]) for arm in arms)
    typical = sizes[len(sizes) // 2]
    if typical and sizes[-1] > 20 * typical:
        axes.set_xscale("symlog", linthresh=4 * typical)
        return f" (log beyond {4 * typical:.2g})"
    return ""


def _phases(arms: Sequence[Arm]) -> Any:
    """R after the integration and what of it is the coupling's (dR); perplexity against R."""
    kept = [arm for arm in arms if arm["n"] and None not in (*arm["R"], *arm["dR"], *arm["ppl"])]
    if not kept:
        return None
    ranked = sorted(kept, key=lambda arm: np.mean(arm["R"]))
    figure = _figure(11, 0.9 + 0.26 * len(ranked))
    left, right = figure.subplots(1, 2)
    for y, arm in enumerate(ranked):
        R, dR = np.array(arm["R"]), np.array(arm["dR"])
        left.plot([np.mean(R - dR), np.mean(R)], [y, y], color="0.6", zorder=1)
        left.scatter(R, [y] * len(R), s=14, color="C0", label=None if y else "R, a seed each")
        left.scatter(R - dR, [y] * len(R), s=14, color="C1", label=None if y else "R at K = 0")
        right.scatter(R, arm["ppl"], s=9, color="0.75", zorder=1)
        right.annotate(
            str(len(ranked) - y),
            (float(np.mean(R)), float(np.mean(arm["ppl"]))),
            **{"fontsize": 7, "ha": "center", "va": "center", "color": "white"},
            bbox={"boxstyle": "circle,pad=0.15", "color": "C0"},
        )
    labels = [f"{arm['arm']}  {len(ranked) - y}" for y, arm in enumerate(ranked)]
    left.set(yticks=range(len(ranked)), yticklabels=labels, xlabel="R of the last validation")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="R of the last validation", ylabel="best validation perplexity")
    right.set_title("numbers: means of the arms at the left; grey: seeds", fontsize=9)
    return figure


def _leaky(arms: Sequence[Arm], baseline: str | None) -> Any:
    """The arms that see the future, by themselves: curves, and what the leak buys."""
    if not any(arm["curve"] for arm in arms):
        return None
    figure = _figure(12, max(4.0, 0.6 + 0.26 * len(arms)))
    left, right = figure.subplots(1, 2)
    _perplexity(left, arms)
    left.set(title="LEAKY, they see the future: validation perplexity", xlabel="optimizer step")
    left.legend(frameon=False, fontsize=7)
    if any(arm["difference"] for arm in arms):
        far = _intervals(right, arms, "difference")
        label = f"what the leak buys: minus {baseline}\npaired by seed, 95% interval{far}"
        right.set_xlabel(label, fontsize=9)
    else:
        right.set_axis_off()
    return figure


def _attention(comparison: dict[str, Any] | None) -> Any:
    """Entropy and distance of attention by layer of two runs, and maps of the phase layer."""
    if comparison is None:
        return None
    layers = comparison["layers"]
    mapped = next((layer for layer in layers if layer["maps"]), None)
    heads = mapped["maps"]["phase"]["shape"][0] if mapped else 0
    figure = _figure(11, 3.2 + (4.4 if heads else 0))
    top, *bottom = figure.subfigures(2 if heads else 1, 1, squeeze=False)[:, 0]
    for axes, measure in zip(top.subplots(1, 2), ("entropy", "distance"), strict=True):
        for which, colour in (("baseline", _BASE), ("phase", _PHASE)):
            found = [layer[measure][which] for layer in layers]
            x, mean = [layer["layer"] for layer in layers], [f["mean"] for f in found]
            axes.plot(x, mean, "o-", ms=3, color=colour, label=comparison[which]["name"])
            ends = [[f[end] if f[end] is not None else f["mean"] for f in found]
                    for end in ("low", "high")]  # fmt: skip
            axes.fill_between(x, *ends, color=colour, alpha=0.2, lw=0)
        for layer in layers:
            if layer["phase"]:
                axes.axvline(layer["layer"], color=_BAND, lw=0.8, ls=":")
        axes.set(xlabel="layer (dotted: with oscillators)", ylabel=comparison["units"][measure])
    top.axes[0].legend(frameon=False, fontsize=8)
    if mapped is None:
        return figure
    panels = bottom[0].subplots(2, heads, squeeze=False)
    for row, which in zip(panels, ("baseline", "phase"), strict=True):
        for h, (axes, A_TT) in enumerate(zip(row, unpack(mapped["maps"][which]), strict=True)):
            image = axes.imshow(np.sqrt(A_TT), vmin=0, vmax=1, cmap="Blues")
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{which}, layer {mapped['layer']}, head {h}", fontsize=7)
    bottom[0].colorbar(image, ax=list(panels.flat), label="square root of the weight", shrink=0.8)
    return figure
