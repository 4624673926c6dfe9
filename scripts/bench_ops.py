"""Time the oscillator integration of every backend against what the device can do at best.

    python scripts/bench_ops.py [--device cpu] [--shape 8 512 12 32] [--steps 10] [--rounds 9]
                                [--no-compile] [--no-scaling] [--json FILE]

Prints time, bytes moved and sincos counted, the fraction of the limit that copy bandwidth and
sincos rate (both measured here, in the same run) leave, and the ratios to eager PyTorch and to
torch.compile of it; then the cost against T, N and S, against a form that holds every pair of
tokens, and of decoding. Contestants alternate; the figures are medians of wall-clock time.
"""

import argparse
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from phasegpt import ops
from phasegpt.cli import guarded
from phasegpt.core.allocator import keep_freed_memory
from phasegpt.core.files import check_output, write_output
from phasegpt.ops import fused, nvrtc, reference

DT = 0.1
SAMPLE = 0.1  # seconds that one measurement should take
# Sine and cosine of numbers that stay in registers.
CPU_RATE = """
#include "{source}"
extern "C" void sincos_rate(float* out, int64_t repeats, int threads) {{
#pragma omp parallel num_threads(threads)
  {{
    Vec x[4], sum = {{}};
    for (int i = 0; i < 4; ++i) x[i] = Vec{{}} + 0.1f * i;
    for (int64_t r = 0; r < repeats; ++r)
      for (int i = 0; i < 4; ++i) {{
        const Pair p = cos_sin(x[i]);
        x[i] += 0.5f;
        sum += p.cos + p.sin;
      }}
#pragma omp critical
    for (int i = 0; i < LANES; ++i) out[i] = sum[i];
  }}
}}
"""
CUDA_RATE = """
__global__ void sincos_rate(float* out, int repeats) {
  float x[4], sum = 0.f;
  for (int i = 0; i < 4; ++i) x[i] = 0.1f * i * threadIdx.x;
  for (int r = 0; r < repeats; ++r)
    for (int i = 0; i < 4; ++i) {
      float sin, cos;
      __sincosf(x[i], &sin, &cos);
      x[i] += 0.5f;
      sum += sin + cos;
    }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""


class Clock:
    """Median seconds of several functions called in turn."""

    def __init__(self, device: str, rounds: int) -> None:
        self.device, self.rounds = device, rounds

    def once(self, call: Callable[[], object], repeats: int) -> float:
        if self.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1e3 / repeats
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begin) / repeats

    def __call__(self, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
        repeats = {}
        for name, call in calls.items():
            self.once(call, 1)  # compiles
            repeats[name] = max(1, int(SAMPLE / max(self.once(call, 2), 1e-6)))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.rounds):
            for name, call in calls.items():
                seconds[name].append(self.once(call, repeats[name]))
        return {name: statistics.median(values) for name, values in seconds.items()}


# --- the contestants -------------------------------------------------------------------------


def problem(kind: str, device: str, B: int, T: int, H: int, N: int) -> list[Tensor]:
    """theta0, omega, coupling with gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, T, H, N), (H, N), (H,)) if kind == "rows" else ((B, T, H * N), (H * N,), (H * N,))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    return [x.to(device).requires_grad_() for x in tensors]


def function(kind: str, backend: str, steps: int, order: bool) -> Callable[..., Tensor]:
    """(theta0, omega, coupling) -> a tuple of what is returned."""
    integrate = ops.kuramoto_rows if kind == "rows" else ops.kuramoto_scan

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        out = integrate(*inputs, steps=steps, dt=DT, return_order=order, backend=backend)
        return (out.theta, out.R) if order else (out.theta,)

    return call


