"""The compiled CPU kernels: their host functions equal the float64 oracle."""

import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import kernel_checks as checks
import oracle
import processes
import pytest
import sanitized
import torch
from torch import Tensor

from phasegpt.ops import cpu

#: Largest errors after at most 10 steps, relative to max(1, largest true value); a phase is rounded
#: in every step, so more steps may err more in proportion. A parameter's gradient is a sum over all
#: tokens and steps, as large as its terms only.
PHASE, SUM, GRADIENT, PARAMETER = 2e-6, 3e-6, 3e-6, 5e-6
ROWS = (PHASE, SUM, SUM, GRADIENT, PARAMETER, PARAMETER)
SCAN = (PHASE, *[SUM] * 5, GRADIENT, *[PARAMETER] * 3, *[GRADIENT] * 3)


def assert_small(errors: Sequence[float], tolerances: Sequence[float], steps: int) -> None:
    scale = max(1, steps / 10)
    assert all(e <= scale * t for e, t in zip(errors, tolerances, strict=True)), errors


# --- rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("B", "T", "H", "N", "steps", "own", "order"),
    [
        (2, 3, 2, 1, 5, "", True),
        (1, 7, 3, 5, 10, "omega", True),
        (3, 5, 1, 5, 33, "", False),
        (2, 9, 3, 16, 1, "coupling", False),
        (1, 16, 2, 16, 64, "", True),
        (1, 1, 3, 16, 0, "", False),
        (2, 9, 3, 32, 10, "", False),
        (2, 40, 3, 32, 10, "", True),
        (1, 600, 5, 32, 5, "", True),  # more than one part
        (1, 5, 3, 33, 33, "omega coupling", True),
        (1, 5, 3, 33, 10, "", False),
        (1, 9, 2, 64, 64, "", False),
        (1, 3, 2, 128, 0, "coupling", True),
        (1, 3, 2, 128, 5, "omega", False),
        (1, 3, 2, 256, 10, "omega coupling", True),
        (1, 2, 1, 256, 64, "", True),
    ],
)
def test_rows_and_their_gradients_equal_the_oracle(
    kernels: None,
    poisoned: None,
    B: int,
    T: int,
    H: int,
    N: int,
    steps: int,
    own: str,
    order: bool,
) -> None:
    problem = checks.rows_problem(B, T, H, N, steps, order, own)
    assert_small(checks.rows_errors(cpu, problem), ROWS, steps)


def test_a_nan_stays_in_its_row(kernels: None) -> None:
    clean = checks.rows_problem(1, 10, 4, 20, 5, True, "omega coupling")
    theta, *parameters = clean.inputs
    spoilt = theta.clone()
    spoilt[0, 3, 1, 7] = float("nan")
    dirty = clean._replace(inputs=(spoilt, *parameters))
    others = torch.ones(10, 4, dtype=torch.bool)
    others[3, 1] = False
    for one, other in zip(checks.run_rows(cpu, clean), checks.run_rows(cpu, dirty), strict=True):
        assert torch.equal(one[0, others], other[0, others])
        assert other[0, 3, 1].isnan().all()


# --- scan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
@pytest.mark.parametrize("forgets", [False, True], ids=["uniform", "forgetting"])
@pytest.mark.parametrize(
    ("B", "T", "C", "steps", "order"),
    [
        (2, 1, 1, 5, True),
        (2, 1, 100, 10, False),
        (1, 63, 64, 33, True),
        (3, 63, 5, 10, False),
        (2, 100, 100, 10, True),
        (1, 100, 64, 1, False),
        (2, 257, 5, 5, True),
        (1, 257, 100, 10, False),
        (2, 16, 200, 0, True),
        (1, 17, 5, 0, False),
        (1, 33, 65, 64, True),
    ],
)
def test_scan_and_its_gradients_equal_the_oracle(
    kernels: None,
    poisoned: None,
    B: int,
    T: int,
    C: int,
    steps: int,
    order: bool,
    forgets: bool,
    carried: bool,
) -> None:
    problem = checks.scan_problem(B, T, C, steps, order, forgets, carried)
    before = [x.clone() for x in problem.inputs]
    assert_small(checks.scan_errors(cpu, problem), SCAN, steps)
    assert checks.same(problem.inputs, before)


@pytest.mark.parametrize("forgets", [False, True], ids=["uniform", "forgetting"])
@pytest.mark.parametrize("C", [5, 64, 300])
def test_tokens_one_by_one_equal_one_pass_bit_for_bit(kernels: None, C: int, forgets: bool) -> None:
    checks.assert_decoding_is_one_pass(cpu, checks.scan_problem(2, 70, C, 5, True, forgets))


