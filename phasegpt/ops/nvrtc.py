"""CUDA C++ text to running kernels without nvcc or a toolkit: NVRTC and the driver's interface.

Both are reached through cuda-bindings, imported on first use; PyTorch's CUDA wheels for Linux
bring it and NVRTC along. A kernel is one instance of a template, compiled for one architecture.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phasegpt.core.diskcache import OWNED, build_once, cache_dir, check_owner, digest
from phasegpt.core.errors import ConfigError

#: No option may assume finite numbers: a NaN has to come out as one.
OPTIONS = ("-std=c++17",)
INSTALL = 'pip install "cuda-bindings>=13" nvidia-cuda-nvrtc'
IMAGE, SYMBOL = "image", "symbol"  # what a folder of the cache holds


class Image(NamedTuple):
    """A compiled kernel: cubin, or PTX for an architecture newer than NVRTC, and its name there."""

    code: bytes
    symbol: str
    log: str = ""


class Launch(NamedTuple):
    """A template instance and the shape in which to run it."""

    kernel: str
    grid: tuple[int, int]
    threads: int


def missing() -> str | None:
    """What must be installed before anything can be compiled, in one line; None if nothing."""
    try:
        version()
    except ImportError as error:
        return f"cuda-bindings is not installed ({error}): {INSTALL}"
    except RuntimeError as error:  # cuda-bindings found no library, or one that fails
        what = str(error).partition("\n")[0]
        return f"the NVRTC library cannot be used ({what}): {INSTALL}"
    return None


# --- compiling -------------------------------------------------------------------------------


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call into NVRTC or the driver returned, without its status."""
    status, *values = result
    if status != 0:
        raise RuntimeError(f"{type(status).__name__}.{status.name}")
    return values[0] if len(values) == 1 else values


def version() -> str:
    """NVRTC's, such as 13.0. Raises ImportError without cuda-bindings, RuntimeError without it."""
    from cuda.bindings import nvrtc

    return "{}.{}".format(*_checked(nvrtc.nvrtcVersion()))


def target(architecture: int) -> str:
    """NVRTC's name of what to compile for a device of compute capability 9.0 = 90.

    A device newer than NVRTC gets code that its driver can translate (compute_XX). Raises
    RuntimeError for one older than all that NVRTC knows.
    """
    from cuda.bindings import nvrtc

    known = _checked(nvrtc.nvrtcGetSupportedArchs())
    if architecture in known:
        return f"sm_{architecture}"
    older = [arch for arch in known if arch < architecture]
    if not older:
        raise RuntimeError(
            f"NVRTC {version()} compiles for compute capability {min(known) / 10} and newer, and "
            f"the device has {architecture / 10}"
        )
    return f"compute_{max(older)}"


def compile_kernel(source: str, kernel: str, target: str, *options: str) -> Image:
    """Compile the template instance `kernel` of `source`. Raises RuntimeError with NVRTC's log."""
    from cuda.bindings import nvrtc

    def text(size: Any, read: Any) -> bytes:
        buffer = bytearray(_checked(size(program)))  # Python shares bytes of length 1: never those
        _checked(read(program, buffer))
        return bytes(buffer)

    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
    try:
        _checked(nvrtc.nvrtcAddNameExpression(program, kernel.encode()))
        words = [word.encode() for word in (f"-arch={target}", *OPTIONS, *options)]
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(words), words)
        log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        message = log.rstrip(b"\0").decode(errors="replace")
        if status != 0:
            raise RuntimeError(f"NVRTC cannot compile {kernel} for {target}:\n{message}")
        symbol = _checked(nvrtc.nvrtcGetLoweredName(program, kernel.encode())).decode()
        if target.startswith("sm_"):
            return Image(text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN), symbol, message)
        return Image(text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX), symbol, message)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def kept_image(source: str, kernel: str, target: str, driver: str) -> Image:
    """compile_kernel, once for all processes: kept on disk by all that it depends on."""
    key = digest(OWNED, source, kernel, target, *OPTIONS, version(), driver)

    def build(scratch: Path) -> None:
        image = compile_kernel(source, kernel, target)
        (scratch / IMAGE).write_bytes(image.code)
        (scratch / SYMBOL).write_text(image.symbol, encoding="utf-8")

    try:
        folder = cache_dir() / "kernels" / key
        build_once(folder, build)
        check_owner(folder / IMAGE)
        check_owner(folder / SYMBOL)
        return Image((folder / IMAGE).read_bytes(), (folder / SYMBOL).read_text(encoding="utf-8"))
    # Nothing can be kept there, or what is kept is not ours to run or not whole; compiling takes
    # part of a second.
    except (OSError, ConfigError, UnicodeDecodeError):
        return compile_kernel(source, kernel, target)


