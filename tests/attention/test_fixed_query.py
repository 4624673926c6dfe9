"""`fixed_query`: its two stages against loops, against public code, and the laws it rests on."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import Tensor

from phasegpt.attention._kernels import causal, mixed, normalized
from phasegpt.attention.fixed_query import direction, on_sphere, readout
from phasegpt.core.errors import ConfigError

F64 = torch.float64
B, H, T, E, D = 2, 2, 9, 4, 5


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [B,H,T,E] and anchors [H,T,D] on the sphere."""
    q, k, v = torch.randn(3, B, H, T, E, dtype=F64)
    return q, 2 * k, v, on_sphere(torch.randn(H, T, D, dtype=F64))


def naive(
    q: Tensor, k: Tensor, v: Tensor, anchors: Tensor, p: float, pulls: Any, reads: Any
) -> tuple[Tensor, Tensor]:
    """x* and y from the equations, one number at a time; `pulls(b,t,u)` and `reads` are masks."""
    star, y = torch.zeros(B, H, T, D, dtype=F64), torch.zeros(B, H, T, E, dtype=F64)
    for b, h, t in np.ndindex(B, H, T):
        unit = [a / math.sqrt(sum(float(x) ** 2 for x in a)) for a in anchors[h]]
        field = torch.zeros(D, dtype=F64)
        for u in range(T):
            if pulls(b, t, u):
                score = sum(float(q[b, h, t, i] * k[b, h, u, i]) for i in range(E)) / math.sqrt(E)
                field += math.log(1 + math.exp(score)) * unit[u]
        star[b, h, t] = field / math.sqrt(float(field @ field))
        kernel = [(1 + float(star[b, h, t] @ a)) ** p for a in unit]
        seen = [u for u in range(T) if reads(b, t, u)]
        for u in seen:
            y[b, h, t] += kernel[u] / sum(kernel[w] for w in seen) * v[b, h, u]
    return star, y


@pytest.mark.parametrize("p", [0.0, 1.0, 2.5, 4.0])
def test_both_stages_equal_loops_over_the_equations(p: float) -> None:
    q, k, v, anchors = problem()
    seen = causal(T, T, q.device)
    star = direction(q, k, anchors, seen)
    y = mixed(readout(star, anchors, torch.full((H,), p), seen), v)
    expected = naive(q, k, v, anchors, p, lambda b, t, u: u <= t, lambda b, t, u: u <= t)
    torch.testing.assert_close((star, y), expected, atol=1e-10, rtol=0)


def test_without_a_mask_every_token_sees_all_but_what_is_left_out() -> None:
    q, k, v, anchors = problem()
    real = torch.arange(T) < torch.tensor([[T], [6]])  # row 1 is padded
    star = direction(q, k, anchors, real[:, None, None, :])
    y = mixed(readout(star, anchors, torch.ones(H)), v)  # as published: the readout sees padding
    expected = naive(q, k, v, anchors, 1.0, lambda b, t, u: real[b, u], lambda b, t, u: True)
    torch.testing.assert_close((star, y), expected, atol=1e-10, rtol=0)


