"""`ssa` and `ssa_as_published`: against loops and public code, locked pairs, and what is dead."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import Tensor
from torch.nn import functional as F

from phasegpt.attention._kernels import mixed, normalized
from phasegpt.core.errors import ConfigError
from phasegpt.phase import order_parameter

F64 = torch.float64
Make = Callable[..., Any]


@pytest.fixture
def layer(make_model: Make, roughen: Callable[..., Any]) -> Make:
    """layer("ssa", **options): one of C = 16, H = 2 in float64, off its initial values."""
    return lambda name="ssa", scale=0.1, **words: roughen(
        make_model(name, layers=(1,), **words).blocks[1].attn, scale
    ).double()


def weights(layer: Any, x_BTD: Tensor) -> Tensor:
    """A[B,H,T,T] of a layer, by its own means."""
    omega, time = layer._frequencies(x_BTD, 0), x_BTD.shape[1]
    seen = torch.ones(time, time, dtype=torch.bool).tril()
    r = layer.order_parameter(layer._phases(x_BTD)).mean(-1).transpose(1, 2)
    return normalized(layer.log_kernel(omega, omega, r, seen.triu()), seen)


def naive(layer: Any, x_BTD: Tensor, d_w: int, s: float) -> Tensor:
    """A from the equations, one pair at a time."""
    B, T, C = x_BTD.shape
    H, E = 2, C // 2
    omega = x_BTD @ layer.frequency.weight.T
    theta = x_BTD @ layer.oscillators.phase.weight.T
    A = torch.zeros(B, H, T, T, dtype=F64)
    for b, h, t in np.ndindex(B, H, T):
        alpha = math.log(1 + math.exp(float(layer.bandwidth[h])))
        r = 0.0
        for n in range(h * E, (h + 1) * E):
            r += abs(sum(np.exp(1j * float(theta[b, u, n])) for u in range(t + 1))) / (t + 1) / E
        for u in range(t + 1):
            apart = [float(omega[b, t, i] - omega[b, u, i]) for i in range(h * d_w, (h + 1) * d_w)]
            dw = math.sqrt(s**2 * sum(a * a for a in apart) / (2 * d_w))
            J = math.exp(-alpha * dw**2)
            threshold = float(layer.oscillators.coupling[h]) * r * J
            if dw <= threshold:
                A[b, h, t, u] = J * math.sqrt(1 - (dw / threshold) ** 2)
    return A / A.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "d_w", "s", "scale"), [("ssa", 2, 0.7, 0.1), ("ssa_as_published", 8, 4.0, 0.03)]
)
def test_weights_equal_loops_over_the_equations(
    name: str, d_w: int, s: float, scale: float, layer: Make
) -> None:
    attn, x = layer(name, scale), torch.randn(2, 9, 16, dtype=F64)
    with torch.no_grad():
        expected = naive(attn, x, d_w, s)
        torch.testing.assert_close(weights(attn, x), expected, atol=1e-10, rtol=0)
        y = mixed(expected, attn.c_v(x).unflatten(-1, (2, -1)).transpose(1, 2))
        y = attn.c_proj(y.transpose(1, 2).flatten(2))
        torch.testing.assert_close(attn(x).y, y, atol=1e-10, rtol=0)
    locked = (expected > 0).double().mean().item()
    assert 0.2 < locked < 0.5  # of all pairs, 0.56 of which are causal


def test_without_a_mask_the_outputs_are_those_of_the_public_code(layer: Make) -> None:
    with np.load(ROOT / "tests/fixtures/public/ssa.npz") as file:
        public = {k: torch.from_numpy(file[k]) for k in file.files if file[k].dtype.kind == "f"}
    attn, x = layer("ssa_as_published", n_embd=8), public["x"]
    with torch.no_grad():
        attn.bandwidth.copy_(public["alpha"])
        attn.oscillators.coupling.fill_(F.softplus(public["K"]))
        omega, theta, v = (
            (x @ public[f"W_{n}.weight"].T + public[f"W_{n}.bias"]).unflatten(-1, (2, -1))
            for n in ("omega", "theta", "v")
        )
        omega, v = omega.transpose(1, 2), v.transpose(1, 2)
        r = order_parameter(theta, dim=1).mean(-1)[..., None].expand(-1, -1, 10)  # of all tokens
        log_kernel = attn.log_kernel(omega, omega, r, torch.eye(10, dtype=torch.bool))
        y = mixed(normalized(log_kernel), v).transpose(1, 2).flatten(2)
        y = y @ public["W_o.weight"].T + public["W_o.bias"]
    # Their threshold has 1e-8 added, their rows too.
    torch.testing.assert_close(log_kernel.exp(), public["S"], atol=1e-6, rtol=0)
    torch.testing.assert_close(y, public["y"], atol=1e-6, rtol=0)
    assert ((public["S"] > 0) == log_kernel.isfinite()).all()


# --- locking ---------------------------------------------------------------------------------


def test_the_root_is_the_cosine_of_the_lag_at_which_a_pair_stays(layer: Make) -> None:
    """lag' = dw - K r J sin(lag) of two oscillators comes to rest, or the pair is not locked."""
    attn = layer(learn_coupling=False)
    torch.nn.init.constant_(attn.bandwidth, 0.3)
    alpha, K, r = F.softplus(attn.bandwidth[0]).item(), 1.3133, 0.8
    apart = torch.linspace(0, 4, 60, dtype=F64)  # from token 0, in one frequency of two
    omega = torch.stack((apart, torch.zeros(60, dtype=F64)), -1)[None, None]
    log_kernel = attn.log_kernel(
        omega[:, :, :1], omega, torch.full((1, 1, 1), r, dtype=F64),
        torch.arange(60)[None] == 0,
    )[0, 0, 0]  # fmt: skip
    dw = 0.7 * apart / 2
    J = (-alpha * dw**2).exp()
    lag = torch.zeros_like(dw)
    for _ in range(20_000):
        lag = lag + 0.01 * (dw - K * r * J * lag.sin())
    rests = (dw - K * r * J * lag.sin()).abs() < 1e-3
    assert torch.equal(rests, log_kernel[: len(dw)].isfinite())
    torch.testing.assert_close(
        log_kernel[rests].exp(), (J * lag.cos())[rests].double(), atol=2e-2, rtol=0
    )
    assert 5 < rests.sum() < 50