# --- running ---------------------------------------------------------------------------------


def architecture(device: int) -> int:
    """Compute capability of the device, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def driver_version() -> str:
    """The highest CUDA version that the installed driver supports, such as 13.0."""
    from cuda.bindings import driver

    number = _checked(driver.cuDriverGetVersion())
    return f"{number // 1000}.{number % 1000 // 10}"


def too_new() -> str | None:
    """Why the driver cannot load what NVRTC compiles, in one line; None if it can.

    A driver loads the code of every CUDA version of its own number before the point, and of older
    ones. Raises RuntimeError without a driver.
    """
    ours, theirs = version(), driver_version()
    if int(ours.partition(".")[0]) <= int(theirs.partition(".")[0]):
        return None
    return (
        f"NVRTC {ours} compiles what the driver, for CUDA {theirs}, cannot load: update the "
        f"driver, or install cuda-bindings and NVRTC for CUDA {theirs.partition('.')[0]}"
    )


@functools.cache
def _context(device: int) -> Any:
    """The device's primary context: PyTorch's."""
    from cuda.bindings import driver

    return _checked(driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(device))))


@functools.cache
def _loaded(source: str, kernel: str, device: int) -> Any:
    """The kernel's handle in the current context, which is that of `device`."""
    from cuda.bindings import driver

    image = kept_image(source, kernel, target(architecture(device)), driver_version())
    module = _checked(driver.cuModuleLoadData(image.code))
    return _checked(driver.cuModuleGetFunction(module, image.symbol.encode()))


def arguments(values: Sequence[Tensor | int | float]) -> tuple[ctypes.Array[Any], list[Any]]:
    """What a kernel launch takes: the addresses of its arguments, and the arguments to keep alive.

    A tensor is passed by its address, null if it has no elements; numbers have 32 bits.
    """
    boxes: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            boxes.append(ctypes.c_void_p(value.data_ptr() if value.numel() else None))
        elif isinstance(value, float):
            boxes.append(ctypes.c_float(value))
        elif -(2**31) <= value < 2**31:
            boxes.append(ctypes.c_int(value))
        else:
            raise ValueError(f"a size of {value} is not below the kernels' limit, 2^31")
    return (ctypes.c_void_p * len(boxes))(*map(ctypes.addressof, boxes)), boxes


def launch(
    source: str, device: torch.device, plan: Launch, values: Sequence[Tensor | int | float]
) -> None:
    """Run a kernel of the text `source` on the device's current stream; compile it at first.

    Waits for nothing and allocates nothing after that first time, so it can be captured in a CUDA
    graph once it has run. Raises RuntimeError with the driver's or NVRTC's words.
    """
    from cuda.bindings import driver

    pointers, boxes = arguments(values)
    with torch.cuda.device(device):
        index = torch.cuda.current_device()
        if not int(_checked(driver.cuCtxGetCurrent())):  # a thread that has not used CUDA yet
            _checked(driver.cuCtxSetCurrent(_context(index)))
        function = _loaded(source, plan.kernel, index)
        stream = torch.cuda.current_stream().cuda_stream
        shape = (*plan.grid, 1, plan.threads, 1, 1)
        words = ctypes.addressof(pointers)
        started = driver.cuLaunchKernel(function, *shape, 0, stream, words, 0)
    del boxes  # the launch has copied them
    try:
        _checked(started)
    except RuntimeError as error:
        raise RuntimeError(f"{plan} does not start: {error}") from None
