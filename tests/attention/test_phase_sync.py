"""`phase_sync`: causal coupling over tokens in constant memory."""

from collections.abc import Callable

import pytest
import torch

from phasegpt import ops
from phasegpt.attention._cache import LayerCache
from phasegpt.attention.phase_sync import PhaseSync
from phasegpt.core.errors import ConfigError
from phasegpt.model.gpt import GPT
from phasegpt.phase.steering import Perturbation

F64 = torch.float64


def phase_sync(model: GPT, layer: int = 0) -> PhaseSync:
    attention = model.blocks[layer].attn
    assert isinstance(attention, PhaseSync)
    return attention


# --- the causal layer ------------------------------------------------------------------------


def layer_of(make_model: Callable, roughen: Callable, **words: object) -> PhaseSync:
    model = make_model("phase_sync", n_layer=1, n_embd=12, n_head=3, num_oscillators=5, **words)
    return roughen(phase_sync(model).double(), 0.5)


@pytest.mark.parametrize("forget", [None, 0.7])
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_the_layer_equals_a_naive_loop_over_every_prefix(
    positions: str, forget: float | None, make_model: Callable, roughen: Callable
) -> None:
    layer = layer_of(make_model, roughen, positions=positions, forget=forget, steps=4, dt=0.3)
    x, osc = torch.randn(2, 9, 12, dtype=F64), layer.oscillators
    B, T, _ = x.shape
    H, N = osc.omega.shape
    turn = torch.zeros(T, 1, N, dtype=F64)
    if positions == "rope":
        nu = 10_000.0 ** (-torch.arange(N, dtype=F64) / N)
        turn = (torch.arange(T, dtype=F64).view(T, 1) * nu).unsqueeze(1)
    decay = torch.ones(H, N, dtype=F64)
    if forget is not None:
        decay = layer.forget_logit.sigmoid().view(H, N)
    with torch.no_grad():
        theta = (x @ osc.phase.weight.T + osc.phase.bias).view(B, T, H, N) + turn
        for _ in range(4):
            new = torch.empty_like(theta)
            for t in range(T):
                weight = torch.stack([decay ** (t - u) for u in range(t + 1)])
                pull = (theta[:, : t + 1] - theta[:, t : t + 1]).sin()
                force = (weight * pull).sum(1) / weight.sum(0)
                new[:, t] = theta[:, t] + 0.3 * (osc.omega + osc.coupling.view(H, 1) * force)
            theta = new
        read = (theta - turn).flatten(2)
        lifted = torch.cat((read.cos(), read.sin()), -1)
        expected = lifted @ layer.c_proj.weight.T + layer.c_proj.bias
        out = layer(x, return_phase=True)
    torch.testing.assert_close(out.y, expected, rtol=0, atol=1e-11)
    # Phases match up to whole turns.
    found, naive = torch.exp(1j * out.phase.theta), torch.exp(1j * theta)
    torch.testing.assert_close(found, naive, rtol=0, atol=1e-11)