@pytest.mark.parametrize("width", [64, 768])
def test_at_the_start_most_pairs_lock_and_not_all(
    width: int, make_model: Make, text_ids: Make
) -> None:
    model = make_model("ssa", n_embd=width, n_head=width // 16, block_size=128)
    assert 0.4 < locked(model, text_ids(2, 128)) < 0.9


def locked(model: Any, idx: Tensor) -> float:
    """Share of pairs of different tokens that lock in layer 1."""
    seen: list[Tensor] = []
    hook = model.blocks[1].attn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(idx)
        A = weights(model.blocks[1].attn, seen[0])
    hook.remove()
    before = torch.ones(A.shape[-2:], dtype=torch.bool).tril(-1)
    return (A[..., before] > 0).double().mean().item()


def test_as_published_nothing_locks_at_256_wide_and_no_gradient_comes(
    make_model: Make, text_ids: Make
) -> None:
    model = make_model("ssa_as_published", n_embd=256, n_head=4, block_size=128)
    idx = text_ids(2, 129)
    assert locked(model, idx[:, :-1]) == 0
    attn = model.blocks[1].attn
    x = torch.randn(2, 40, 256)
    assert torch.equal(attn(x).y, attn.c_proj(attn.c_v(x)))  # every token alone
    logits = model(idx[:, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).backward()
    for name, parameter in attn.named_parameters():
        assert (parameter.grad.norm() < 1e-9) == (name in attn.dead), name
    narrow = make_model("ssa_as_published", n_embd=64, n_head=4, block_size=128)
    assert locked(narrow, idx[:, :-1]) > 0.1


@pytest.mark.parametrize(
    ("words", "few"),
    [
        ({}, False),
        ({"bandwidth": 800.0}, False),
        ({"scale": 1000.0}, True),
        ({"coupling": 1e-3}, True),
        ({"frequency_dim": None, "scale": None, "n_embd": 256}, True),
    ],
    ids=str,
)
def test_a_layer_in_which_too_few_pairs_can_lock_says_so(
    words: dict, few: bool, make_model: Make, text_ids: Make
) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = make_model("ssa", block_size=128, **words)
    said = [str(w.message) for w in said if "can lock at the start" in str(w.message)]
    assert bool(said) == few
    assert (locked(model, text_ids(2, 128)) < 1e-3) == few  # it is so


def test_the_dead_control_does_not_repeat_that_it_is(make_model: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model("ssa_as_published", n_embd=256, n_head=4)


def test_pairs_far_apart_neither_overflow_nor_stop_the_gradient(layer: Make) -> None:
    attn = layer().float()
    x = torch.randn(1, 12, 16)
    x[:, 5:] *= 1e6
    x.requires_grad_()
    attn(x).y[:, :5].square().sum().backward()
    grads = [x.grad, *(p.grad for p in attn.parameters())]
    assert all(g.isfinite().all() for g in grads)
    assert attn.oscillators.phase.weight.grad.norm() > 0


# --- the off control -------------------------------------------------------------------------


def test_without_locking_it_is_attention_by_a_gaussian_of_the_distance(layer: Make) -> None:
    """A ~ J, which is softmax of a dot product less a square of the key."""
    attn, x = layer(locking=False), torch.randn(2, 12, 16, dtype=F64)
    assert not attn.has_phases
    assert attn(x, return_phase=True).phase is None
    assert attn.trajectory(x) is None
    alpha = (F.softplus(attn.bandwidth) * 0.49 / 4).view(-1, 1, 1)
    omega = attn.frequency(x).unflatten(-1, (2, 2)).transpose(1, 2)
    v = attn.c_v(x).unflatten(-1, (2, -1)).transpose(1, 2)
    q = torch.cat((2 * alpha * omega, -alpha.expand(2, 2, 12, 1)), -1)
    k = torch.cat((omega, omega.square().sum(-1, keepdim=True)), -1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    y = attn.c_proj(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attn(x).y, y, atol=1e-12, rtol=0)


def test_locking_of_unlimited_strength_is_the_off_control(layer: Make) -> None:
    strong, off = layer(coupling=1e5), layer(locking=False)
    off.load_state_dict({k: v for k, v in strong.state_dict().items() if k in off.state_dict()})
    x = torch.randn(2, 12, 16, dtype=F64)
    torch.testing.assert_close(strong(x).y, off(x).y, atol=1e-8, rtol=0)
    weak = layer()
    weak.load_state_dict({**strong.state_dict(), "oscillators.coupling": torch.ones(2)})
    assert (weak(x).y - off(x).y).abs().max() > 1e-2


@pytest.mark.parametrize(
    "words", [{"locking": False, "coupling": 2.0}, {"init": "gpt2", "theta_std": 1.0}]
)
def test_options_that_could_do_nothing_are_refused(words: dict[str, Any]) -> None:
    from phasegpt.attention.ssa import SsaConfig

    with pytest.raises(ConfigError, match="does nothing while"):
        SsaConfig(**words).check_idle()


# --- positions and memory --------------------------------------------------------------------


def test_rotary_distances_depend_on_how_far_back_and_differ_by_head(layer: Make) -> None:
    attn = layer(positions="rope", locking=False)
    x = torch.randn(1, 1, 16, dtype=F64).expand(1, 30, 16)  # one token again and again
    omega = attn._frequencies(x, 0)
    J = attn.log_kernel(omega, omega, None, torch.eye(30, dtype=torch.bool))[0]
    for lag in (1, 7, 20):
        along = J.diagonal(-lag, dim1=1, dim2=2)
        torch.testing.assert_close(along, along[:, :1].expand_as(along), atol=1e-12, rtol=0)
    shape = J[:, -1] / J[:, -1].min(-1, keepdim=True).values
    assert (shape[0] - shape[1]).abs().max() > 0.1
    torch.testing.assert_close(attn._frequencies(x[:, :5], 7), omega[:, :, 7:12])


def test_an_odd_number_of_frequencies_cannot_turn(make_model: Make) -> None:
    with pytest.raises(ConfigError, match="frequency_dim is 3 and must be even"):
        make_model("ssa", positions="rope", frequency_dim=3)


def test_decoding_remembers_values_and_frequencies_and_running_sums(
    make_model: Make, text_ids: Make
) -> None:
    model = make_model("ssa")
    cache = model.new_cache()
    model(text_ids(3, 11), cache=cache)
    (part,) = cache.parts(1)
    assert part.keys[0, :, :11].numel() + part.values[0, :, :11].numel() == 11 * (16 + 2 * 2)
    assert sum(x[:, 0].numel() for x in part.state[:2]) == 2 * 16
    assert part.keys.element_size() == part.values.element_size() == 4
    assert part.phases is None
    with pytest.raises(ConfigError, match="running sums cannot be cropped"):
        cache.crop(5)


def test_a_table_too_large_for_a_cpu_is_refused_by_name(make_model: Make) -> None:
    layer = make_model("ssa", n_embd=4, block_size=20_000).blocks[0].attn
    with pytest.raises(ConfigError, match=r"attention=ssa .*3,200,000,000 bytes"):
        layer(torch.zeros(1, 20_000, 4))


@pytest.mark.parametrize("bandwidth", [1e-3, 1.3133, 800.0])
def test_a_bandwidth_begins_as_its_option_says(bandwidth: float, make_model: Any) -> None:
    layer = make_model("ssa", bandwidth=bandwidth).blocks[1].attn
    found = torch.nn.functional.softplus(layer.bandwidth)
    torch.testing.assert_close(found, torch.full_like(found, bandwidth), rtol=1e-4, atol=0)
