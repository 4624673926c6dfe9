"""Identities of fields and kernels that need no integration, to 1e-12 in float64."""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from phasegpt.phase import (
    attention_energy,
    attention_force,
    mean_field_force,
    mean_phase,
    order_parameter,
)

F64 = torch.float64


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def phases(*shape: int) -> Tensor:
    return 4 * torch.randn(shape, dtype=F64)


def causal_attention(B: int, H: int, T: int) -> Tensor:
    future = torch.ones(T, T).triu(1).bool()
    return torch.randn(B, H, T, T, dtype=F64).masked_fill(future, -math.inf).softmax(-1)


def test_the_attention_field_is_the_weighted_sum_of_sines() -> None:
    """P3: and it is a rotation of SDPA's output for the values [cos, sin]."""
    theta, A = phases(2, 7, 3, 4), causal_attention(2, 3, 7)
    pairs = (theta.unsqueeze(1) - theta.unsqueeze(2)).sin()  # [B,t,u,H,N]
    equal(attention_force(theta, A), torch.einsum("bhtu,btuhn->bthn", A, pairs))


def test_the_coupling_descends_its_energy_and_raises_R() -> None:
    """P9: H = -(K N / 2) R^2; dtheta/dt = -grad H; dH/dt = -|dtheta/dt|^2 <= 0;
    dR/dt = K R <sin^2(theta - psi)> >= 0."""
    K, N, theta = 1.7, 9, phases(5, 9).requires_grad_()
    velocity = K * mean_field_force(theta)
    R = order_parameter(theta)
    (gradient,) = torch.autograd.grad((-K * N / 2 * R.square()).sum(), theta, retain_graph=True)
    equal(velocity, -gradient)
    (ascent,) = torch.autograd.grad(R.sum(), theta)
    rate = (ascent * velocity).sum(-1)
    lead = mean_phase(theta).unsqueeze(-1)
    equal(rate, K * R * (theta - lead).sin().square().mean(-1))
    assert (rate > 0).all()
    cosines = (theta.unsqueeze(-1) - theta.unsqueeze(-2)).cos().sum((-1, -2))
    equal(-K / (2 * N) * cosines, -K * N / 2 * R.square())


def test_coupling_by_symmetric_attention_descends_its_energy() -> None:
    theta, A = phases(2, 7, 3, 4).requires_grad_(), causal_attention(2, 3, 7)
    A = A + A.transpose(-1, -2)
    (gradient,) = torch.autograd.grad(attention_energy(theta, A).sum(), theta)
    equal(attention_force(theta, A), -gradient)


def test_on_the_circle_lohes_projected_mean_is_the_mean_field_force() -> None:
    """P10: x' = (I - x x^T) mean(x) keeps |x| = 1 and turns x by (1/N) sum sin(...)."""
    theta = phases(3, 8)
    x = torch.stack((theta.cos(), theta.sin()), -1)
    tangent = torch.stack((-theta.sin(), theta.cos()), -1)
    mean = x.mean(-2, keepdim=True)
    motion = mean - (x * mean).sum(-1, keepdim=True) * x
    equal((motion * tangent).sum(-1), mean_field_force(theta))
    equal((motion * x).sum(-1), torch.zeros_like(theta))


def test_a_delay_of_the_keys_is_a_lag_that_depends_on_the_key() -> None:
    """P11: sin(theta_{u+1} - theta_t) = sin(theta_u - theta_t - a_u), a_u = theta_u - theta_{u+1}.

    The force with delayed keys is a field of rotated ones: Im(exp(-i theta_t) A exp(i(theta - a))).
    """
    theta, A = phases(1, 9, 1, 1).flatten(), causal_attention(1, 1, 8)[0, 0]
    now, delayed = theta[:-1], theta[1:]
    lag = now - delayed
    field = torch.complex(A, torch.zeros_like(A)) @ torch.exp(1j * (now - lag))
    pulled = (torch.exp(-1j * now) * field).imag
    equal(pulled, (A * (delayed - now.unsqueeze(-1)).sin()).sum(-1))
    equal(pulled, (A * (now - now.unsqueeze(-1) - lag).sin()).sum(-1))


def test_a_positive_kernel_with_rows_of_sum_1_is_softmax_of_its_log() -> None:
    """P12: so SDPA computes it; and an RBF kernel is a dot product with a penalty on |k|^2."""
    kernel = torch.rand(6, 6, dtype=F64).tril() + torch.eye(6, dtype=F64)
    value = torch.randn(1, 6, 4, dtype=F64)
    nothing = torch.zeros(1, 6, 2, dtype=F64)
    mixed = scaled_dot_product_attention(nothing, nothing, value, attn_mask=kernel.log()[None])
    equal(mixed, kernel / kernel.sum(-1, keepdim=True) @ value)

    q, k, width = torch.randn(6, 3, dtype=F64), torch.randn(6, 3, dtype=F64), 0.8
    rbf = (-torch.cdist(q, k).square() / (2 * width**2)).exp()
    score = q @ k.T / width**2 - k.square().sum(-1) / (2 * width**2)
    equal(score.softmax(-1), rbf / rbf.sum(-1, keepdim=True))
