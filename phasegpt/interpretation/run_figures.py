"""Static pictures of a measurement for papers: PNG and SVG, the same bytes for the same numbers.

Shapes: T time, H heads, N oscillators, S integration steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from phasegpt.core import figures
from phasegpt.interpretation.synchronization import BAND, Measurement, locking
from phasegpt.interpretation.tracing import Trace
from phasegpt.phase import locking_clusters, null_order_parameter

_HEADS = 4  # rows and columns of the pictures that have one panel per head
_MAP_TOKENS = 64


@figures.house()
def draw(measured: Measurement, folder: Path) -> list[Path]:
    """Pictures of every layer in `folder`: order, portraits, plv and attention, as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for t in measured.traces:
        made = {"order": _order(t), "portraits": _portraits(t), "plv": _plv(t)}
        if t.layer.index in measured.maps:
            made["attention"] = _attention(measured, t)
        for name, figure in made.items():
            path = folder / f"layer{t.layer.index}-{name}"
            written += figures.save(figure, *(path.with_suffix(kind) for kind in (".png", ".svg")))
    return written


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    figure = figures.new(height, width)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _order(t: Trace) -> Any:
    """R over integration steps and over tokens, mean and range of heads, and with K = 0."""
    figure, ((left, right),) = _figure(1, 2, 9.0, 3.2)
    null_T = null_order_parameter(t.count_THC).mean((1, 2)).clamp(max=1)
    tokens = range(1, len(null_T) + 1)
    steps = range(t.R_steps_HS.shape[1])
    null = float(null_T[t.first :].mean())
    colour = figures.colour(t.layer.mechanism)
    panels = (
        (left, steps, t.R_steps_HS, t.R_steps_uncoupled_HS, [null] * len(steps)),
        (right, tokens, t.R_BTHC.mean((0, 3)).T, t.R_uncoupled_BTHC.mean((0, 3)).T, null_T.numpy()),
    )
    for axes, x, coupled, uncoupled, nothing in panels:
        if not t.layer.over_prefix:
            low, high = BAND
            figures.band(axes, low, high, "band")
        axes.plot(x, nothing, ":", color=figures.SOFT, lw=1, label="random phases")
        for values, style, name in ((uncoupled, "--", "K = 0"), (coupled, "-", "as trained")):
            axes.plot(x, values.mean(0).numpy(), style, color=colour, label=name)
            ends = (values.amin(0).numpy(), values.amax(0).numpy())
            axes.fill_between(x, *ends, color=colour, alpha=0.12, lw=0)
        highest = max(float(coupled.max()), float(uncoupled.max()))
        axes.set(ylim=(0, min(1, max(0.65, 1.15 * highest))), ylabel="R, mean and range of heads")
    left.set_xlabel("integration step")
    right.set_xlabel("token")
    figures.label_ends(left, right)
    return figure


def _portraits(t: Trace) -> Any:
    """Phases of the middle token on the unit circle, each head, from first to last step.

    The arrow is their mean (kuramoto); circles are the prefix means of the channels (phase_sync).
    """
    heads = min(_HEADS, t.path_STHN.shape[2])
    chosen = sorted({round(i * (len(t.steps) - 1) / 3) for i in range(4)})
    figure, panels = _figure(heads, len(chosen), 1.7 * len(chosen), 1.8 * heads)
    path_STHN, middle = t.path_STHN.numpy(), t.path_STHN.shape[1] // 2
    circle, colour = np.linspace(0, 2 * np.pi, 181), figures.colour(t.layer.mechanism)
    for h in range(heads):
        for axes, s in zip(panels[h], chosen, strict=True):
            theta = path_STHN[s, middle, h]
            axes.plot(np.cos(circle), np.sin(circle), color=figures.FAINT, lw=0.8)
            axes.plot(np.cos(theta), np.sin(theta), "o", color=colour, mew=0, alpha=0.7)
            if not t.layer.over_prefix:
                mean = (float(np.cos(theta).mean()), float(np.sin(theta).mean()))
                axes.annotate("", mean, (0, 0), arrowprops={"arrowstyle": "->", "lw": 1.4})
            else:
                before, weights = path_STHN[s, : middle + 1, h], t.weights(middle + 1)[:, h].numpy()
                x, y = (np.average(f(before), 0, weights) for f in (np.cos, np.sin))
                axes.plot(x, y, "o", mfc="none", mec="k", ms=4)
            axes.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), aspect="equal")
            axes.set_axis_off()
            R = float(t.path_R_STH[s, middle, h])
            title = f"head {h}, step {t.steps[s]}, R {R:.2f}"
            axes.set_title(title, fontsize=7.5, loc="center")
    return figure


def _plv(t: Trace) -> Any:
    """Phase-locking values over tokens, oscillators sorted by cluster."""
    plv, threshold = locking(t)
    heads = min(_HEADS, len(plv))
    figure, (panels,) = _figure(1, heads, 2.4 * heads + 0.6, 2.6)
    for h, axes in enumerate(panels):
        order = locking_clusters(plv[h], threshold).sort(stable=True).indices
        image = axes.imshow(plv[h][order][:, order].numpy(), vmin=0, vmax=1, cmap=figures.MAP)
        axes.set(title=f"head {h}", xticks=[], yticks=[])
    figure.colorbar(image, ax=list(panels), label="PLV", shrink=0.8)
    return figure


def _attention(measured: Measurement, t: Trace) -> Any:
    """Attention of the first sequence with the coherence term, without it, and the difference."""
    maps = measured.maps[t.layer.index]
    heads, M = min(_HEADS, maps.plain.shape[1]), min(_MAP_TOKENS, maps.plain.shape[2])
    figure, panels = _figure(heads, 3, 6.4, 2.0 * heads + 0.9)
    for h in range(heads):
        a, b = (x[0, h, :M, :M].numpy() for x in maps)
        for axes, z in zip(panels[h], (a, b), strict=False):
            shades = axes.imshow(np.sqrt(z), vmin=0, vmax=1, cmap=figures.MAP)
        change = panels[h][2].imshow(a - b, vmin=-1, vmax=1, cmap=figures.DIFFERENCE)
        panels[h][0].set_ylabel(f"head {h}, query")
    titles = ("with the coherence term", "without it", "difference")
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    below: dict[str, Any] = {"location": "bottom", "aspect": 30, "pad": 0.02}
    figure.colorbar(
        shades, ax=panels[:, :2], label="square root of the weight", shrink=0.6, **below
    )
    figure.colorbar(change, ax=panels[:, 2], label="difference", shrink=0.9, **below)
    return figure
