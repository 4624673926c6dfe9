"""The compiled CPU kernels: their host functions equal the float64 oracle."""

import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import oracle
import pytest
import torch
from torch import Tensor

from phasegpt.ops import cpu

#: Largest error after at most 10 steps, relative to max(1, largest true value); a phase is rounded
#: in every step, so more steps may err more in proportion. The error of a sum of cosines or a
#: mean field is that of the phases, which are larger than 1. A parameter's gradient is a sum over
#: all tokens and steps, as large as its terms only.
TOLERANCE = {"value": 2e-6, "gradient": 3e-6, "parameter": 5e-6}


def close(found: Sequence[Tensor], truth: Sequence[Tensor], steps: int, *tolerances: float) -> None:
    errors = [oracle.error(x, y) / max(1, steps / 10) for x, y in zip(found, truth, strict=True)]
    assert all(e <= t for e, t in zip(errors, tolerances, strict=True)), errors


def values_close(found: Sequence[Tensor], truth: Sequence[Tensor], steps: int) -> None:
    value = TOLERANCE["value"]
    mean = value * truth[0].abs().max().clamp_min(1).item()
    close(found, truth, steps, value, *[mean] * (len(found) - 1))


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def time_step(steps: int) -> float:
    """One unit of time in all: longer ones are chaotic, and no arithmetic keeps its digits."""
    return 1 / max(steps, 10)


# --- rows ------------------------------------------------------------------------------------


def rows_problem(B: int, T: int, H: int, N: int, own: str = "") -> tuple[Tensor, ...]:
    """theta, omega, coupling; `own` names those that every row has for itself."""
    omega = torch.randn((B, T, H, N) if "omega" in own else (H, N))
    coupling = torch.randn((B, T, H, 2) if "coupling" in own else (H, 2))
    return 2 * torch.randn(B, T, H, N), omega, coupling


def rows_gradients(
    inputs: Sequence[Tensor], cotangents: Sequence[Tensor], steps: int
) -> tuple[Tensor, ...]:
    return cpu.rows_backward(*inputs, *cotangents, steps, time_step(steps))


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
    inputs = rows_problem(B, T, H, N, own)
    options = steps, time_step(steps), order
    found = cpu.rows_forward(*inputs, *options)
    values_close(found, oracle.rows(*(x.double() for x in inputs), *options), steps)
    cotangents = [torch.randn(x.shape) for x in found]
    truth = oracle.gradients(oracle.rows, inputs, cotangents, *options)
    parameter = TOLERANCE["parameter"]
    gradients = rows_gradients(inputs, cotangents, steps)
    close(gradients, truth, steps, TOLERANCE["gradient"], parameter, parameter)


def test_a_nan_stays_in_its_row(kernels: None) -> None:
    inputs = rows_problem(1, 10, 4, 20, "omega coupling")
    cotangents = [torch.randn(1, 10, 4, n) for n in (20, 6, 6)]
    spoilt = [inputs[0].clone(), *inputs[1:]]
    spoilt[0][0, 3, 1, 7] = float("nan")
    results = []
    for problem in (inputs, spoilt):
        forward = cpu.rows_forward(*problem, 5, 0.1, True)
        results.append((*forward, *rows_gradients(problem, cotangents, 5)))
    others = torch.ones(10, 4, dtype=torch.bool)
    others[3, 1] = False
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean[0, others], dirty[0, others])
        assert dirty[0, 3, 1].isnan().all()


# --- scan ------------------------------------------------------------------------------------


def scan_problem(
    B: int, T: int, C: int, sums: int, *, forgets: bool, carried: bool, spread: float = 2.0
) -> tuple[Tensor, ...]:
    """theta, omega, coupling, forget, cos_sums, sin_sums, weight; `carried`: tokens went before."""
    forget = 0.5 + 0.5 * torch.rand(C) if forgets else torch.zeros(0)
    weight = torch.full((C,), 20.0) if not forgets else 1 + 4 * torch.rand(C)
    weight = weight if carried else torch.zeros(C)
    psi, R = spread * torch.randn(sums, B, C), torch.rand(sums, B, C)
    state = weight * R * psi.cos(), weight * R * psi.sin(), weight
    return spread * torch.randn(B, T, C), torch.randn(C), torch.randn(C) + 1, forget, *state


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
    inputs = scan_problem(B, T, C, steps + order, forgets=forgets, carried=carried)
    options = steps, time_step(steps), order
    before = [x.clone() for x in inputs]
    found = cpu.scan_forward(*inputs, *options)
    assert same(inputs, before)
    values_close(found, oracle.scan(*(x.double() for x in inputs), *options), steps)
    cotangents = [torch.randn(x.shape) for x in found]
    truth = oracle.gradients(oracle.scan, inputs, cotangents, *options)
    truth[6] = truth[6] if forgets else truth[6][:0]
    mine, parameter = TOLERANCE["gradient"], TOLERANCE["parameter"]
    tolerances = (mine, parameter, parameter, parameter, mine, mine, mine)
    gradients = cpu.scan_backward(*inputs, *cotangents, *options[:2])
    close(gradients, truth, steps, *tolerances)


