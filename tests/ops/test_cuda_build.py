"""The CUDA kernels compiled for real GPUs, and the host side that needs none."""

import re
import runpy
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from helpers import ROOT

from phasegpt.core.diskcache import digest
from phasegpt.ops import cuda, nvrtc

SOURCE = cuda.source()
ARCHITECTURES = [80, 90, 100]


# --- compiling -------------------------------------------------------------------------------


class Resources(NamedTuple):
    registers: int
    stack: int
    spilled: int


linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the extra `dev` brings NVRTC on Linux only"
)


def symbol(kernel: str) -> str:
    """Start of the mangled name of a template instance."""
    name, arguments = kernel.removesuffix(">").split("<")
    coded = {"true": "Lb1E", "false": "Lb0E"}
    words = (coded.get(word, f"Li{word}E") for word in arguments.split(", "))
    return f"_Z{len(name)}{name}I{''.join(words)}E"


def resources(kernels: list[str], architecture: int) -> dict[str, Resources]:
    """What ptxas says that each instance takes. A kernel that it does not name is an error."""
    target, verbose = f"sm_{architecture}", "--ptxas-options=-v"
    images = (nvrtc.compile_kernel(SOURCE, name, target, verbose) for name in kernels)
    log = "\n".join(image.log for image in images)
    found = {}
    for kernel in kernels:
        pattern = (
            rf"Function properties for {symbol(kernel)}\S*[\s.ptxas]+(\d+) bytes stack frame, "
            rf"(\d+) bytes spill stores, \d+ bytes spill loads\s+.*Used (\d+) registers"
        )
        matches = re.findall(pattern, log)
        assert len(matches) == 1, (kernel, log[-2000:])
        stack, spilled, registers = map(int, matches[0])
        found[kernel] = Resources(registers, stack, spilled)
    return found


def rows_kernels(N: int, steps: int, order: bool) -> list[str]:
    plans = (cuda.plan_rows_forward, cuda.plan_rows_backward)
    return [plan(1, 1, N, steps, order).kernel for plan in plans]


def scan_kernels(steps: int, order: bool, chunk: int = 0) -> list[str]:
    forward = cuda.plan_scan("scan_forward", 1, 1, steps, order)
    backward = cuda.plan_scan("scan_backward", 1, 1, steps, order, chunk)
    return [forward.kernel, backward.kernel]


@linux
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("order", [False, True])
def test_default_kernels_stay_in_their_registers(architecture, order):
    kernels = [name for steps in (5, 10) for name in rows_kernels(32, steps, order)]
    kernels += [name for steps in (5, 10) for name in scan_kernels(steps, order)]
    limit = 160 if order else 128
    for name, (registers, stack, spilled) in resources(kernels, architecture).items():
        assert stack == spilled == 0, name
        assert registers <= limit, (name, registers)


@linux
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_forgetting_scan_spills_nothing(architecture):
    kernels = [scan_kernels(10, order, cuda.CHUNK)[1] for order in (False, True)]
    for name, found in resources(kernels, architecture).items():
        assert found.spilled == 0, name
        assert found.stack <= 1024, name  # the sums before each group of a chunk


@linux
def test_kernels_of_every_kind_of_size_compile():
    sizes = [(1, 0), (3, 1), (33, 10), (33, 33), (128, 16), (256, 10), (256, 64)]
    kernels = [name for N, steps in sizes for name in rows_kernels(N, steps, steps % 2 == 0)]
    kernels += [name for steps in (0, 33, 64) for name in scan_kernels(steps, True, cuda.CHUNK)]
    kernels += scan_kernels(0, False)
    assert len(resources(kernels, 90)) == len(kernels)


@linux
def test_a_kernel_compiles_to_an_image_that_names_it():
    kernel = cuda.plan_rows_forward(1, 1, 4, 1, False).kernel
    cubin = nvrtc.compile_kernel(SOURCE, kernel, "sm_90")
    assert cubin.code.startswith(b"\x7fELF")
    assert cubin.symbol.startswith(symbol(kernel))
    ptx = nvrtc.compile_kernel(SOURCE, kernel, "compute_90")
    assert b".target sm_90" in ptx.code
    assert ptx.code.endswith(b"\0")  # the driver takes text that ends by a null
    assert ptx.symbol.encode() in ptx.code


@linux
def test_compiling_writes_into_no_bytes_that_python_shares():
    kernel = cuda.plan_rows_forward(1, 1, 4, 1, False).kernel
    assert nvrtc.compile_kernel(SOURCE, kernel, "sm_90").log == ""  # a length of 1: its end
    assert [ord(bytes([i])) for i in range(256)] == list(range(256))


@linux
def test_a_kernel_that_does_not_compile_tells_what_nvrtc_says():
    with pytest.raises(RuntimeError, match=r"nonsense<1> for sm_90:\n.*kernels.cu"):
        nvrtc.compile_kernel("int x = y;", "nonsense<1>", "sm_90")


@linux
def test_an_architecture_newer_than_nvrtc_gets_its_newest_portable_code():
    assert nvrtc.target(90) == "sm_90"
    newest = nvrtc.target(9999)
    assert newest.startswith("compute_")
    assert nvrtc.target(int(newest.removeprefix("compute_"))).startswith("sm_")
    with pytest.raises(RuntimeError, match=r"the device has 3\.5"):
        nvrtc.target(35)


# --- the cache -------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch, tmp_path) -> list[tuple[str, ...]]:
    """What has been compiled, by a compiler that is not there."""
    calls = []

    def compile_kernel(*arguments: str) -> nvrtc.Image:
        calls.append(arguments)
        return nvrtc.Image(b"code %d" % len(calls), "name")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setattr(nvrtc, "compile_kernel", compile_kernel)
    return calls


