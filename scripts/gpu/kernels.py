"""The integration of oscillators against the limits of the device, as bench_ops measures it."""

from __future__ import annotations

import math
from typing import Any

import bench_ops
import torch

from gpu import Run, timeline

CALLS = 20  # of a kernel in one trace


def kernels(run: Run) -> dict[str, Any]:
    """Rows and scan against the copy bandwidth and the sincos rate of this run, beside eager."""
    clock = _clock(run)
    bandwidth, rate = bench_ops.copy_bandwidth(clock), bench_ops.sincos_rate(clock)
    table = _table(run, clock, (bandwidth, rate))
    for row in table:
        if row["backend"] == "cuda":  # without the host, which short kernels wait for
            row["device_ms"] = _device_ms(row, run)
            row["of_limit"] *= row["ms"] / (row["device_ms"] or row["ms"])
    limits = {"copy_bytes_per_s": bandwidth, "sincos_per_s": rate}
    return {
        **limits,
        "bf16_flop_per_s": matmul_rate(clock, run),
        "shape": _shape(run),
        "table": table,
    }


def against_compile(run: Run) -> dict[str, Any]:
    """The times beside torch.compile, whose start-up takes most of the time; a dry run: eager."""
    table = _table(run, _clock(run), (math.inf, math.inf), compiled=not run.dry)
    return {"shape": _shape(run), "table": [{**row, "of_limit": None} for row in table]}


def _clock(run: Run) -> bench_ops.Clock:
    torch.manual_seed(0)
    if run.dry:
        bench_ops.SAMPLE = 1e-3  # type: ignore[misc]
    return bench_ops.Clock(run.device, run.size(9, 1))


def _shape(run: Run) -> list[int]:
    return run.size([32, 512, 12, 32], [1, 8, 2, 4])


def _table(
    run: Run, clock: bench_ops.Clock, limits: tuple[float, float], *, compiled: bool = False
) -> list[dict[str, Any]]:
    return bench_ops.compare(clock, _shape(run), run.size(10, 2), compiled, limits)


def _device_ms(row: dict[str, Any], run: Run) -> float | None:
    """Milliseconds of the device for one call of a row of bench_ops.compare."""
    inputs = bench_ops.problem(row["op"], run.device, *_shape(run))
    call = bench_ops.function(row["op"], row["backend"], run.size(10, 2), row["R"])
    wrap = bench_ops.forward if row["passes"] == "forward" else bench_ops.both
    once = wrap(call, inputs)
    once()
    trace = timeline.traced(lambda: [once() for _ in range(CALLS)], run.device)
    return timeline.summary(trace, CALLS)["device_ms_per_step"]


def matmul_rate(clock: bench_ops.Clock, run: Run) -> float:
    """FLOP/s of a large bf16 matrix product of random numbers: zeros run faster."""
    size = run.size(8192, 64)
    a, b = (torch.randn(size, size, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / clock({"product": lambda: a @ b})["product"]
