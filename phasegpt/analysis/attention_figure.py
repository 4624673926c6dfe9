"""The picture of scripts/compare_attention.py: attention of two runs by layer, and its maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from phasegpt.analysis.report import unpack
from phasegpt.core import figures


def attention(comparison: dict[str, Any] | None) -> Any:
    """Entropy and distance of attention by layer of two runs, and maps of the phase layer."""
    if comparison is None:
        return None
    layers = comparison["layers"]
    mapped = next((layer for layer in layers if layer["maps"]), None)
    heads = mapped["maps"]["phase"]["shape"][0] if mapped else 0
    heights = [3.0, *([4.6] * bool(heads))]
    figure = figures.new(sum(heights), 10.0)
    top, *bottom = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    panels = top.subplots(1, 2)
    kinds = (("baseline", figures.colour("softmax")), ("phase", figures.colour("kuramoto")))
    for axes, measure in zip(panels, ("entropy", "distance"), strict=True):
        for which, colour in kinds:
            found = [layer[measure][which] for layer in layers]
            x, mean = [layer["layer"] for layer in layers], [f["mean"] for f in found]
            axes.plot(x, mean, "o-", color=colour, label=which)
            ends = [[f[end] if f[end] is not None else f["mean"] for f in found]
                    for end in ("low", "high")]  # fmt: skip
            axes.fill_between(x, *ends, color=colour, alpha=0.2, lw=0)
        for layer in layers:
            if layer["phase"]:
                axes.axvline(layer["layer"], color=figures.SOFT, lw=0.8, ls=":")
        axes.set(xlabel="layer (dotted: with oscillators)", ylabel=comparison["units"][measure])
    names = ", ".join(f"{which}: {comparison[which]['name']}" for which, _ in kinds)
    top.suptitle(names, fontsize=9)
    if mapped is not None:
        _maps(bottom[0], mapped, heads)
    figures.label_ends(*panels)
    return figure


def _maps(figure: Any, mapped: dict[str, Any], heads: int) -> None:
    panels = figure.subplots(2, heads, squeeze=False)
    for row, which in zip(panels, ("baseline", "phase"), strict=True):
        for h, (axes, A_TT) in enumerate(zip(row, unpack(mapped["maps"][which]), strict=True)):
            image = axes.imshow(np.sqrt(A_TT), vmin=0, vmax=1, cmap=figures.MAP)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{which}, layer {mapped['layer']}, head {h}", fontsize=8)
    figure.colorbar(image, ax=list(panels.flat), label="square root of the weight", shrink=0.8)
