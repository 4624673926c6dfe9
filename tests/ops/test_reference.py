"""The reference integration is Kuramoto's model: by naive loops, by physics, by gradcheck."""

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phasegpt import ops
from phasegpt.core.errors import ConfigError
from phasegpt.ops import INTEGRATORS, ScanState
from phasegpt.ops.reference import prefix_sum

F64 = torch.float64
kuramoto_rows = functools.partial(ops.kuramoto_rows, backend="reference")
kuramoto_scan = functools.partial(ops.kuramoto_scan, backend="reference")


def rows_problem(
    B: int = 2, T: int = 3, H: int = 2, N: int = 5, dtype: torch.dtype = F64
) -> tuple[Tensor, Tensor, Tensor]:
    theta = 4 * torch.randn(B, T, H, N, dtype=dtype)
    return theta, torch.randn(H, N, dtype=dtype), torch.linspace(-1, 2, H, dtype=dtype)


def scan_problem(
    B: int = 2, T: int = 7, C: int = 3, dtype: torch.dtype = F64
) -> tuple[Tensor, Tensor, Tensor]:
    theta = 4 * torch.randn(B, T, C, dtype=dtype)
    return theta, torch.randn(C, dtype=dtype), torch.linspace(-1, 2, C, dtype=dtype)


def naive_rows(
    theta: Tensor, omega: Tensor, coupling: Tensor, steps: int, dt: float, lag: float | Tensor
) -> Tensor:
    """Euler with the sum over pairs written out: sin(theta_m - theta_n - lag) in row n."""
    lag = torch.as_tensor(lag, dtype=theta.dtype).view(-1, 1, 1)
    for _ in range(steps):
        difference = theta.unsqueeze(-2) - theta.unsqueeze(-1)  # [..., n, m] = theta_m - theta_n
        force = (difference - lag).sin().sum(-1) / theta.shape[-1]
        theta = theta + dt * (omega + coupling.unsqueeze(-1) * force)
    return theta