def test_R_of_a_channel_is_over_its_prefix(make_model: Callable, roughen: Callable) -> None:
    phase = layer_of(make_model, roughen)(torch.randn(2, 9, 12, dtype=F64), return_phase=True).phase
    assert phase.R.shape == phase.theta.shape == (2, 9, 3, 5)
    for t in range(9):
        expected = torch.exp(1j * phase.theta[:, : t + 1]).mean(1).abs()
        torch.testing.assert_close(phase.R[:, t], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(phase.R[:, 0], torch.ones_like(phase.R[:, 0]), rtol=0, atol=1e-12)


def test_R_of_a_forgetting_channel_has_the_weights_of_its_coupling(
    make_model: Callable, roughen: Callable
) -> None:
    layer = layer_of(make_model, roughen, forget=0.8)
    theta = torch.randn(2, 9, 3, 5, dtype=F64, requires_grad=True)
    R, decay = layer.order_parameter(theta), layer.forget_logit.sigmoid().view(3, 5)
    for t in (0, 4, 8):
        weight = torch.stack([decay ** (t - u) for u in range(t + 1)])
        mean = (weight * torch.exp(1j * theta[:, : t + 1])).sum(1) / weight.sum(0)
        torch.testing.assert_close(R[:, t], mean.abs(), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(layer.order_parameter, (theta,))


def test_forgetting_starts_at_the_value_asked_for_and_is_learned(
    make_model: Callable, text_ids: Callable
) -> None:
    model = make_model("phase_sync", forget=0.9, layers=(1,))
    forget = phase_sync(model, 1).forget_logit
    torch.testing.assert_close(forget.sigmoid(), torch.full_like(forget, 0.9))
    model(text_ids(2, 30)).logits.square().sum().backward()
    assert forget.grad.abs().min() > 0
    assert set(PhaseSync.lr_factors) == {
        name for name, _ in phase_sync(model, 1).named_parameters() if not name.startswith("c_proj")
    }
    assert phase_sync(make_model("phase_sync")).forget_logit is None


def test_forgetting_weighs_recent_tokens_more(make_model: Callable) -> None:
    x = torch.randn(1, 40, 16, dtype=F64)
    moved = x.clone()
    moved[:, 0] += 3
    effect = {}
    for forget in (None, 0.5):
        layer = phase_sync(make_model("phase_sync", forget=forget)).double()
        effect[forget] = (layer(x).y - layer(moved).y)[:, -1].abs().max().item()
    assert effect[0.5] < 1e-6 * effect[None]


def memory(cache: LayerCache) -> int:
    assert cache.keys is None
    assert cache.values is None
    return sum(part.numel() for part in cache.state)


@pytest.mark.parametrize("forget", [None, 0.8])
def test_decode_memory_does_not_grow_with_the_text(
    forget: float | None, make_model: Callable, text_ids: Callable
) -> None:
    model, idx = make_model("phase_sync", forget=forget), text_ids(2, 60)
    cache, sizes = model.new_cache(), set()
    for token in idx.split(1, dim=1):
        model(token, cache=cache)
        sizes |= {memory(layer) for layer in cache.layers}
    channels, steps, batch = 2 * 32, 10, 2
    assert sizes == {2 * steps * batch * channels + channels}
    assert cache.length == 60


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_forgetting_layer_decodes_with_the_cache(
    positions: str, make_model: Callable, text_ids: Callable, roughen: Callable
) -> None:
    model = make_model("phase_sync", forget=0.8, positions=positions, dtype=F64)
    roughen(model)
    idx, cache = text_ids(2, 20), model.new_cache()
    parts = [model(piece, cache=cache).logits for piece in idx.split([9, 1, 1, 7, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(idx).logits, rtol=0, atol=1e-11)


def test_without_steps_decoding_still_works(make_model: Callable, text_ids: Callable) -> None:
    model, idx = make_model("phase_sync", steps=0, positions="rope"), text_ids(2, 12)
    cache = model.new_cache()
    parts = [model(token, cache=cache).logits for token in idx.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(idx).logits, rtol=0, atol=1e-5)


def test_without_coupling_no_token_sees_another(make_model: Callable) -> None:
    layer = phase_sync(make_model("phase_sync", coupling=0.0))
    x = torch.randn(1, 9, 16)
    order = torch.randperm(9)
    torch.testing.assert_close(layer(x).y[:, order], layer(x[:, order]).y, rtol=0, atol=1e-6)
    coupled = phase_sync(make_model("phase_sync"))
    assert (coupled(x).y[:, order] - coupled(x[:, order]).y).abs().max() > 1e-4


def test_noise_and_jitter_drive_every_step(make_model: Callable, roughen: Callable) -> None:
    layer = layer_of(make_model, roughen, steps=3)
    x, osc = torch.randn(2, 6, 12, dtype=F64), layer.oscillators
    noise, jitter = torch.randn(3, 2, 6, 3, 5, dtype=F64), torch.randn(2, 3, 5, dtype=F64)
    theta = osc.initial_phases(x)
    coupling = osc.coupling.repeat_interleave(5)
    for s in range(3):
        step = ops.kuramoto_scan(
            theta.flatten(2), osc.omega.flatten(), coupling, steps=1, dt=0.1
        ).theta
        theta = step.view_as(theta) + 0.1 * osc.omega * jitter.unsqueeze(1) + noise[s]
    found = layer(x, perturbation=Perturbation(noise, jitter), return_phase=True).phase.theta
    torch.testing.assert_close(found, theta, rtol=0, atol=1e-12)


def test_a_perturbation_with_a_cache_is_refused(make_model: Callable, roughen: Callable) -> None:
    layer = layer_of(make_model, roughen, steps=3)
    noise, jitter = torch.zeros(3, 2, 6, 3, 5, dtype=F64), torch.zeros(2, 3, 5, dtype=F64)
    with pytest.raises(ConfigError, match="no perturbation with a cache"):
        layer(torch.randn(2, 6, 12, dtype=F64), cache=LayerCache(),
              perturbation=Perturbation(noise, jitter))  # fmt: skip
