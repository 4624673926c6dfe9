"""The CUDA kernels without a GPU: emulated against the oracle, compiled within their limits."""

import itertools

import kernel_checks as checks
import pytest
import torch
from emulator import emulator
from helpers import need_compiler

from phasegpt.ops import cuda

#: Largest error, relative to max(1, largest true value).
TOLERANCE = 2e-6
#: The same with the error of a GPU's sine.
COARSE_TOLERANCE = 5e-6

ROWS = [  # N, S
    *((1, 5), (2, 1), (5, 10), (16, 1), (16, 10), (32, 0), (32, 5), (32, 10)),
    *((33, 10), (64, 5), (128, 10), (200, 1), (256, 3)),
]
SCANS = [0, 1, 5, 10, 17]  # S; 17 does not fit the unrolled loops
OWN = ["", "omega", "coupling", "omega coupling"]
BOTH = [False, True]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> emulator.Emulated:
    need_compiler()
    names = []
    for (N, steps), order in itertools.product(ROWS, BOTH):
        names.append(cuda.plan_rows_forward(1, 1, N, steps, order).kernel)
        names.append(cuda.plan_rows_backward(1, 1, N, steps, order).kernel)
    for steps, order in itertools.product(SCANS, BOTH):
        names.append(cuda.plan_scan("scan_forward", 1, 1, steps, order).kernel)
        for chunk in (0, cuda.CHUNK):
            names.append(cuda.plan_scan("scan_backward", 1, 1, steps, order, chunk).kernel)
    return emulator.build(tmp_path_factory.mktemp("emulator"), names)


pytestmark = pytest.mark.usefixtures("poisoned")


# --- rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", BOTH)
@pytest.mark.parametrize(("N", "steps"), ROWS)
def test_emulated_rows_and_their_gradients_equal_the_oracle(kernels, N, steps, order):
    for own, (B, T, H) in zip(OWN, ((1, 3, 2), (2, 7, 1), (1, 1, 3), (2, 2, 2)), strict=True):
        errors = checks.rows_errors(kernels, checks.rows_problem(B, T, H, N, steps, order, own))
        assert max(errors) <= TOLERANCE, (own, errors)


@pytest.mark.parametrize("limit", [1, 2])
def test_blocks_that_stride_over_the_tokens_cover_them_all(kernels, monkeypatch, limit):
    monkeypatch.setattr(cuda, "MAX_GRID_Y", limit)
    monkeypatch.setattr(cuda, "BACKWARD_BLOCKS", 2 * limit)
    for own in ("", "omega coupling"):
        errors = checks.rows_errors(kernels, checks.rows_problem(2, 37, 2, 32, 5, True, own))
        assert max(errors) <= TOLERANCE, (own, errors)


def test_a_gradient_of_a_head_is_a_sum_of_more_than_one_block(kernels):
    plan = cuda.plan_rows_backward(100, 2, 32, 5, False)
    assert plan.grid[1] > 1
    assert max(checks.rows_errors(kernels, checks.rows_problem(1, 100, 2, 32, 5))) <= TOLERANCE


def test_a_nan_spoils_its_row_alone(kernels):
    clean = checks.rows_problem(1, 9, 3, 16, 10, True, "omega coupling")
    theta, *parameters = clean.inputs
    theta = theta.clone()
    theta[0, 4, 1, 5] = torch.nan
    dirty = clean._replace(inputs=(theta, *parameters))
    others = torch.ones(1, 9, 3, dtype=torch.bool)
    others[0, 4, 1] = False
    for one, other in zip(
        checks.run_rows(kernels, clean), checks.run_rows(kernels, dirty), strict=True
    ):
        assert torch.equal(one[others], other[others])
        assert other[~others].isnan().all()


# --- scan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", BOTH)
@pytest.mark.parametrize("order", BOTH)
@pytest.mark.parametrize("steps", SCANS)
def test_the_emulated_scan_and_its_gradients_equal_the_oracle(kernels, steps, order, forget):
    for (B, T, C), carried in (((1, 1, 5), True), ((2, 33, 17), False), ((2, 20, 65), True)):
        problem = checks.scan_problem(B, T, C, steps, order, forget, carried)
        errors = checks.scan_errors(kernels, problem)
        assert max(errors) <= TOLERANCE, ((B, T, C), errors)


@pytest.mark.parametrize("forget", BOTH)
@pytest.mark.parametrize("order", BOTH)
@pytest.mark.parametrize("steps", SCANS)
def test_decoding_token_by_token_gives_the_bits_of_one_pass(kernels, steps, order, forget):
    checks.assert_decoding_is_one_pass(kernels, checks.scan_problem(2, 30, 3, steps, order, forget))


def test_forgetting_at_once_has_no_division_by_what_is_forgotten(kernels):
    problem = checks.scan_problem(1, 40, 2, 5, True, True)
    inputs = list(problem.inputs)
    inputs[3] = torch.tensor([1e-30, 1.0])
    assert max(checks.scan_errors(kernels, problem._replace(inputs=tuple(inputs)))) <= TOLERANCE


def test_a_nan_spoils_no_other_channel_and_no_earlier_token(kernels):
    clean = checks.scan_problem(2, 20, 4, 5, True)
    theta, *parameters = clean.inputs
    theta = theta.clone()
    theta[1, 7, 2] = torch.nan
    dirty = clean._replace(inputs=(theta, *parameters))
    others = torch.ones(2, 20, 4, dtype=torch.bool)
    others[1, 7:, 2] = False
    one, other = checks.run_scan(kernels, clean)[0], checks.run_scan(kernels, dirty)[0]
    assert torch.equal(one[others], other[others])
    assert other[~others].isnan().all()


# --- both ------------------------------------------------------------------------------------


def test_sines_as_coarse_as_those_of_a_gpu_cost_little(kernels):
    rows, scan = (
        checks.rows_problem(2, 20, 2, 32, 10, True),
        checks.scan_problem(2, 40, 65, 10, True, True),
    )
    exact = checks.run_rows(kernels, rows)
    with kernels.coarse_angles():
        errors = checks.rows_errors(kernels, rows) + checks.scan_errors(kernels, scan)
        assert not torch.equal(checks.run_rows(kernels, rows)[0], exact[0])
    assert max(errors) <= COARSE_TOLERANCE, errors


def test_large_phases_lose_no_more_than_their_own_rounding(kernels):
    problem = checks.rows_problem(1, 8, 2, 16, 1, True)
    theta = 2e4 * torch.rand(1, 8, 2, 16) - 1e4
    problem = problem._replace(inputs=(theta, *problem.inputs[1:]))
    with kernels.coarse_angles():
        _, *means = checks.rows_errors(kernels, problem)[:3]
    assert max(means) <= 2e-3  # two units in the last place of 1e4