def forward(call: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> object:
        return call(*inputs)

    return run


def both(call: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> Callable[[], object]:
    with torch.no_grad():
        grads = [torch.randn_like(x) for x in call(*inputs)]

    def run() -> object:
        return torch.autograd.grad(call(*inputs), inputs, grads)

    return run


def pairwise(theta: Tensor, omega: Tensor, coupling: Tensor, steps: int) -> tuple[Tensor]:
    """kuramoto_scan written with the difference of every pair of tokens, [B,T,T,C]."""
    T = theta.shape[1]
    weights = torch.ones(T, T).tril()
    weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)
    for _ in range(steps):
        pull = ((theta.unsqueeze(1) - theta.unsqueeze(2)).sin() * weights).sum(2)
        theta = theta + DT * (omega + coupling * pull)
    return (theta,)


def kept_bytes(call: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> int:
    """Bytes of memory that autograd keeps between forward and backward."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        held = call(*inputs)
    del held
    return sum(kept.values())


# --- limits ----------------------------------------------------------------------------------


def copy_bandwidth(clock: Clock) -> float:
    """Bytes per second read and written by a copy of 256 MiB."""
    source = torch.ones(1 << 26, device=clock.device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / clock({"copy": lambda: target.copy_(source)})["copy"]


def sincos_rate(clock: Clock) -> float:
    """Pairs (sine, cosine) per second, all threads together."""
    return (cpu_rate if clock.device == "cpu" else cuda_rate)(clock)


def cpu_rate(clock: Clock) -> float:
    """That of kuramoto.cpp's own function, compiled as the kernels are."""
    kernels = fused.KERNELS["cpu"]
    with tempfile.TemporaryDirectory() as folder:
        program = CPU_RATE.format(source=kernels.SOURCE)
        (Path(folder) / "rate.cpp").write_text(program, encoding="utf-8")
        command = [os.environ.get("CXX", "g++"), *kernels.FLAGS, "rate.cpp", "-o", "rate.so"]
        subprocess.run(command, cwd=folder, check=True)
        run = ctypes.CDLL(str(Path(folder) / "rate.so")).sincos_rate
    threads, repeats = torch.get_num_threads(), 100_000
    out = torch.zeros(16)

    def call() -> None:
        run(ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(repeats), threads)

    call()
    lanes = out.count_nonzero().item()
    return 4 * lanes * threads * repeats / clock({"sincos": call})["sincos"]


def cuda_rate(clock: Clock) -> float:
    """That of the hardware's fast functions, which cuda_common.h uses."""
    blocks = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    threads, repeats = 256, 4096
    out = torch.empty(blocks * threads, device=clock.device)
    plan = nvrtc.Launch("sincos_rate", (blocks, 1), threads)

    def call() -> None:
        nvrtc.launch(CUDA_RATE, out.device, plan, (out, repeats))

    return 4 * blocks * threads * repeats / clock({"sincos": call})["sincos"]


# --- the tables ------------------------------------------------------------------------------


def work(kind: str, passes: str, order: bool, shape: list[int], steps: int) -> tuple[int, int]:
    """Least bytes moved and sincos computed: inputs and outputs once, states recomputed once."""
    elements = math.prod(shape)
    means = 2 * (steps + 1) * (elements // shape[-1] if kind == "rows" else elements) * order
    sincos = (steps + order) * elements
    if passes == "forward":
        return 4 * (2 * elements + means), sincos
    return 4 * (2 * elements + means) + 4 * (3 * elements + means), 2 * sincos


def compare(
    clock: Clock, shape: list[int], steps: int, compiled: bool, limits: tuple
) -> list[dict]:
    """One row per operation, pass, order and backend."""
    bandwidth, rate = limits
    table = []
    for kind in ("rows", "scan"):
        inputs = problem(kind, clock.device, *shape)
        for order in (False, True):
            contestants = {"eager": function(kind, "reference", steps, order)}
            if compiled:
                contestants["compiled"] = torch.compile(contestants["eager"], dynamic=False)
            contestants[clock.device] = function(kind, clock.device, steps, order)
            for passes, wrap in (("forward", forward), ("forward+backward", both)):
                seconds = clock({name: wrap(f, inputs) for name, f in contestants.items()})
                moved, sincos = work(kind, passes, order, shape, steps)
                limit = max(moved / bandwidth, sincos / rate)
                for name, taken in seconds.items():
                    row = {"op": kind, "passes": passes, "R": order, "backend": name}
                    row |= {"ms": 1e3 * taken, "MB": moved / 1e6, "Msincos": sincos / 1e6}
                    row["of_limit"] = limit / taken
                    row["x_eager"] = seconds["eager"] / taken
                    if compiled:
                        row["x_compiled"] = seconds["compiled"] / taken
                    table.append(row)
                    print(format_row(row), flush=True)
    return table


def format_row(row: dict) -> str:
    compiled = f"{row['x_compiled']:8.2f}" if "x_compiled" in row else f"{'':8}"
    return (
        f"{row['op']:5} {row['passes']:17} {'R' if row['R'] else '-':2} {row['backend']:9}"
        f"{row['ms']:10.3f} {row['MB']:8.1f} {row['Msincos']:8.1f} {row['of_limit']:8.1%}"
        f" {row['x_eager']:8.2f} {compiled}"
    )


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log(time) against log(size)."""
    x, y = ([math.log(v) for v in values] for values in (sizes, seconds))
    return statistics.linear_regression(x, y).slope


def scaling(clock: Clock, shape: list[int], steps: int) -> list[dict]:
    """Cost of forward and backward against T, N and S."""
    B, T, H, N = shape
    sweeps = {
        "T": [(size, [B, size, H, N], steps) for size in (T // 4, T // 2, T, 2 * T, 4 * T)],
        "N": [(size, [B, T, H, size], steps) for size in (16, 32, 64, 128, 256)],
        "S": [(size, shape, size) for size in (5, 10, 20, 40)],
    }
    table = []
    for kind in ("rows", "scan"):
        for axis, cases in sweeps.items():
            calls = {}
            for size, sizes, S in cases:
                inputs = problem(kind, clock.device, *sizes)
                calls[str(size)] = both(function(kind, clock.device, S, False), inputs)
            seconds = clock(calls)
            slope = exponent([c[0] for c in cases], list(seconds.values()))
            table.append({"op": kind, "axis": axis, "exponent": slope, "seconds": seconds})
            times = "  ".join(f"{size}: {1e3 * t:.2f}" for size, t in seconds.items())
            print(f"{kind:5} {axis}  exponent {slope:5.2f}   ms  {times}", flush=True)
    return table


def against_pairs(clock: Clock, T: int, steps: int) -> dict:
    """kuramoto_scan against the form that holds every pair of tokens (B = 1, C = 64)."""
    inputs = problem("scan", clock.device, 1, T, 2, 32)
    ours = function("scan", clock.device, steps, False)

    def pairs(*tensors: Tensor) -> tuple[Tensor]:
        return pairwise(*tensors, steps)

    difference = (ours(*inputs)[0] - pairs(*inputs)[0]).abs().max().item()
    seconds = clock({"pairs": both(pairs, inputs), "ours": both(ours, inputs)})
    memory = {"pairs": kept_bytes(pairs, inputs), "ours": kept_bytes(ours, inputs)}
    found = {
        "T": T,
        "difference": difference,
        "time_ratio": seconds["pairs"] / seconds["ours"],
        "memory_ratio": memory["pairs"] / memory["ours"],
        "seconds": seconds,
        "kept_bytes": memory,
    }
    print(
        f"every pair of tokens at T={T}: {found['time_ratio']:.0f} times our time, "
        f"{found['memory_ratio']:.0f} times the memory kept for the backward "
        f"(largest difference {difference:.1e})"
    )
    return found


def decoding(clock: Clock, H: int, N: int, steps: int) -> dict:
    """One token of one layer: kuramoto_scan with its state, and SDPA over a cache of T tokens."""
    theta, omega, coupling = (x.detach() for x in problem("scan", clock.device, 1, 1, H, N))
    zeros = theta.new_zeros(steps, 1, H * N)
    state = reference.ScanState(zeros, zeros.clone(), theta.new_zeros(H * N))
    calls: dict[str, Callable[[], object]] = {}
    size: dict[str, int] = {}
    for backend in ("reference", clock.device):
        name = f"scan, {backend}"
        size[name] = sum(x.nbytes for x in state)
        calls[name] = lambda backend=backend: ops.kuramoto_scan(
            theta, omega, coupling, steps=steps, dt=DT, state=state, backend=backend
        )
    query = torch.randn(1, H, 1, 64, device=clock.device)
    for T in (128, 512, 4096):
        name = f"sdpa, T={T}"
        k, v = (torch.randn(1, H, T, 64, device=clock.device) for _ in range(2))
        size[name] = k.nbytes + v.nbytes
        calls[name] = lambda k=k, v=v: F.scaled_dot_product_attention(query, k, v)
    with torch.inference_mode():
        seconds = clock(calls)
    for name, taken in seconds.items():
        print(f"decode {name:15} {1e6 * taken:8.1f} us   state {size[name]:,} bytes")
    return {"seconds": seconds, "state_bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=tuple(fused.KERNELS), default="cpu")
    parser.add_argument("--shape", nargs=4, type=int, default=[8, 512, 12, 32], metavar="BTHN")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-scaling", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.json:
        check_output(args.json, "--json")
    why = fused.KERNELS[args.device].unavailable()
    if why is not None:
        sys.exit(f"--device {args.device}: {why}")

    keep_freed_memory()  # as a run does
    torch.manual_seed(0)
    clock = Clock(args.device, args.rounds)
    limits = copy_bandwidth(clock), sincos_rate(clock)
    print(fused.KERNELS[args.device].describe())
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; B, T, H, N = {args.shape}, "
        f"S = {args.steps}; copy {limits[0] / 1e9:.1f} GB/s, sincos {limits[1] / 1e9:.2f} G/s"
    )
    print(
        f"{'op':5} {'passes':17} {'R':2} {'backend':9}{'ms':>10} {'MB':>8} {'Msincos':>8} "
        f"{'of limit':>8} {'x eager':>8} {'x compiled':>10}"
    )
    result = {"limits": {"copy_bytes_per_s": limits[0], "sincos_per_s": limits[1]}}
    result["table"] = compare(clock, args.shape, args.steps, not args.no_compile, limits)
    if not args.no_scaling:
        result["scaling"] = scaling(clock, args.shape, args.steps)
    if args.device == "cpu":
        result["pairs"] = against_pairs(Clock("cpu", 3), args.shape[1], args.steps)
    result["decoding"] = decoding(clock, args.shape[2], args.shape[3], args.steps)
    if args.json:
        write_output(args.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    guarded(main)