def naive_scan(
    theta: Tensor, omega: Tensor, coupling: Tensor, steps: int, dt: float, forget: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Euler, token by token over an explicit prefix; also R over the prefix after the last step."""

    def weights(t: int) -> Tensor:
        age = torch.arange(t, -1, -1, dtype=theta.dtype).unsqueeze(-1)  # u = 0..t
        w = torch.ones_like(age) if forget is None else forget**age
        return w / w.sum(0)

    T = theta.shape[1]
    for _ in range(steps):
        new = []
        for t in range(T):
            prefix, own = theta[:, : t + 1], theta[:, t : t + 1]
            force = (weights(t) * (prefix - own).sin()).sum(1)
            new.append(theta[:, t] + dt * (omega + coupling * force))
        theta = torch.stack(new, 1)
    z = torch.exp(1j * theta)
    R = torch.stack([(weights(t) * z[:, : t + 1]).sum(1).abs() for t in range(T)], 1)
    return theta, R


def order(theta: Tensor) -> Tensor:
    return torch.exp(1j * theta).mean(-1).abs()


# --- kuramoto_rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0.0, 0.7, torch.tensor([0.3, -1.1], dtype=F64)])
def test_rows_equals_the_sum_over_pairs(lag: float | Tensor) -> None:
    theta, omega, coupling = rows_problem()
    expected = naive_rows(theta, omega, coupling, 6, 0.2, lag)
    result = kuramoto_rows(theta, omega, coupling, steps=6, dt=0.2, lag=lag).theta
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_rows_takes_frequencies_and_coupling_of_every_token() -> None:
    theta, _, _ = rows_problem()
    omega, coupling = torch.randn_like(theta), torch.randn(theta.shape[:-1], dtype=F64)
    expected = naive_rows(theta, omega, coupling, 4, 0.3, 0.0)
    result = kuramoto_rows(theta, omega, coupling, steps=4, dt=0.3).theta
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 9),
    steps=st.integers(0, 4),
    dt=st.floats(0.01, 1),
    coupling=st.floats(-3, 3),
    lag=st.floats(-3, 3),
    scale=st.floats(0, 100),
)
def test_rows_equals_the_sum_over_pairs_for_any_numbers(
    n: int, steps: int, dt: float, coupling: float, lag: float, scale: float
) -> None:
    theta, omega, _ = rows_problem(1, 2, 1, n)
    theta, K = scale * theta, torch.tensor([coupling], dtype=F64)
    expected = naive_rows(theta, omega, K, steps, dt, lag)
    result = kuramoto_rows(theta, omega, K, steps=steps, dt=dt, lag=lag).theta
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-11)


def test_rows_returns_R_and_psi_before_every_step_and_after_the_last() -> None:
    theta, omega, coupling = rows_problem()
    result = kuramoto_rows(theta, omega, coupling, steps=3, dt=0.2, return_order=True)
    assert result.R.shape == result.psi.shape == (2, 3, 2, 4)
    for s in range(4):
        z = torch.exp(1j * naive_rows(theta, omega, coupling, s, 0.2, 0.0)).mean(-1)
        torch.testing.assert_close(result.R[..., s], z.abs(), rtol=0, atol=1e-12)
        torch.testing.assert_close(result.psi[..., s], z.angle(), rtol=0, atol=1e-11)
    assert kuramoto_rows(theta, omega, coupling, steps=3, dt=0.2).R is None


@pytest.mark.parametrize(("integrator", "expected"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_the_error_of_an_integrator_falls_with_its_order(integrator: str, expected: int) -> None:
    theta, omega, coupling = rows_problem(1, 1, 2, 6)
    time, fine = 1.0, {"integrator": "rk4", "lag": 0.4}
    truth = kuramoto_rows(theta, omega, coupling, steps=1024, dt=time / 1024, **fine).theta
    errors = []
    for steps in (16, 32, 64):
        result = kuramoto_rows(
            *(theta, omega, coupling), steps=steps, dt=time / steps, lag=0.4, integrator=integrator
        )
        errors.append((result.theta - truth).abs().max().item())
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([expected] * 2, abs=0.25)


@pytest.mark.parametrize("integrator", sorted(INTEGRATORS))
def test_gradients_of_rows_are_exact_through_theta_R_and_psi(integrator: str) -> None:
    theta, omega, coupling = (x.requires_grad_() for x in rows_problem(1, 2, 2, 3))
    lag = torch.tensor([0.2, -0.5], dtype=F64, requires_grad=True)

    def f(*inputs: Tensor) -> tuple[Tensor, ...]:
        *inputs, lag = inputs
        return kuramoto_rows(
            *inputs, steps=2, dt=0.3, lag=lag, integrator=integrator, return_order=True
        )

    assert torch.autograd.gradcheck(f, (theta, omega, coupling, lag))


def test_R_of_perfectly_cancelling_phases_is_zero_with_a_finite_gradient() -> None:
    # The square root has no derivative at 0, which floating point reaches for some t.
    t = next(x / 100 for x in range(50, 150) if math.cos(math.pi - x / 100) == -math.cos(x / 100))
    four = torch.tensor([t, -t, math.pi - t, t - math.pi], dtype=F64)
    assert four.cos().sum() == four.sin().sum() == 0
    theta = four.view(1, 1, 1, 4).requires_grad_()
    still, one = torch.zeros(1, 4, dtype=F64), torch.ones(1, dtype=F64)
    R = kuramoto_rows(theta, still, one, steps=1, dt=0.1, return_order=True).R
    R.sum().backward()
    assert R.max() < 1e-12
    assert theta.grad.isfinite().all()


def test_one_token_never_touches_another(poison: Callable) -> None:
    theta, omega, coupling = rows_problem(2, 5)
    clean = kuramoto_rows(theta, omega, coupling, steps=4, dt=0.2).theta
    spoilt = kuramoto_rows(poison(theta, 1, 3), omega, coupling, steps=4, dt=0.2).theta
    assert torch.equal(clean[:, :3], spoilt[:, :3])
    assert spoilt[:, 3:].isnan().all()


# --- physics of rows -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_coupling_attracts_and_negative_coupling_repels(steps: int) -> None:
    theta = torch.randn(4, 8, 3, 32, dtype=F64)
    still, K = torch.zeros(3, 32, dtype=F64), torch.ones(3, dtype=F64)
    before = order(theta)
    assert (order(kuramoto_rows(theta, still, K, steps=steps, dt=0.1).theta) > before).all()
    assert (order(kuramoto_rows(theta, still, -K, steps=steps, dt=0.1).theta) < before).all()


def test_two_oscillators_lock_at_asin_of_detuning_over_coupling() -> None:
    theta = torch.tensor([1.0, -0.5], dtype=F64).view(1, 1, 1, 2)
    omega, K = torch.tensor([[0.6, -0.6]], dtype=F64), torch.tensor([2.0], dtype=F64)
    end = kuramoto_rows(theta, omega, K, steps=400, dt=0.1, integrator="rk4").theta.flatten()
    assert (end[0] - end[1]).item() == pytest.approx(math.asin(1.2 / 2.0), abs=1e-10)


def test_two_oscillators_past_the_threshold_drift_at_the_beat() -> None:
    theta = torch.zeros(1, 1, 1, 2, dtype=F64)
    omega, K = torch.tensor([[1.0, -1.0]], dtype=F64), torch.tensor([1.0], dtype=F64)
    beat = math.sqrt(2.0**2 - 1.0**2)  # detuning 2, K = 1
    periods, steps = 5, 500
    dt = periods * 2 * math.pi / beat / steps
    end = kuramoto_rows(theta, omega, K, steps=steps, dt=dt, integrator="rk4").theta.flatten()
    assert (end[0] - end[1]).item() == pytest.approx(periods * 2 * math.pi, abs=1e-5)


def test_a_global_shift_of_the_phases_changes_nothing_else() -> None:
    theta, omega, coupling = rows_problem()
    a = kuramoto_rows(theta, omega, coupling, steps=5, dt=0.2, lag=0.3, return_order=True)
    b = kuramoto_rows(theta + 1.234, omega, coupling, steps=5, dt=0.2, lag=0.3, return_order=True)
    torch.testing.assert_close(b.theta, a.theta + 1.234, rtol=0, atol=1e-12)
    torch.testing.assert_close(b.R, a.R, rtol=0, atol=1e-12)


def test_the_mean_frequency_is_conserved_without_lag() -> None:
    theta, omega, coupling = rows_problem()
    end = kuramoto_rows(theta, omega, coupling, steps=9, dt=0.2).theta
    moved = (end - theta).mean(-1)
    torch.testing.assert_close(
        moved, (9 * 0.2 * omega.mean(-1)).expand_as(moved), rtol=0, atol=1e-12
    )


def test_a_lag_drags_the_mean_phase_by_K_R_squared_sin_lag() -> None:
    theta, omega, coupling = rows_problem()
    end = kuramoto_rows(theta, torch.zeros_like(omega), coupling, steps=1, dt=0.2, lag=0.8).theta
    expected = -0.2 * coupling * order(theta) ** 2 * math.sin(0.8)
    torch.testing.assert_close((end - theta).mean(-1), expected, rtol=0, atol=1e-12)


# --- kuramoto_scan ---------------------------------------------------------------------------

FORGETS = [None, torch.tensor([0.3, 0.9, 1.0], dtype=F64)]


@pytest.mark.parametrize("forget", FORGETS, ids=["uniform", "forgetting"])
def test_scan_equals_a_loop_over_every_prefix(forget: Tensor | None) -> None:
    theta, omega, coupling = scan_problem()
    expected, expected_R = naive_scan(theta, omega, coupling, 5, 0.3, forget)
    result = kuramoto_scan(
        theta, omega, coupling, steps=5, dt=0.3, forget=forget, return_order=True
    )
    torch.testing.assert_close(result.theta, expected, rtol=0, atol=1e-12)
    assert result.R.shape == (2, 7, 3, 6)
    torch.testing.assert_close(result.R[..., -1], expected_R, rtol=0, atol=1e-12)
    first = naive_scan(theta, omega, coupling, 0, 0.3, forget)[1]
    torch.testing.assert_close(result.R[..., 0], first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("return_order", [False, True])
@pytest.mark.parametrize("cuts", [[1] * 40, [13, 1, 26], [40]], ids=["tokens", "chunks", "whole"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, 1e-12)])
@pytest.mark.parametrize("forget", FORGETS, ids=["uniform", "forgetting"])
def test_carried_state_continues_a_scan(
    forget: Tensor | None,
    dtype: torch.dtype,
    tolerance: float,
    cuts: list[int],
    return_order: bool,
) -> None:
    theta, omega, coupling = scan_problem(T=40, dtype=dtype)
    theta = theta / 4  # phases of order 1, so that the tolerance is absolute
    options = {"steps": 4, "dt": 0.2, "forget": forget, "return_order": return_order}
    whole = kuramoto_scan(theta, omega, coupling, **options)
    parts, state = [], None
    for piece in theta.split(cuts, dim=1):
        result = kuramoto_scan(piece, omega, coupling, state=state, **options)
        parts.append(result)
        state = result.state
    joined = torch.cat([p.theta for p in parts], 1)
    torch.testing.assert_close(joined, whole.theta, rtol=0, atol=tolerance)
    if return_order:
        R = torch.cat([p.R for p in parts], 1)
        torch.testing.assert_close(R, whole.R, rtol=0, atol=tolerance)
    for a, b in zip(state, whole.state, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)


def test_the_carried_state_does_not_grow() -> None:
    _, omega, coupling = scan_problem()
    sizes = set()
    for T in (1, 5, 50):
        result = kuramoto_scan(torch.randn(2, T, 3), omega, coupling, steps=4, dt=0.1)
        sizes.add(tuple(part.shape for part in result.state))
    assert sizes == {((4, 2, 3), (4, 2, 3), (3,))}


@pytest.mark.parametrize("forget", FORGETS, ids=["uniform", "forgetting"])
def test_scan_never_looks_ahead(forget: Tensor | None, poison: Callable) -> None:
    theta, omega, coupling = scan_problem(T=20)
    clean = kuramoto_scan(theta, omega, coupling, steps=3, dt=0.2, forget=forget, return_order=True)
    for t in (1, 8, 19):
        spoilt = kuramoto_scan(
            poison(theta, 1, t), omega, coupling, steps=3, dt=0.2, forget=forget, return_order=True
        )
        assert torch.equal(clean.theta[:, :t], spoilt.theta[:, :t])
        assert torch.equal(clean.R[:, :t], spoilt.R[:, :t])
        assert spoilt.theta[:, t].isnan().all()


@pytest.mark.parametrize("forgets", [False, True])
def test_gradients_of_scan_are_exact_through_theta_state_and_R(forgets: bool) -> None:
    theta, omega, coupling = (x.requires_grad_() for x in scan_problem(1, 4, 3))
    forget = torch.tensor([0.4, 0.8, 0.97], dtype=F64, requires_grad=True)
    state = kuramoto_scan(*scan_problem(1, 3, 3), steps=2, dt=0.3, return_order=True).state

    def f(theta: Tensor, omega: Tensor, coupling: Tensor, forget: Tensor) -> tuple[Tensor, ...]:
        result = kuramoto_scan(
            *(theta, omega, coupling),
            **{"steps": 2, "dt": 0.3, "state": state, "return_order": True},
            forget=forget if forgets else None,
        )
        carried = [part for part in result.state if part.requires_grad]
        return result.theta, result.R, *carried

    assert torch.autograd.gradcheck(f, (theta, omega, coupling, forget.requires_grad_(forgets)))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_long_prefix_with_strong_forgetting_stays_exact(dtype: torch.dtype) -> None:
    # 0.5^2000 is 0 even in float64: dividing by powers of lambda would give NaN.
    T, forget = 2000, torch.tensor([0.01, 0.5, 0.9, 1.0], dtype=dtype, requires_grad=True)
    x = torch.randn(1, T, 4, dtype=dtype)
    total, y = torch.zeros(1, 4, dtype=F64), []
    for t in range(T):
        total = forget.detach().to(F64) * total + x[:, t].to(F64)
        y.append(total)
    error = (prefix_sum(x, forget, None).to(F64) - torch.stack(y, 1)).abs().max()
    assert error < (1e-3 if dtype == torch.float32 else 1e-11)

    omega, coupling = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype)
    result = kuramoto_scan(
        x, omega, coupling, steps=2, dt=0.1, forget=forget.clamp(max=0.999), return_order=True
    )
    (result.theta.sum() + result.R.sum()).backward()
    for value in (result.theta, result.R, forget.grad):
        assert value.isfinite().all()
    assert result.R.max() < 1 + 1e-5


def test_prefix_coupling_does_not_conserve_the_mean_frequency() -> None:
    theta, omega, coupling = scan_problem()
    moved = kuramoto_scan(theta, omega, coupling, steps=5, dt=0.2).theta - theta
    assert (moved.mean(1) - 5 * 0.2 * omega).abs().max() > 1e-3


def test_the_first_token_feels_no_force_and_in_the_end_all_follow_it() -> None:
    theta = torch.randn(3, 12, 2, dtype=F64)
    still, K = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    end = kuramoto_scan(theta, still, K, steps=300, dt=0.2).theta
    torch.testing.assert_close(end[:, 0], theta[:, 0], rtol=0, atol=1e-12)
    lead = end[:, :1].expand_as(end)
    assert (torch.exp(1j * end) - torch.exp(1j * lead)).abs().max() < 1e-3


def test_a_global_shift_passes_through_a_scan() -> None:
    theta, omega, coupling = scan_problem()
    a = kuramoto_scan(theta, omega, coupling, steps=5, dt=0.2).theta
    b = kuramoto_scan(theta + 0.9, omega, coupling, steps=5, dt=0.2).theta
    torch.testing.assert_close(b, a + 0.9, rtol=0, atol=1e-12)


# --- both ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_dtype", [torch.bfloat16, torch.float32, F64])
def test_phases_are_held_in_float32_at_least(given_dtype: torch.dtype) -> None:
    expected = F64 if given_dtype == F64 else torch.float32
    rows = kuramoto_rows(*rows_problem(dtype=given_dtype), steps=2, dt=0.1, return_order=True)
    assert {rows.theta.dtype, rows.R.dtype, rows.psi.dtype} == {expected}
    forget = torch.full((3,), 0.9, dtype=given_dtype)
    scan = kuramoto_scan(
        *scan_problem(dtype=given_dtype), steps=2, dt=0.1, forget=forget, return_order=True
    )
    assert {scan.theta.dtype, scan.R.dtype, *(x.dtype for x in scan.state)} == {expected}


def test_autocast_does_not_reach_the_integration() -> None:
    rows, scan = rows_problem(dtype=torch.float32), scan_problem(dtype=torch.float32)
    a = kuramoto_rows(*rows, steps=3, dt=0.1).theta, kuramoto_scan(*scan, steps=3, dt=0.1).theta
    with torch.autocast("cpu", dtype=torch.bfloat16):
        b = kuramoto_rows(*rows, steps=3, dt=0.1).theta, kuramoto_scan(*scan, steps=3, dt=0.1).theta
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_zero_steps_leave_the_phases_as_they_are() -> None:
    theta, omega, coupling = rows_problem()
    assert torch.equal(kuramoto_rows(theta, omega, coupling, steps=0, dt=0.1).theta, theta)
    theta, omega, coupling = scan_problem()
    first = kuramoto_scan(theta[:, :3], omega, coupling, steps=0, dt=0.1)
    rest = kuramoto_scan(theta[:, 3:], omega, coupling, steps=0, dt=0.1, state=first.state)
    assert torch.equal(torch.cat((first.theta, rest.theta), 1), theta)


R_OK, S_OK = rows_problem(), scan_problem()
WRONG_ROWS = {
    r"theta0 has shape \(3, 2, 5\); it must be theta0\[B,T,H,N\]": {"theta0": R_OK[0][0]},
    r"omega has shape \(5,\); it must be \[H,N\] = \[2,5\]": {"omega": torch.zeros(5)},
    r"coupling has shape \(5,\); it must be \[H\] = \[2\]": {"coupling": torch.zeros(5)},
    r"lag has shape \(5,\); it must be a number or \[H\] = \[2\]": {"lag": torch.zeros(5)},
    r"omega is on meta and theta0 on cpu; move": {"omega": R_OK[1].to("meta")},
    r"lag is on meta and theta0 on cpu; move": {"lag": torch.zeros(2, device="meta")},
    r"steps=-1 must be a whole number >= 0": {"steps": -1},
    r"dt=0.0 is out of range; it must be > 0": {"dt": 0.0},
    r"omega is a float; it must be a tensor": {"omega": 0.5},
    r"integrator='rk5'; choose from: euler, heun, rk4": {"integrator": "rk5"},
    r"backend='gpu'; choose from: auto, .*reference": {"backend": "gpu"},
}
WRONG_SCAN = {
    r"theta0 has shape \(7, 3\); it must be theta0\[B,T,C\]": {"theta0": S_OK[0][0]},
    r"omega has shape \(2,\); it must be \[C\] = \[3\]": {"omega": torch.zeros(2)},
    r"coupling has shape \(1,\); it must be \[C\] = \[3\]": {"coupling": torch.zeros(1)},
    r"forget has shape \(1,\); it must be \[C\] = \[3\]": {"forget": torch.ones(1)},
    r"forget holds a number outside of \[0, 1\]": {"forget": torch.tensor([0.5, 1.0, 1.5])},
    r"cos_SBC is a NoneType": {"state": ScanState(None, None, None)},  # type: ignore[arg-type]
    r"steps=-2": {"steps": -2},
    r"backend='gpu'; choose from: auto, .*reference": {"backend": "gpu"},
    r"carried state has 3 sums and this call needs 2; keep steps": {
        "state": kuramoto_scan(*S_OK, steps=3, dt=0.1).state
    },
    r"carried state has the shapes .*\(2, 1, 3\).* need .*\(2, 2, 3\).* the batch": {
        "state": kuramoto_scan(S_OK[0][:1], *S_OK[1:], steps=2, dt=0.1).state
    },
    r"cos_SBC is on meta and theta0 on cpu; move": {
        "state": ScanState(*(torch.zeros(s, device="meta") for s in ((2, 2, 3), (2, 2, 3), 3)))
    },
}


@pytest.mark.parametrize(("message", "change"), WRONG_ROWS.items(), ids=lambda x: str(x)[:20])
def test_rows_says_what_is_wrong_and_what_is_allowed(message: str, change: dict) -> None:
    good = dict(zip(("theta0", "omega", "coupling"), R_OK, strict=True), steps=2, dt=0.1)
    with pytest.raises(ConfigError, match=message):
        kuramoto_rows(**(good | change))


@pytest.mark.parametrize(("message", "change"), WRONG_SCAN.items(), ids=lambda x: str(x)[:20])
def test_scan_says_what_is_wrong_and_what_is_allowed(message: str, change: dict) -> None:
    good = dict(zip(("theta0", "omega", "coupling"), S_OK, strict=True), steps=2, dt=0.1)
    with pytest.raises(ConfigError, match=message):
        kuramoto_scan(**(good | change))
