"""The kernels on a CPU: kuramoto.cpp, compiled on first use for this very processor.

The library is kept in the cache folder, named after all that it depends on: the source, the
compiler and its options, the processor. Everything here takes and returns contiguous float32
tensors; sizes are in kuramoto.cpp's limits and never zero (phasegpt.ops.fused sees to it).

Shapes: B batch, T time, H heads, N oscillators, C channels, S integration steps, P running sums
(S, or S + 1 where the mean fields are wanted). A tensor of shape [0] stands for an absent one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from phasegpt.core.diskcache import build_once, cache_dir, digest

SOURCE = Path(__file__).with_name("kuramoto.cpp")
HEADERS = sorted(SOURCE.parent.glob("cpu_*.h"))
LIBRARY, SECONDS = "kuramoto.so", "build_seconds"  # what a folder of the cache holds

# No option may assume finite numbers: a NaN has to come out as one.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)

#: Which state scan_backward takes where weights are uniform: here, always the initial one.
UNSUMS = False

#: Steps of one oscillator that are worth a thread, some 30 microseconds.
WORK_PER_THREAD = 1 << 17

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {  # pointers, sizes, then steps and their like; dt and the threads end all
    "rows_forward": (*[_POINTER] * 6, *[_LONG] * 3, *[_INT] * 2),
    "rows_backward": (*[_POINTER] * 9, *[_LONG] * 3, *[_INT] * 2),
    "scan_forward": (*[_POINTER] * 13, *[_LONG] * 3, *[_INT] * 2),
    "scan_backward": (*[_POINTER] * 20, *[_LONG] * 3, *[_INT] * 2),
}


# --- building and loading --------------------------------------------------------------------


class _Unavailable(Exception):
    """The library cannot be had; the message is one line for the user."""


class _Compiler(NamedTuple):
    command: tuple[str, ...]
    version: str  # the first line that it prints about itself


class _Kernels(NamedTuple):
    library: ctypes.CDLL
    about: str


def _compiler() -> _Compiler:
    """$CXX, which may hold options too, else g++ or c++."""
    configured = shlex.split(os.environ.get("CXX", ""))
    found = configured or [name for name in ("g++", "c++") if shutil.which(name)][:1]
    if not found:
        raise _Unavailable(
            "there is no C++ compiler on PATH: install g++ (Debian, Ubuntu: apt install g++; "
            "conda: conda install gxx), set CXX, or use backend=reference"
        )
    try:
        done = subprocess.run([*found, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        source = "CXX" if configured else "the C++ compiler"
        raise _Unavailable(f"{source} ({shlex.join(found)}) does not run: {error}") from None
    return _Compiler(tuple(found), done.stdout.partition("\n")[0])


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.startswith(("flags", "Features"))]
    return f"{platform.machine()} {features[0] if features else platform.processor()}"


def _compile(compiler: _Compiler, folder: Path) -> None:
    start = time.perf_counter()
    command = [*compiler.command, *FLAGS, str(SOURCE), "-o", str(folder / LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise _Unavailable(f"{compiler.version} cannot compile {SOURCE.name}: {first}")
    seconds = time.perf_counter() - start
    (folder / SECONDS).write_text(f"{seconds:.1f}", encoding="utf-8")


def _open(compiler: _Compiler, folder: Path, place: str) -> _Kernels:
    library = ctypes.CDLL(str(folder / LIBRARY))
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = (*arguments, ctypes.c_float, _INT)
        function.restype = None
    seconds = (folder / SECONDS).read_text(encoding="utf-8")
    about = f"{compiler.version}, {' '.join(FLAGS)}; built in {seconds} s; {place}"
    return _Kernels(library, about)


@functools.cache
def _attempt() -> _Kernels | str:
    """The library, or why there is none."""
    try:
        compiler = _compiler()
        texts = [path.read_text(encoding="utf-8") for path in (SOURCE, *HEADERS)]
        parts = (*texts, *FLAGS, *compiler.command, compiler.version)
        folder = cache_dir() / "kernels" / digest(*parts, _processor())
        try:
            build_once(folder, functools.partial(_compile, compiler))
            return _open(compiler, folder, str(folder))
        except OSError as error:  # nothing can be written there, or not executed from there
            with tempfile.TemporaryDirectory(prefix="phasegpt-") as scratch:
                _compile(compiler, Path(scratch))
                return _open(compiler, Path(scratch), f"not cached: {error}")
    except (_Unavailable, OSError) as error:
        return str(error)


_LOCK = threading.Lock()


def _kernels() -> _Kernels | str:
    with _LOCK:  # threads that come while one builds wait for it
        return _attempt()


def _call(name: str, *arguments: object) -> None:
    kernels = _kernels()
    if isinstance(kernels, str):
        raise RuntimeError(f"the CPU kernels are not available: {kernels}")
    getattr(kernels.library, name)(*arguments)


def unavailable() -> str | None:
    """Why the CPU kernels cannot run here, in one line, or None. The first call builds them."""
    kernels = _kernels()
    return kernels if isinstance(kernels, str) else None


def describe() -> str:
    """One line: compiler, options, build time, place in the cache."""
    kernels = _kernels()
    return kernels if isinstance(kernels, str) else kernels.about


# --- calling ---------------------------------------------------------------------------------


def _at(*tensors: Tensor) -> list[int | None]:
    """Addresses; None for a tensor without elements."""
    return [x.data_ptr() or None for x in tensors]


def _threads(work: int) -> int:
    """Threads for so many steps of one oscillator; one is no parallel region at all."""
    return max(1, min(torch.get_num_threads(), work // WORK_PER_THREAD))


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def rows_forward(
    theta: Tensor, omega: Tensor, coupling: Tensor, steps: int, dt: float, order: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See fused.rows."""
    N = theta.shape[-1]
    shape = (*theta.shape[:-1], steps + 1) if order else (0,)
    outputs = (torch.empty_like(theta), _empty(*shape), _empty(*shape))
    counts = (theta.numel() // N, omega.numel() // N, coupling.numel() // 2)
    threads = _threads(theta.numel() * (steps + 1))
    pointers = _at(theta, omega, coupling, *outputs)
    _call("rows_forward", *pointers, *counts, N, steps, dt, threads)
    return outputs


def rows_backward(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    grad_theta: Tensor,
    grad_cos: Tensor,
    grad_sin: Tensor,
    steps: int,
    dt: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See fused.rows_adjoint; grad_cos, grad_sin may be [0]."""
    N = theta.shape[-1]
    gradients = (torch.empty_like(theta), torch.empty_like(omega), torch.empty_like(coupling))
    counts = (theta.numel() // N, omega.numel() // N, coupling.numel() // 2)
    threads = _threads(2 * theta.numel() * (steps + 1))
    pointers = _at(theta, omega, coupling, grad_theta, grad_cos, grad_sin, *gradients)
    _call("rows_backward", *pointers, *counts, N, steps, dt, threads)
    return gradients


def scan_forward(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    forget: Tensor,
    cos_sums: Tensor,
    sin_sums: Tensor,
    weight: Tensor,
    steps: int,
    dt: float,
    order: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See fused.scan. Token-by-token calls with the carried state give the same bits as one."""
    B, T, C = theta.shape
    shape = (steps + 1, B, T, C) if order else (0,)
    state = (torch.empty_like(cos_sums), torch.empty_like(sin_sums), torch.empty_like(weight))
    outputs = (torch.empty_like(theta), *state, _empty(*shape), _empty(*shape))
    inputs = (theta, omega, coupling, forget, cos_sums, sin_sums, weight)
    threads = _threads(theta.numel() * (steps + 1))
    sizes = (B, T, C, steps, cos_sums.shape[0])
    _call("scan_forward", *_at(*inputs, *outputs), *sizes, dt, threads)
    return outputs


def scan_backward(
    theta: Tensor,
    omega: Tensor,
    coupling: Tensor,
    forget: Tensor,
    cos_sums: Tensor,
    sin_sums: Tensor,
    weight: Tensor,
    grad_theta: Tensor,
    grad_cos_sums: Tensor,
    grad_sin_sums: Tensor,
    grad_weight: Tensor,
    grad_cos: Tensor,
    grad_sin: Tensor,
    steps: int,
    dt: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See fused.scan_adjoint; the state is the initial one, grad_cos and grad_sin may be [0]."""
    B, T, C = theta.shape
    inputs = (theta, omega, coupling, forget, cos_sums, sin_sums, weight)
    cotangents = (grad_theta, grad_cos_sums, grad_sin_sums, grad_weight, grad_cos, grad_sin)
    g_theta, g_omega, g_coupling, g_forget, g_cos_sums, g_sin_sums = map(
        torch.empty_like, inputs[:6]
    )
    g_weight = torch.empty_like(forget)
    gradients = (g_theta, g_omega, g_coupling, g_forget, g_cos_sums, g_sin_sums, g_weight)
    threads = _threads(3 * theta.numel() * (steps + 1))
    sizes = (B, T, C, steps, cos_sums.shape[0])
    _call("scan_backward", *_at(*inputs, *cotangents, *gradients), *sizes, dt, threads)
    return gradients