@pytest.mark.parametrize("forgets", [False, True], ids=["uniform", "forgetting"])
@pytest.mark.parametrize("C", [5, 64, 300])
def test_tokens_one_by_one_equal_one_pass_bit_for_bit(kernels: None, C: int, forgets: bool) -> None:
    theta, *parameters = scan_problem(2, 70, C, 6, forgets=forgets, carried=True)
    whole = cpu.scan_forward(theta, *parameters, 5, 0.1, True)
    state, parts = parameters[3:], []
    for t in range(70):
        token = theta[:, t : t + 1].contiguous()
        out, *state, mean_cos, mean_sin = cpu.scan_forward(
            token, *parameters[:3], *state, 5, 0.1, True
        )
        parts.append((out, mean_cos, mean_sin))
    outs, cosines, sines = zip(*parts, strict=True)
    joined = (torch.cat(outs, 1), *state, torch.cat(cosines, 2), torch.cat(sines, 2))
    assert same(joined, whole)


def test_the_first_tokens_of_a_synchronized_prefix_have_gradients_as_good_as_the_last(
    kernels: None,
) -> None:
    # Their sums are near 1 while the final ones are near T: nothing may be taken off from those.
    inputs = scan_problem(1, 2000, 4, 5, forgets=False, carried=False, spread=0.05)
    found = cpu.scan_forward(*inputs, 5, 0.1, False)
    cotangents = [torch.randn(x.shape) for x in found]
    truth = oracle.gradients(oracle.scan, inputs, cotangents, 5, 0.1, False)[0]
    mine = cpu.scan_backward(*inputs, *cotangents, 5, 0.1)[0]
    assert oracle.error(mine[:, :8], truth[:, :8]) <= TOLERANCE["gradient"]


def test_a_nan_stays_in_its_channel_from_its_token_on(kernels: None) -> None:
    theta, *rest = scan_problem(2, 40, 70, 5, forgets=True, carried=False)
    spoilt = theta.clone()
    spoilt[0, 20, 3] = float("nan")
    clean, dirty = (cpu.scan_forward(x, *rest, 5, 0.1, False)[0] for x in (theta, spoilt))
    assert dirty[0, 20:, 3].isnan().all()
    dirty[0, 20:, 3] = clean[0, 20:, 3]
    assert torch.equal(dirty, clean)


# --- both ------------------------------------------------------------------------------------


def test_results_are_the_same_bits_for_any_number_of_threads(
    kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_problem(2, 700, 3, 16)
    rows_cotangents = [torch.randn(2, 700, 3, n) for n in (16, 5, 5)]
    scans = [scan_problem(3, 40, 300, 5, forgets=f, carried=True) for f in (False, True)]
    scan_cotangents = [torch.randn(x.shape) for x in cpu.scan_forward(*scans[0], 4, 0.1, True)]

    def everything() -> list[Tensor]:
        results = [*cpu.rows_forward(*rows, 4, 0.1, True)]
        results += rows_gradients(rows, rows_cotangents, 4)
        for inputs in scans:
            results += cpu.scan_forward(*inputs, 4, 0.1, True)
            results += cpu.scan_backward(*inputs, *scan_cotangents, 4, 0.1)
        return results

    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(cpu, "_threads", lambda work, threads=threads: threads)
        results.append(everything())
    assert same(results[1], results[0])
    assert same(results[2], results[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_library_runs_on_the_threads_of_torch(kernels: None) -> None:
    files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert len({file for file in files if "gomp" in Path(file).name}) == 1


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
