"""curves.png of a run: its loss, the accuracy of a task, R of its phase layers; what each is
compared with is drawn and named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from phasegpt.core import figures
from phasegpt.data import ngram
from phasegpt.data.corpus import Corpus
from phasegpt.phase import null_order_parameter
from phasegpt.training.config import RunConfig
from phasegpt.training.run_folder import RunFolder, read_metrics
from phasegpt.training.summary import coupled_oscillators, has_trigram

_R = re.compile(r"phase/R/layer(\d+)")
_LAYERS = 3  # with a line each; of more the mean and the range are drawn
_WIDTH, _HEIGHT = 5.2, 2.1  # inches, of a panel; to be read at half a page

Points = Callable[[str], dict[float, float]]


@figures.house()
def draw_curves(run: RunConfig, folder: RunFolder, corpus: Corpus) -> Path:
    """curves.png of a run folder, a panel each for loss, accuracy and R, where there are some.

    The loss stands beside that of a trigram model and the entropy floor; accuracy beside chance
    and ceiling; R of the validation windows, without training noise, beside its value at K = 0 with
    the same weights (of runs without such windows R of the training batches, alone), what random
    phases would give, and the band of the phase monitor.
    """
    rows = read_metrics(folder.path / "metrics.csv")

    def points(name: str) -> dict[float, float]:
        found = {row["step"]: row[name] for row in rows if name in row}
        return {step: value for step, value in found.items() if math.isfinite(value)}

    layers = sorted({int(m[1]) for row in rows for name in row if (m := _R.fullmatch(name))})
    panels = [_loss, *([_accuracy] * (corpus.task is not None)), *([_order] * bool(layers))]
    figure = figures.new(0.5 + _HEIGHT * len(panels), width=_WIDTH)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for one, panel in zip(axes, panels, strict=True):
        panel(one, run, corpus, points, layers)
    smoke = ", smoke run" * run.trainer.smoke
    axes[0].set_title(f"{run.name}, seed {run.seed}, {folder.record.get('step', 0)} steps{smoke}")
    axes[-1].set_xlabel("optimizer step")
    figures.label_ends(*axes)
    figures.save(figure, folder.path / "curves.png")
    return folder.path / "curves.png"


def _line(axes: Any, found: dict[float, float], style: str = "-", **words: Any) -> None:
    if found:
        axes.plot(list(found), list(found.values()), style, **words)


def _loss(axes: Any, run: RunConfig, corpus: Corpus, points: Points, _: list[int]) -> None:
    validated = points("val/loss")
    _line(axes, points("train/loss"), color=figures.SOFT, alpha=0.5, label="training", lw=1)
    colour = figures.colour(run.attention.name)
    last = list(validated.values())[-1:]
    told = [f"validation {value:.3f}" for value in last]
    if corpus.task is None:
        told = [f"{text}\n(perplexity {math.exp(last[0]):.2f})" for text in told if last[0] < 700]
        if has_trigram(run, corpus):
            figures.level(axes, ngram.trigram(corpus), "trigram model", "-.")
        figures.level(axes, None if run.trainer.smoke else ngram.floor(corpus), "entropy floor")
    _line(axes, validated, "o-", color=colour, label=(told or ["validation"])[0])
    axes.set_ylabel("loss, nats per token")


def _accuracy(axes: Any, run: RunConfig, corpus: Corpus, points: Points, _: list[int]) -> None:
    assert corpus.task is not None
    colour, validated = figures.colour(run.attention.name), points("val/accuracy")
    last = f" {list(validated.values())[-1]:.3f}" if validated else ""
    _line(axes, validated, "o-", color=colour, label=f"validation{last}")
    beyond = points("val/accuracy/beyond")
    _line(axes, beyond, "o--", color=colour, label="beyond the training")
    figures.level(axes, corpus.task.chance, "chance")
    figures.level(axes, corpus.task.ceiling, "ceiling", "-.")
    axes.set(ylim=(-0.02, 1.02), ylabel="accuracy")


def _order(axes: Any, run: RunConfig, _: Corpus, points: Points, layers: list[int]) -> None:
    oscillators = coupled_oscillators(run)
    if oscillators:
        low, high = run.callbacks.phase_monitor.band
        figures.band(axes, low, high, f"band {low:g} to {high:g}")
        figures.level(axes, null_order_parameter(float(oscillators)), "random phases")
    curves = {f"layer {n}": _coupled(points, n) for n in layers}
    if len(layers) > _LAYERS:
        both = [_over_layers(axes, [pair[i] for pair in curves.values()], run) for i in (0, 1)]
        curves = {f"mean of {len(layers)} layers": (both[0], both[1])}
    shades = figures.shades(figures.colour(run.attention.name), len(curves))
    for (name, (coupled, free)), shade in zip(curves.items(), shades, strict=True):
        _line(axes, coupled, "o-" if free else "-", color=shade, label=name, lw=1.2)
        _line(axes, free, "o--", color=shade, label=f"{name}, K = 0", mfc="white")
    over = "the oscillators of a head" if oscillators else "the tokens of a prefix"
    axes.set(ylim=(0, 1.02), ylabel=f"R over {over}")


def _coupled(points: Points, layer: int) -> tuple[dict[float, float], dict[float, float]]:
    """R by step, and R at K = 0: of the same windows, so that the gap is dR."""
    end, gain = points(f"phase/val/R_end/layer{layer}"), points(f"phase/val/dR/layer{layer}")
    free = {step: R - gain[step] for step, R in end.items() if step in gain}
    return (end, free) if end else (points(f"phase/R/layer{layer}"), {})


def _over_layers(axes: Any, curves: list[dict[float, float]], run: RunConfig) -> dict[float, float]:
    """The mean over layers at the steps that all have; their range is shaded."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])
    if steps:
        colour = figures.colour(run.attention.name)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, lw=0)
    return dict(zip(steps, values.mean(0).tolist(), strict=True)) if steps else {}
