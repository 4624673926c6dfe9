"""The CUDA kernels on a real device; skipped by name where there is none."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import kernel_checks as checks
import pytest
import torch
from helpers import ROOT
from torch import Tensor

from phasegpt.ops import cuda

pytestmark = pytest.mark.gpu

#: Largest error, relative to max(1, largest true value): in each step a sine has some 5e-7.
TOLERANCE = 1e-5

ROWS = [  # N, S, T
    *((1, 5, 63), (5, 10, 100), (16, 33, 257), (32, 0, 100), (32, 1, 1), (32, 5, 63)),
    *((32, 10, 257), (33, 10, 100), (64, 5, 63), (128, 10, 100), (256, 10, 63), (256, 33, 1)),
]
SCANS = [(0, 63), (1, 257), (5, 100), (10, 1), (10, 63), (10, 257), (33, 100)]  # S, T
OWN = ["", "omega", "coupling", "omega coupling"]
BOTH = [False, True]


@pytest.fixture(autouse=True)
def _kernels_are_here(poisoned: None) -> None:
    assert cuda.unavailable() is None


@pytest.fixture(params=["rows", "scan", "forgetting scan"])
def case(request: pytest.FixtureRequest) -> tuple[Callable[..., list[Tensor]], checks.Problem]:
    """One of the functions with its gradients, and a problem for it on the device."""
    if request.param == "rows":
        return checks.run_rows, checks.rows_problem(4, 100, 3, 32, 10, True).to("cuda")
    forget = request.param == "forgetting scan"
    return checks.run_scan, checks.scan_problem(4, 100, 96, 10, True, forget).to("cuda")


@pytest.mark.parametrize("order", BOTH)
@pytest.mark.parametrize(("N", "steps", "T"), ROWS)
def test_rows_and_their_gradients_equal_the_oracle(N, steps, T, order):
    own = OWN[(N + steps) % len(OWN)] if T < 200 else ""
    errors = checks.rows_errors(cuda, checks.rows_problem(2, T, 3, N, steps, order, own), "cuda")
    assert max(errors) <= TOLERANCE, errors


@pytest.mark.parametrize("forget", BOTH)
@pytest.mark.parametrize("order", BOTH)
@pytest.mark.parametrize(("steps", "T"), SCANS)
def test_the_scan_and_its_gradients_equal_the_oracle(steps, T, order, forget):
    carried = T % 2 == 1
    errors = checks.scan_errors(
        cuda, checks.scan_problem(2, T, 97, steps, order, forget, carried), "cuda"
    )
    assert max(errors) <= TOLERANCE, errors


@pytest.mark.parametrize("forget", BOTH)
@pytest.mark.parametrize("order", BOTH)
@pytest.mark.parametrize("steps", [1, 5, 10, 33])
def test_decoding_token_by_token_gives_the_bits_of_one_pass(steps, order, forget):
    problem = checks.scan_problem(2, 50, 97, steps, order, forget)
    checks.assert_decoding_is_one_pass(cuda, problem.to("cuda"))


def test_large_phases_lose_no_more_than_their_own_rounding():
    problem = checks.rows_problem(1, 64, 2, 32, 1, True)
    theta = 2e4 * torch.rand(1, 64, 2, 32) - 1e4
    problem = problem._replace(inputs=(theta, *problem.inputs[1:]))
    mean_errors = checks.rows_errors(cuda, problem, "cuda")[1:3]
    assert max(mean_errors) <= 4e-3  # four units in the last place of 1e4


def test_two_runs_agree_bit_for_bit(case):
    run, problem = case
    assert checks.same(run(cuda, problem), run(cuda, problem))


def test_a_nan_spoils_its_row_alone():
    clean = checks.rows_problem(1, 9, 3, 32, 10, True, "omega coupling").to("cuda")
    theta, *parameters = clean.inputs
    theta = theta.clone()
    theta[0, 4, 1, 5] = torch.nan
    others = torch.ones(1, 9, 3, dtype=torch.bool)
    others[0, 4, 1] = False
    dirty = clean._replace(inputs=(theta, *parameters))
    for one, other in zip(checks.run_rows(cuda, clean), checks.run_rows(cuda, dirty), strict=True):
        assert torch.equal(one[others], other[others])
        assert other[~others].isnan().all()


def test_a_captured_graph_replays_on_new_inputs(case):
    run, problem = case
    problem = problem._replace(inputs=tuple(x.clone() for x in problem.inputs))
    run(cuda, problem)  # compiles and loads
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(cuda, problem)
    problem.inputs[0].mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    assert checks.same(captured, run(cuda, problem))


def test_kernels_run_in_the_order_of_the_current_stream(case):
    run, problem = case
    expected = run(cuda, problem)
    late = problem._replace(inputs=tuple(torch.zeros_like(x) for x in problem.inputs))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # some 30 ms in which another stream would see the zeros
        for empty, full in zip(late.inputs, problem.inputs, strict=True):
            empty.copy_(full)
        found = run(cuda, late)
    stream.synchronize()
    assert checks.same(found, expected)


def test_a_thread_that_has_not_used_cuda_can_call_the_kernels(case):
    run, problem = case
    expected, found = run(cuda, problem), []
    thread = threading.Thread(target=lambda: found.append(run(cuda, problem)))
    thread.start()
    thread.join()
    assert checks.same(found[0], expected)


def test_the_tensors_device_runs_the_kernels_not_the_current_one(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    run, problem = case
    with torch.cuda.device(0):
        found = run(cuda, problem.to("cuda:1"))
    assert all(x.device.index == 1 for x in found)
    assert checks.same([x.cpu() for x in found], [x.cpu() for x in run(cuda, problem)])


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer and there is none on PATH")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable]
    # PyTorch's pool of memory would hide what is out of bounds.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("sanitized.py"))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_every_template_argument_that_a_plan_can_hold_is_loadable():
    for order, forget in itertools.product(BOTH, BOTH):
        checks.run_rows(cuda, checks.rows_problem(1, 2, 1, 3, 64, order).to("cuda"))
        checks.run_scan(cuda, checks.scan_problem(1, 3, 2, 64, order, forget).to("cuda"))
    torch.cuda.synchronize()