@pytest.fixture(scope="module")
def public() -> dict[str, Tensor]:
    """Computed once with the authors' code, of the commit that is stored beside."""
    with np.load(ROOT / "tests/fixtures/public/fixed_query.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file.files if file[k].dtype.kind in "fb"}


@pytest.mark.parametrize("p", [1, 4])
@pytest.mark.parametrize("form", ["causal", "padded"])
def test_weights_and_outputs_are_those_of_the_public_code(
    form: str, p: int, public: dict[str, Tensor]
) -> None:
    x, anchors = public["x"], public["anchors"][:, : public["x"].shape[1]]
    q, k, v = (
        (x @ public[f"W_{name}.weight"].T).unflatten(-1, (2, -1)).transpose(1, 2) for name in "qkv"
    )
    time = x.shape[1]
    seen = causal(time, time, x.device)
    pulls, reads = (seen, seen) if form == "causal" else (~public["padding"][:, None, None], None)
    A = readout(direction(q, k, anchors, pulls), anchors, torch.full((2,), float(p)), reads)
    y = mixed(A, v).transpose(1, 2).flatten(2) @ public["W_o.weight"].T + public["W_o.bias"]
    torch.testing.assert_close(A, public[f"{form}_p{p}_A"], atol=1e-12, rtol=0)
    torch.testing.assert_close(y, public[f"{form}_p{p}_y"], atol=1e-12, rtol=0)


# --- identities ------------------------------------------------------------------------------


def test_any_row_normalised_kernel_is_a_softmax_of_its_logarithm() -> None:
    kernel, seen = torch.rand(B, H, T, T, dtype=F64), causal(T, T, torch.device("cpu"))
    kernel[..., 1:, 0] = 0  # no weight at all
    weights = kernel * seen
    torch.testing.assert_close(
        normalized(kernel.log(), seen), weights / weights.sum(-1, keepdim=True), atol=1e-15, rtol=0
    )


def test_at_p_1_attention_is_linear_in_the_resting_point() -> None:
    q, k, v, anchors = problem()
    seen = causal(T, T, q.device)
    star = direction(q, k, anchors, seen)
    a = torch.nn.functional.normalize(anchors, dim=-1).expand(B, H, T, D)
    moments = torch.einsum("bhue,bhud->bhued", v, a).cumsum(2)
    above = v.cumsum(2) + torch.einsum("bhted,bhtd->bhte", moments, star)
    below = torch.arange(1, T + 1) + (star * a.cumsum(2)).sum(-1)
    torch.testing.assert_close(
        mixed(readout(star, anchors, torch.ones(H), seen), v), above / below[..., None],
        atol=1e-13, rtol=0,
    )  # fmt: skip


def test_at_p_1_no_key_gets_more_than_its_bound() -> None:
    """1 + x.a is at most 2, and the mean of a kernel over a long prefix is near 1."""
    q, k = torch.randn(2, 1, 1, 400, E, dtype=F64)
    anchors = on_sphere(torch.randn(1, 400, 16, dtype=F64))
    seen = causal(400, 400, torch.device("cpu"))
    star = direction(q, k, anchors, seen)
    last = readout(star, anchors, torch.ones(1), seen)[0, 0, -1] * 400
    sharp = readout(star, anchors, torch.full((1,), 4.0), seen)[0, 0, -1] * 400
    assert last.max() < 2.1 < sharp.max()


def test_the_oscillator_flows_to_its_resting_point_by_the_settling_law() -> None:
    """tan(angle to h / 2) decays as exp(-|h| time); x* = h / |h| from anywhere but opposite."""
    q, k, _, anchors = problem()
    star = direction(q, k, anchors)
    unit = torch.nn.functional.normalize(anchors, dim=-1)
    scores = torch.einsum("bhte,bhue->bhtu", q, k) / math.sqrt(E)
    h = torch.einsum("bhtu,hud->bhtd", torch.log1p(scores.exp()), unit)
    x = torch.nn.functional.normalize(torch.randn(B, H, T, D, dtype=F64), dim=-1)

    def half_angle(x: Tensor) -> Tensor:
        return torch.tan(torch.acos((x * star).sum(-1)) / 2)

    def velocity(x: Tensor) -> Tensor:
        return h - (x * h).sum(-1, keepdim=True) * x

    speed, start, dt = h.norm(dim=-1), half_angle(x), 1e-3
    for _ in range(200):  # midpoint steps
        x = x + dt * velocity(x + dt / 2 * velocity(x))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(B, H, T, dtype=F64), atol=1e-4, rtol=0)
    x = torch.nn.functional.normalize(x, dim=-1)
    torch.testing.assert_close(half_angle(x), start * (-200 * dt * speed).exp(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("free", [False, True])
def test_the_length_of_an_anchor_counts_where_it_may_leave_the_sphere(
    free: bool, make_model: Any, roughen: Any
) -> None:
    layer = roughen(make_model("fixed_query", free_anchors=free)).blocks[1].attn.double()
    x = torch.randn(2, 12, 16, dtype=F64)
    with torch.no_grad():
        before = layer(x).y
        layer.anchors[:, 3] *= 2
        moved = (layer(x).y - before).abs().amax((0, 2))
    assert moved[:3].max() == 0  # which do not see it
    assert (moved[4:] > 1e-6).all() if free else moved.max() < 1e-14


@pytest.mark.parametrize(("dim", "expected"), [(2, 1 / 6), (3, 0.5 * (1 - math.cos(math.pi / 6)))])
def test_anchors_begin_uniform_on_the_sphere(
    dim: int, expected: float, make_model: Callable[..., Any]
) -> None:
    """A random start is within 30 degrees of the antipode with the probability of its cap."""
    anchors = make_model("fixed_query", block_size=8192, sphere_dim=dim).blocks[0].attn.anchors
    torch.testing.assert_close(anchors.norm(dim=-1), torch.ones(2, 8192))
    opposite = torch.full((dim,), dim**-0.5)
    share = ((anchors @ opposite) < -math.cos(math.pi / 6)).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / 2 / 8192))


