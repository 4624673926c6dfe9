"""The CUDA kernels on CPU tensors: the host functions of ops/cuda.py over an emulator.

What a C++ compiler gets is the very text that NVRTC gets; what launches it are the very plans and
arguments. It shows neither races nor speed, and of the hardware's sine a model.
"""

import contextlib
import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from phasegpt.ops import cuda, nvrtc

HERE = Path(__file__).parent
COMPILER = shlex.split(os.environ.get("CXX") or shutil.which("g++") or "c++")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC")


def build(folder: Path, kernels: Iterable[str]) -> "Emulated":
    """Compile these template instances into `folder`; RuntimeError tells what the compiler said."""
    lines = "".join(f"KERNEL({name})\n" for name in sorted(set(kernels)))
    (folder / "instances.inc").write_text(lines, encoding="utf-8")
    (folder / "kernels.inc").write_text(cuda.source(), encoding="utf-8")
    library = folder / "emulator.so"
    includes = (f"-I{folder}", f"-I{HERE}")
    command = [*COMPILER, *FLAGS, *includes, str(HERE / "emulate.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[:4000])
    loaded = ctypes.CDLL(str(library))
    loaded.emulate.restype = ctypes.c_bool
    return Emulated(loaded)


class Emulated(cuda.Kernels):
    """The four functions on CPU tensors."""

    UNSUMS = cuda.UNSUMS

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(self._emulate)
        self._library = library

    @contextlib.contextmanager
    def coarse_angles(self) -> Iterator[None]:
        """Sines and cosines have the error of a GPU's: of the angle's rounding and of its table."""
        switch = ctypes.c_bool.in_dll(self._library, "coarse_angles")
        switch.value = True
        yield
        switch.value = False

    def _emulate(
        self, device: torch.device, plan: nvrtc.Launch, values: Sequence[Tensor | int | float]
    ) -> None:
        assert device.type == "cpu"
        pointers, _boxes = nvrtc.arguments(values)
        if not self._library.emulate(plan.kernel.encode(), *plan.grid, plan.threads, pointers):
            raise RuntimeError(f"{plan.kernel} is not among the instances that were built")