def test_the_first_tokens_of_a_prefix_have_as_good_gradients(
    kernels: None,
) -> None:
    # Their sums are near 1 while the final ones are near T: nothing may be taken off from those.
    inputs, cotangents, options = checks.scan_problem(1, 2000, 4, 5, carried=False)
    inputs = (0.05 * torch.randn(1, 2000, 4), *inputs[1:])
    mine = checks.run_scan(cpu, checks.Problem(inputs, cotangents, options))[6]
    truth = oracle.gradients(oracle.scan, inputs, cotangents, *options)[0]
    assert oracle.error(mine[:, :8], truth[:, :8]) <= GRADIENT


def test_a_nan_stays_in_its_channel_from_its_token_on(kernels: None) -> None:
    (theta, *rest), _, options = checks.scan_problem(2, 40, 70, 5, forget=True, carried=False)
    spoilt = theta.clone()
    spoilt[0, 20, 3] = float("nan")
    clean, dirty = (cpu.scan_forward(x, *rest, *options)[0] for x in (theta, spoilt))
    assert dirty[0, 20:, 3].isnan().all()
    dirty[0, 20:, 3] = clean[0, 20:, 3]
    assert torch.equal(dirty, clean)


# --- both ------------------------------------------------------------------------------------


def test_results_are_the_same_bits_for_any_number_of_threads(
    kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = checks.rows_problem(2, 700, 3, 16, 4, True)
    scans = [checks.scan_problem(3, 40, 300, 4, True, forget) for forget in (False, True)]

    def everything() -> list[Tensor]:
        return [
            *checks.run_rows(cpu, rows),
            *(x for scan in scans for x in checks.run_scan(cpu, scan)),
        ]

    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(cpu, "_threads", lambda work, threads=threads: threads)
        results.append(everything())
    assert checks.same(results[1], results[0])
    assert checks.same(results[2], results[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_library_runs_on_the_threads_of_torch(kernels: None, tmp_path: Path) -> None:
    """In a process of its own: other tests import libraries that bring another OpenMP."""
    script = tmp_path / "maps.py"
    script.write_text(
        "import torch\nfrom phasegpt import ops\n"
        "theta = torch.zeros(1, 4, 1, 8)\n"
        "ops.kuramoto_rows(theta, torch.zeros(1, 8), torch.ones(1), steps=2, dt=0.1)\n"
        "print(open('/proc/self/maps').read())\n"
    )
    done = processes.run(processes.python(script))
    assert done.returncode == 0, done.stderr
    files = {Path(line.split()[-1]).name for line in done.stdout.splitlines() if line}
    assert len({file for file in files if "gomp" in file}) == 1
    assert cpu.LIBRARY in files


def test_the_program_for_compute_sanitizer_runs(kernels: None) -> None:
    assert sanitized.exercise(cpu, "cpu") > 0


def sines_are_good_to_float32(largest: float) -> None:
    theta = ((2 * torch.rand(1, 40_000, 1, 1) - 1) * largest).float()
    _, cosine, sine = cpu.rows_forward(theta, torch.zeros(1, 1), torch.zeros(1, 2), 0, 0.1, True)
    assert (cosine.flatten() - theta.flatten().double().cos()).abs().max() < 2e-7
    assert (sine.flatten() - theta.flatten().double().sin()).abs().max() < 2e-7
    inputs = (theta[:, :999].reshape(1, 37, 1, 27), torch.randn(1, 27), torch.ones(1, 2))
    end, *_ = cpu.rows_forward(*inputs, 10, 0.1, False)
    truth, *_ = oracle.rows(*(x.double() for x in inputs), 10, 0.1, False)
    assert oracle.error(end, truth) < 1e-6  # ten times half a unit in the last place


@pytest.mark.parametrize("largest", [10.0, 1e3, 1e4])
def test_large_phases_are_integrated_to_their_last_place(kernels: None, largest: float) -> None:
    sines_are_good_to_float32(largest)


@pytest.fixture
def without_fused_multiply_add(
    kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The kernels as an old processor gets them."""
    if platform.machine() != "x86_64":
        pytest.skip("needs an x86-64 processor")
    flags = tuple("-march=x86-64" if f == "-march=native" else f for f in cpu.FLAGS)
    monkeypatch.setattr(cpu, "FLAGS", flags)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu._attempt.cache_clear()
    yield
    cpu._attempt.cache_clear()


def test_an_old_processor_computes_as_well(without_fused_multiply_add: None) -> None:
    for largest in (10.0, 1e3, 1e4):
        sines_are_good_to_float32(largest)
    test_rows_and_their_gradients_equal_the_oracle(None, None, 2, 9, 3, 33, 10, "", True)
    test_scan_and_its_gradients_equal_the_oracle(None, None, 2, 20, 37, 5, True, True, True)
