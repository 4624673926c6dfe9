"""The kernels equal the float64 reference: values and gradients, at any shape."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import error
from problems import integrate, on, rows_problem, scan_problem, time_step
from torch import Tensor

from phasegpt import ops

#: Largest error relative to max(1, largest true value): in values, and in gradients, of which
#: those of frequencies and coupling are sums over every token.
TOLERANCE = {"values": 2e-6, "gradients": 1e-5}
#: Where float32 itself is worse than that (many steps of repelling phases, a direction of a mean
#: field near zero), a kernel may be this many times worse than plain float32 PyTorch.
SLACK = 4
#: On a GPU sums over every token cancel to less than rounding of its sine leaves exact.
ON_CUDA = 4


def measured(integrate: Callable, leaves: Sequence[Tensor]) -> dict[str, Any]:
    """Everything returned, and the gradients of a number that depends on all of it."""
    out = integrate(*leaves)
    returned = {"theta": out.theta}
    if out.R is not None:
        returned["R"] = out.R
    if isinstance(out, ops.Scan):
        returned |= out.state._asdict()
    elif out.psi is not None:
        returned |= {"R cos psi": out.R * out.psi.cos(), "R sin psi": out.R * out.psi.sin()}
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator) for x in returned.values()]
    total = sum((x * w.to(x)).sum() for x, w in zip(returned.values(), weights, strict=True))
    grads = torch.autograd.grad(total, leaves, materialize_grads=True)
    return {"values": returned, "gradients": dict(enumerate(grads))}


def compare(integrate: Callable, problem: Sequence[Tensor], backend: str) -> None:
    """The kernels of `backend` against the reference in float64, with float32 as a yardstick."""
    truth = measured(integrate("reference"), problem)
    plain = measured(integrate("reference"), on("cpu", *problem))
    found = measured(integrate(backend), on(backend, *problem))
    for kind, tolerance in TOLERANCE.items():
        for name, right in truth[kind].items():
            mine, yardstick = found[kind][name], plain[kind][name]
            assert mine.dtype == torch.float32
            wider = ON_CUDA if (backend, kind) == ("cuda", "gradients") else 1
            allowed = max(wider * tolerance, SLACK * error(yardstick, right))
            assert error(mine, right) <= allowed, f"{kind} {name}"


def compare_rows(backend: str, problem: tuple[Tensor, ...], steps: int, order: bool) -> None:
    def integrate(backend: str) -> Callable[..., ops.Rows]:
        def run(theta: Tensor, omega: Tensor, coupling: Tensor, lag: Tensor) -> ops.Rows:
            options = {"steps": steps, "dt": time_step(steps), "return_order": order}
            return ops.kuramoto_rows(theta, omega, coupling, lag=lag, backend=backend, **options)

        return run

    compare(integrate, problem, backend)


@pytest.mark.parametrize("order", [False, True], ids=["theta", "order"])
@pytest.mark.parametrize("N", [1, 5, 16, 32, 33, 64, 128])
@pytest.mark.parametrize("steps", [0, 1, 5, 10, 33])
def test_rows_equal_the_reference_and_so_do_their_gradients(
    backend: str, poisoned: None, N: int, steps: int, order: bool
) -> None:
    for T in (1, 63) if N * steps > 320 else (1, 63, 100, 257):
        compare_rows(backend, rows_problem(1, T, 2, N), steps, order)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 9),
    H=st.integers(1, 5),
    N=st.integers(1, 256),
    steps=st.integers(0, 64),
    order=st.booleans(),
    per_token=st.booleans(),
)
def test_rows_of_any_shape_equal_the_reference(
    B: int, T: int, H: int, N: int, steps: int, order: bool, per_token: bool
) -> None:
    compare_rows("cpu", rows_problem(B, T, H, N, per_token=per_token), steps, order)


@pytest.mark.parametrize("per_token", [False, True])
def test_rows_take_frequencies_and_coupling_per_head_or_per_token(
    backend: str, poisoned: None, per_token: bool
) -> None:
    compare_rows(backend, rows_problem(3, 40, 3, 20, per_token=per_token), 7, True)


@pytest.mark.parametrize("order", [False, True], ids=["theta", "order"])
@pytest.mark.parametrize("steps", [64, 65, 130])
def test_rows_of_more_steps_than_one_pass_has_equal_the_reference(
    backend: str, steps: int, order: bool
) -> None:
    compare_rows(backend, rows_problem(1, 9, 2, 16), steps, order)


# --- scan ------------------------------------------------------------------------------------


def compare_scan(backend: str, problem: tuple[Tensor, ...], steps: int, order: bool) -> None:
    def run(backend: str) -> Callable[..., ops.Scan]:
        options = {"steps": steps, "dt": time_step(steps), "return_order": order}
        return lambda *tensors: integrate(tensors, backend=backend, **options)

    compare(run, problem, backend)


@pytest.mark.parametrize("order", [False, True], ids=["theta", "order"])
@pytest.mark.parametrize("forgets", [False, True], ids=["uniform", "forgetting"])
@pytest.mark.parametrize("steps", [0, 1, 5, 10, 33])
@pytest.mark.parametrize("T", [1, 63, 100, 257])
def test_a_scan_equals_the_reference_and_so_do_its_gradients(
    backend: str, poisoned: None, T: int, steps: int, forgets: bool, order: bool
) -> None:
    for C in (1, 64, 100):
        compare_scan(backend, scan_problem(2, T, C, forgets=forgets), steps, order)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 70),
    C=st.integers(1, 140),
    steps=st.integers(0, 64),
    order=st.booleans(),
    forgets=st.booleans(),
)
def test_a_scan_of_any_shape_equals_the_reference(
    B: int, T: int, C: int, steps: int, order: bool, forgets: bool
) -> None:
    compare_scan("cpu", scan_problem(B, T, C, forgets=forgets), steps, order)


@pytest.mark.parametrize("order", [False, True], ids=["theta", "order"])
@pytest.mark.parametrize("forgets", [False, True], ids=["uniform", "forgetting"])
@pytest.mark.parametrize("cuts", [[1] * 40, [13, 1, 26]], ids=["tokens", "chunks"])
def test_a_carried_state_continues_a_scan_bit_for_bit(
    backend: str, forgets: bool, order: bool, cuts: list[int]
) -> None:
    theta, *rest = on(backend, *scan_problem(2, 40, 70, forgets=forgets))
    options = {"steps": 6, "dt": 0.2, "return_order": order, "backend": backend}
    with torch.no_grad():
        whole = integrate([theta, *rest], **options)
        parts, state = [], None
        for piece in theta.split(cuts, dim=1):
            parts.append(integrate([piece, *rest], state=state, **options))
            state = parts[-1].state
    assert torch.equal(torch.cat([p.theta for p in parts], 1), whole.theta)
    assert all(torch.equal(a, b) for a, b in zip(state, whole.state, strict=True))
    if order:
        assert torch.equal(torch.cat([p.R for p in parts], 1), whole.R)


@pytest.mark.parametrize("forgets", [False, True], ids=["uniform", "forgetting"])
def test_gradients_flow_through_a_carried_state(backend: str, forgets: bool) -> None:
    problem = scan_problem(2, 30, 20, forgets=forgets)
    weights = torch.randn(2, 30, 20, dtype=torch.float64)

    def chained(theta: Tensor, rest: list[Tensor], backend: str) -> Tensor:
        options = {"steps": 4, "dt": 0.2, "backend": backend}
        first = integrate([theta[:, :11], *rest], **options)
        second = integrate([theta[:, 11:], *rest], state=first.state, **options)
        both = torch.cat((first.theta, second.theta), 1)
        return (both * weights.to(both)).sum() + second.state.cos_SBC.sum()

    theta, *rest = problem
    expected = torch.autograd.grad(chained(theta, rest, "reference"), problem)
    leaves = on(backend, *problem)
    found = torch.autograd.grad(chained(leaves[0], leaves[1:], backend), leaves)
    for gradient, right in zip(found, expected, strict=True):
        assert error(gradient, right) <= TOLERANCE["gradients"]


@pytest.mark.parametrize("order", [False, True], ids=["theta", "order"])
@pytest.mark.parametrize("forgets", [False, True], ids=["uniform", "forgetting"])
@pytest.mark.parametrize("steps", [64, 65, 130])
def test_a_scan_of_more_steps_than_one_pass_has_equals_the_reference(
    backend: str, steps: int, forgets: bool, order: bool
) -> None:
    compare_scan(backend, scan_problem(2, 20, 5, forgets=forgets), steps, order)


@pytest.mark.parametrize("order", [False, True], ids=["theta", "order"])
def test_a_scan_of_many_steps_is_carried_on_from_its_state(backend: str, order: bool) -> None:
    theta, *others = on(backend, *scan_problem(2, 20, 5, forgets=True))
    options = {"steps": 130, "dt": 0.02, "return_order": order, "backend": backend}
    whole = integrate((theta, *others), **options)
    head = integrate((theta[:, :11], *others), **options)
    tail = integrate((theta[:, 11:], *others), state=head.state, **options)
    torch.testing.assert_close(tail.theta, whole.theta[:, 11:])
    for one, other in zip(tail.state, whole.state, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("steps", [1, 65])
def test_nothing_has_the_shapes_of_the_reference(steps: int) -> None:
    K, omega = torch.ones(3), torch.ones(3, 4)
    empty = [
        ops.kuramoto_rows(
            torch.ones(2, 0, 3, 4),
            omega,
            K,
            steps=steps,
            dt=0.1,
            backend=backend,
            return_order=True,
        )
        for backend in ("auto", "reference")
    ]
    assert empty[0].R.shape == empty[1].R.shape == (2, 0, 3, steps + 1)
    none = [
        ops.kuramoto_scan(
            torch.ones(0, 5, 4), torch.ones(4), torch.ones(4), steps=steps, dt=0.1, backend=backend
        )
        for backend in ("auto", "reference")
    ]
    assert none[0].theta.shape == none[1].theta.shape
    for a, b in zip(none[0].state, none[1].state, strict=True):
        assert a is b is None or a.shape == b.shape