# --- the layer -------------------------------------------------------------------------------


def test_anchors_may_leave_the_sphere_and_count_as_if_they_had_not(
    make_model: Callable[..., Any], roughen: Callable[[Any], Any]
) -> None:
    layer = roughen(make_model("fixed_query").blocks[0].attn).double()
    x = torch.randn(2, 9, 16, dtype=F64)
    before = layer(x).y
    layer.anchors.data *= torch.rand(2, 64, 1) + 0.5
    torch.testing.assert_close(layer(x).y, before, atol=1e-12, rtol=0)


def test_a_learned_p_is_alive_and_acts_as_0_below_0(
    make_model: Callable[..., Any], text_ids: Callable[..., Any]
) -> None:
    model = make_model("fixed_query", learn_p=True)
    logits = []
    for p in (4.0, 0.0, -3.0):
        for block in model.blocks:
            torch.nn.init.constant_(block.attn.p, p)
        model.zero_grad()
        logits.append(model(text_ids(2, 40)).logits)
        logits[-1].square().mean().backward()
        assert (model.blocks[1].attn.p.grad != 0).all()  # so that it can come back
    assert torch.equal(logits[1], logits[2])


def test_decoding_remembers_two_numbers_a_channel_and_token(
    make_model: Callable[..., Any], text_ids: Callable[..., Any]
) -> None:
    model = make_model("fixed_query")
    cache = model.new_cache()
    model(text_ids(3, 11), cache=cache)
    (part,) = cache.parts(1)
    assert part.state is None
    held = part.keys[0, :, :11].numel() + part.values[0, :, :11].numel()
    assert held == 11 * 2 * model.config.n_embd
    assert part.keys.element_size() == 4


def test_a_pull_of_nothing_is_the_mean_and_its_gradients_are_finite() -> None:
    q = torch.full((1, 1, T, E), 10.0, requires_grad=True)
    anchors = torch.randn(1, T, D, requires_grad=True)
    star = direction(q, torch.full((1, 1, T, E), -50.0), anchors)  # softplus(-1000)
    A = readout(star, anchors, torch.ones(1))
    torch.testing.assert_close(A, torch.full_like(A, 1 / T))
    A[..., 0].sum().backward()
    assert q.grad.isfinite().all() and anchors.grad.isfinite().all()


def test_a_table_too_large_for_a_cpu_is_refused_before_it_is_made(
    make_model: Callable[..., Any],
) -> None:
    layer = make_model("fixed_query", n_embd=4, block_size=20_000).blocks[0].attn
    with (
        pytest.raises(ConfigError, match=r"fixed_query.*3,200,000,000 bytes.*model\.block_size"),
        torch.inference_mode(),
    ):
        layer(torch.zeros(1, 20_000, 4))
