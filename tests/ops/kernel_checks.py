"""The four functions of a backend against the oracle; `kernels` is ops.cpu, ops.cuda or the like.

Shapes: B batch, T time, H heads, N oscillators, C channels, S integration steps, P = S or, with
`order`, S + 1 running sums.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import oracle
import torch
from torch import Tensor


class Problem(NamedTuple):
    """Inputs of a forward function, float32, the cotangents of its outputs, its last arguments."""

    inputs: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]
    options: tuple[Any, ...]  # steps, dt, order

    def to(self, device: str) -> "Problem":
        inputs, cotangents = (tuple(x.to(device) for x in xs) for xs in self[:2])
        return Problem(inputs, cotangents, self.options)


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def step_size(steps: int) -> float:
    """Together the steps are one unit of time at most, or rounding would grow with the phases."""
    return min(0.1, 1 / max(steps, 1))


def around_the_circle(*shape: int) -> Tensor:
    return math.pi * (2 * torch.rand(shape) - 1)


def means_shape(order: bool, *shape: int) -> tuple[int, ...]:
    return shape if order else (0,)


def rows_problem(
    B: int, T: int, H: int, N: int, steps: int, order: bool = False, own: str = ""
) -> Problem:
    """`own` names what every row has for itself: "omega", "coupling", "omega coupling"."""
    heads, rows = (H,), (B, T, H)
    omega = torch.randn(*(rows if "omega" in own else heads), N)
    coupling = torch.randn(*(rows if "coupling" in own else heads), 2)
    inputs = (around_the_circle(B, T, H, N), omega, coupling)
    means = means_shape(order, B, T, H, steps + 1)
    cotangents = (torch.randn(B, T, H, N), torch.randn(means), torch.randn(means))
    return Problem(inputs, cotangents, (steps, step_size(steps), order))


def scan_problem(
    B: int,
    T: int,
    C: int,
    steps: int,
    order: bool = False,
    forget: bool = False,
    carried: bool = True,
) -> Problem:
    """`carried`: the state is that of a sequence before, not of none."""
    sums = (steps + order, B, C)
    state = [torch.zeros(sums), torch.zeros(sums), torch.zeros(C)]
    if carried:
        state = [2 * torch.randn(sums), 2 * torch.randn(sums), torch.full((C,), 5.0)]
    inputs = (
        *(around_the_circle(B, T, C), torch.randn(C), torch.randn(C)),
        0.5 + 0.5 * torch.rand(C) if forget else torch.zeros(0),
        *state,
    )
    means = means_shape(order, steps + 1, B, T, C)
    shapes = ((B, T, C), sums, sums, (C,), means, means)
    cotangents = tuple(torch.randn(shape) for shape in shapes)
    return Problem(inputs, cotangents, (steps, step_size(steps), order))


def run_rows(kernels: Any, problem: Problem) -> list[Tensor]:
    """Outputs, then gradients."""
    inputs, cotangents, options = problem
    outputs = kernels.rows_forward(*inputs, *options)
    return [*outputs, *kernels.rows_backward(*inputs, *cotangents, *options[:2])]


def run_scan(kernels: Any, problem: Problem) -> list[Tensor]:
    """Outputs, then gradients."""
    inputs, cotangents, options = problem
    outputs = kernels.scan_forward(*inputs, *options)
    state = outputs[1:4] if kernels.UNSUMS and not inputs[3].numel() else inputs[4:]
    gradients = kernels.scan_backward(*inputs[:4], *state, *cotangents, *options[:2])
    return [*outputs, *gradients]


def _errors(found: list[Tensor], function: Any, problem: Problem) -> list[float]:
    inputs, cotangents, options = problem
    truths = function(*(x.double() for x in inputs), *options)
    truths = [*truths, *oracle.gradients(function, inputs, cotangents, *options)]
    if function is oracle.scan and not inputs[3].numel():
        truths[-1] = truths[-1][:0]  # a uniform weight is a count
    return [oracle.error(x.cpu(), truth) for x, truth in zip(found, truths, strict=True)]


def rows_errors(kernels: Any, problem: Problem, device: str = "cpu") -> list[float]:
    """Of theta and the means; of the gradients of theta, omega and coupling."""
    return _errors(run_rows(kernels, problem.to(device)), oracle.rows, problem)


def scan_errors(kernels: Any, problem: Problem, device: str = "cpu") -> list[float]:
    """Of theta, sums, weight and means; of the gradients of what scan_forward takes."""
    return _errors(run_scan(kernels, problem.to(device)), oracle.scan, problem)


def assert_decoding_is_one_pass(kernels: Any, problem: Problem) -> None:
    """Token by token with the carried state gives the bits of one pass."""
    (theta, *parameters), _, options = problem
    whole = kernels.scan_forward(theta, *parameters, *options)
    state, pieces = parameters[3:], []
    for token in theta.split(1, dim=1):
        piece = kernels.scan_forward(token.contiguous(), *parameters[:3], *state, *options)
        state = piece[1:4]
        pieces.append(piece)
    assert torch.equal(torch.cat([piece[0] for piece in pieces], dim=1), whole[0])
    for one, other in zip(state, whole[1:4], strict=True):
        assert torch.equal(one, other)
    if options[-1]:
        for means in (4, 5):
            assert torch.equal(torch.cat([p[means] for p in pieces], dim=2), whole[means])
