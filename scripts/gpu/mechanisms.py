"""Every mechanism of conf/attention as one layer: which kernels, how fast, how right, how causal.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import bench_attention
import torch
from torch import Tensor

from gpu import Run, timeline
from phasegpt.core.composition import CONF_DIR
from phasegpt.core.errors import ConfigError
from phasegpt.model.contract import roughen

#: Largest error of a float32 layer against float64 on the CPU, relative to the largest value.
TOLERANCE = 1e-3
B, T, D, HEADS = 32, 512, 768, 12  # of Phase A


def dispatch(run: Run) -> dict[str, Any]:
    """The operators that scaled_dot_product_attention chose, and the longest kernels, by layer."""
    found: dict[str, Any] = {"layers": {}, "failures": []}
    for stem, arm in _arms(run):
        try:
            with _autocast(run):
                call = arm.training(_input(run))
                call()  # builds kernels
                trace = timeline.traced(call, run.device)
            summary = timeline.summary(trace)
        except (ConfigError, RuntimeError) as error:
            found["failures"].append(f"{stem}: {type(error).__name__}: {error!s:.300}")
            continue
        kept = ("attention_ops", "launches_per_step", "device_ms_per_step", "kernels")
        found["layers"][stem] = {name: summary[name] for name in kept}
    return found


def table(run: Run) -> dict[str, Any]:
    """Time, memory, error against float64 on the CPU, and whether later tokens are seen."""
    warnings.simplefilter("ignore")
    base = bench_attention.Arm("softmax", _sizes(run), run.device)
    found: dict[str, Any] = {"rows": [], "failures": []}
    for stem, arm in _arms(run):
        row: dict[str, Any] = {"name": stem, "leaky": arm.layer.leaky}
        found["rows"].append(row)
        try:
            row |= _speed(run, stem, arm, base)
            row |= _errors(run, arm)
            row["later_moves_earlier"] = _leak(run, arm)
        except (ConfigError, RuntimeError) as error:
            row["error"] = f"{type(error).__name__}: {error!s:.300}"
            found["failures"].append(f"{stem}: {row['error']}")
            continue
        worst = max(row["y_error"], row["grad_error"])
        if not worst <= TOLERANCE:
            found["failures"].append(f"{stem}: differs from float64 by {worst:.1e}")
        if (row["later_moves_earlier"] > 0) != arm.layer.leaky:
            moved = row["later_moves_earlier"]
            found["failures"].append(f"{stem}: a later token moves earlier outputs by {moved:.1e}")
    return found


def _speed(
    run: Run, stem: str, arm: bench_attention.Arm, base: bench_attention.Arm
) -> dict[str, Any]:
    """Forward and backward beside softmax in turn, under the autocast of a training."""
    time = _input(run).shape[1]
    with _autocast(run):
        pair = bench_attention.Pair(
            stem, time, arm.training(_input(run)), base.training(_input(run))
        )
        times = bench_attention.alternate([pair], run.size(15, 1), run.device)
        memory = bench_attention.peak_bytes(pair.own, run.device)
    return {**bench_attention.ratios(times[stem, time]), "memory": memory}


def _errors(run: Run, arm: bench_attention.Arm) -> dict[str, float]:
    """Of output and input gradient in float32, against a float64 copy of the layer on the CPU."""
    x = torch.randn(2, run.size(96, 12), _sizes(run).width)
    exact = copy.deepcopy(arm)
    exact.layer = exact.layer.cpu().double()
    exact.link = None if exact.link is None else exact.link.cpu().double()
    own, true = (_passed(a, x.to(d)) for a, d in ((arm, run.device), (exact, torch.float64)))
    names = ("y_error", "grad_error")
    return {n: _relative(f, t) for n, f, t in zip(names, own, true, strict=True)}


def _passed(arm: bench_attention.Arm, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Everything that a layer and its link return, in one tensor, and a gradient of the input."""
    x_BTD = x_BTD.requires_grad_()
    y = torch.cat([part.flatten() for part in arm(x_BTD)])
    weights = torch.linspace(-1, 1, len(y), dtype=y.dtype, device=y.device)
    (gradient,) = torch.autograd.grad((y * weights).sum(), [x_BTD])
    return y.detach(), gradient


def _relative(found: Tensor, true: Tensor) -> float:
    return ((found.cpu().double() - true).abs().max() / true.abs().max()).item()


def _leak(run: Run, arm: bench_attention.Arm) -> float:
    """How far outputs before t move, at most, when the inputs from t on change."""
    x, moved = _input(run)[:2], 0.0
    with torch.no_grad(), _autocast(run):
        before = arm(x)[0]
        for t in (1, x.shape[1] // 2, x.shape[1] - 1):
            changed = x.clone()
            changed[:, t:] += torch.randn_like(changed[:, t:])
            moved = max(moved, (arm(changed)[0] - before)[:, :t].abs().max().item())
    return moved


def _arms(run: Run) -> Iterator[tuple[str, bench_attention.Arm]]:
    """A layer of every mechanism, off its initial values, on the device."""
    for path in sorted((CONF_DIR / "attention").glob("*.yaml")):
        arm = bench_attention.Arm(path.stem, _sizes(run), "cpu")
        for part in (arm.layer, arm.link):
            if part is not None:
                roughen(part, 0.01)
                part.to(run.device)
        yield path.stem, arm


def _sizes(run: Run) -> bench_attention.Sizes:
    full = bench_attention.Sizes(width=D, heads=HEADS, times=(T,), tokens=B * T)
    return run.size(full, bench_attention.Sizes(width=32, heads=2, times=(16,), tokens=32))


def _input(run: Run) -> Tensor:
    sizes = _sizes(run)
    (time,) = sizes.times
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sizes.tokens // time, time, sizes.width, generator=generator)
    return x.to(run.device)


def _autocast(run: Run) -> AbstractContextManager[Any]:
    """That of a training on the device."""
    return torch.autocast("cuda", torch.bfloat16) if run.device == "cuda" else nullcontext()