def test_a_kernel_is_compiled_once_for_all_that_it_depends_on(compiled, monkeypatch):
    parts = ["text", "kernel<1>", "sm_90", "13.0"]
    first = nvrtc.kept_image(*parts)
    assert nvrtc.kept_image(*parts) == first == nvrtc.Image(b"code 1", "name")
    for i in range(len(parts)):
        others = [*parts[:i], "other", *parts[i + 1 :]]
        assert nvrtc.kept_image(*others) != first
        assert compiled[-1] == tuple(others[:3])
    monkeypatch.setattr(nvrtc, "version", lambda: "13.1")
    assert nvrtc.kept_image(*parts) != first
    assert len(compiled) == 2 + len(parts)


def test_a_cache_that_cannot_be_written_is_done_without(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert nvrtc.kept_image("text", "kernel<1>", "sm_90", "13.0").code == b"code 1"


def test_keys_of_the_cache_do_not_run_their_parts_together():
    assert digest("ab", "c") != digest("a", "bc")


# --- launches --------------------------------------------------------------------------------


def test_lanes_hold_every_oscillator_and_less_than_twice_as_many():
    for N in range(1, 257):
        lanes = cuda.lanes(N)
        per_lane = next(V for V in (1, 2, 4, 8) if V * lanes >= N)  # cuda_rows.h's per_lane
        assert lanes in (1, 2, 4, 8, 16, 32)
        assert N <= lanes * per_lane < 2 * N
    assert cuda.lanes(32) == 8


@pytest.mark.parametrize("H", [1, 12, 5000])
@pytest.mark.parametrize("tokens", [1, 63, 16_384, 2**31 - 1])
def test_a_grid_is_within_the_devices_limits(tokens, H):
    for N in (1, 4, 32, 33, 256):
        for make in (cuda.plan_rows_forward, cuda.plan_rows_backward):
            plan = make(tokens, H, N, 10, False)
            rows = plan.grid[1] * plan.threads // cuda.lanes(N)
            assert plan.grid[0] == H
            assert 1 <= plan.grid[1] <= 65_535
            assert plan.threads % cuda.WARP == 0
            # A block more would have no row, unless blocks stride over the tokens.
            assert rows - plan.threads // cuda.lanes(N) < tokens
    assert cuda.plan_rows_forward(16_384, 12, 32, 10, False).grid == (12, 512)


def test_every_channel_has_a_thread():
    for B, C in ((1, 1), (3, 64), (2, 65), (32, 384)):
        plan = cuda.plan_scan("scan_forward", B, C, 10, False)
        assert plan.grid[0] % B == 0
        assert C <= plan.grid[0] // B * plan.threads < C + plan.threads
    assert plan.kernel == "scan_forward<10, false>"


def test_arguments_are_addresses_of_what_the_kernel_expects():
    tensor = torch.ones(3)
    pointers, boxes = nvrtc.arguments((tensor, torch.empty(0), 7, 0.5))
    assert len(pointers) == 4
    assert [box.value for box in boxes] == [tensor.data_ptr(), None, 7, 0.5]
    with pytest.raises(ValueError, match="2147483648"):
        nvrtc.arguments((2**31,))


# --- what is missing -------------------------------------------------------------------------


def unavailable() -> str | None:
    return cuda.unavailable.__wrapped__()


def test_a_pytorch_without_cuda_is_the_first_obstacle(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in unavailable()


def test_no_device_is_an_obstacle(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in unavailable()


@pytest.mark.parametrize("obstacle", ["bindings", "library", "device", "driver"])
def test_what_must_be_installed_is_named(monkeypatch, obstacle):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (3, 5))

    def no_library() -> str:
        raise RuntimeError("no libnvrtc.so\nsearched here\nand there")

    def too_old(architecture: int) -> str:
        raise RuntimeError("the device is too old")

    if obstacle == "bindings":
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
        assert 'pip install "cuda-bindings>=13"' in unavailable()
    elif obstacle == "library":
        monkeypatch.setattr(nvrtc, "version", no_library)
        assert re.fullmatch(r".*no libnvrtc.so.*pip install.*nvidia-cuda-nvrtc", unavailable())
    elif obstacle == "device":
        monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
        monkeypatch.setattr(nvrtc, "target", too_old)
        assert unavailable() == "the device is too old"
    else:
        monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
        monkeypatch.setattr(nvrtc, "target", lambda architecture: "sm_90")
        monkeypatch.setattr(nvrtc, "driver_version", lambda: "12.8")
        assert "the driver, for CUDA 12.8, cannot load: update the driver" in unavailable()
        for newer in ("13.0", "14.1"):
            monkeypatch.setattr(nvrtc, "driver_version", lambda newer=newer: newer)
            assert unavailable() is None


@linux
def test_the_benchmarks_program_is_one_that_the_kernels_launcher_takes(monkeypatch):
    script, launched = runpy.run_path(str(ROOT / "scripts" / "bench_ops.py")), []

    def launch(source: str, device: torch.device, plan: nvrtc.Launch, values: tuple) -> None:
        launched.append(nvrtc.compile_kernel(source, plan.kernel, "sm_90").symbol)
        assert len(nvrtc.arguments(values)[1]) == 2

    class Clock:
        device = "cpu"

        def __call__(self, calls: dict) -> dict[str, float]:
            return {name: call() or 1.0 for name, call in calls.items()}

    monkeypatch.setattr(nvrtc, "launch", launch)
    device = SimpleNamespace(multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    assert script["cuda_rate"](Clock()) == 4 * 2 * 8 * 256 * 4096
    assert ["sincos_rate" in symbol for symbol in launched] == [True]
