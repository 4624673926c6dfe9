"""`torus`: one Kuramoto step towards the phases that attention retrieves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive.torus import torus as naive
from torch.nn import functional as F

from phasegpt.attention._cache import LayerCache
from phasegpt.attention.torus import Torus, lifted
from phasegpt.core.errors import ConfigError

F64 = torch.float64
POSITIONS = pytest.mark.parametrize("positions", ["learned", "rope"])


@pytest.fixture
def make(make_model: Callable, roughen: Callable) -> Callable[..., Torus]:
    """make(readout="mean"): a layer of 3 heads of width 4 with moved weights, in float64."""

    def build(scale: float = 0.3, **words: Any) -> Torus:
        model = make_model("torus", n_layer=1, n_embd=12, n_head=3, **words)
        return roughen(model.blocks[0].attn.double(), scale)

    return build


@POSITIONS
@pytest.mark.parametrize("readout", ["tangent", "mean"])
def test_the_layer_equals_loops_written_from_the_equations(
    positions: str, readout: str, make: Callable
) -> None:
    layer, x = make(positions=positions, readout=readout), torch.randn(9, 12, dtype=F64)
    with torch.no_grad():
        out = layer(x.unsqueeze(0), return_phase=True)
        y, theta = naive(
            x, layer.state_dict(), 3, drift=positions == "rope", theta_std=0.4,
            mean=readout == "mean",
        )  # fmt: skip
    torch.testing.assert_close(out.y[0], y, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.phase.theta[0].flatten(1), theta, rtol=0, atol=1e-10)


def test_the_force_is_R_times_the_sine_of_the_angle_to_the_mean(make: Callable) -> None:
    layer, x = make(positions="rope"), torch.randn(2, 9, 12, dtype=F64)
    with torch.no_grad():
        theta, gate = layer._initial_phases(x), layer._gate(x)
        _, mean = layer._mean(theta, gate, None)
        Z = torch.complex(*mean.chunk(2, dim=-1))
        force = Z.abs() * (Z.angle() - theta.transpose(1, 2)).sin()
        torch.testing.assert_close(layer._force(theta, gate, None), force, rtol=0, atol=1e-12)
    assert Z.abs().max() <= 1 + 1e-12


def test_the_layer_makes_one_call_of_attention(make: Callable, monkeypatch: Any) -> None:
    calls = []
    real = F.scaled_dot_product_attention

    def counted(q: Any, k: Any, v: Any, **words: Any) -> Any:
        calls.append((q.shape[-1], v.shape[-1], words["is_causal"], words["attn_mask"]))
        return real(q, k, v, **words)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    make(positions="rope")(torch.randn(1, 9, 12, dtype=F64))
    assert calls == [(8, 8, True, None)]


def test_a_shift_of_all_phases_changes_no_score_and_no_force(make: Callable) -> None:
    layer, x = make(positions="rope"), torch.randn(1, 9, 12, dtype=F64)
    with torch.no_grad():
        theta, gate = layer._initial_phases(x), layer._gate(x)
        forces = [layer._force(theta + shift, gate, None) for shift in (0.0, 0.7)]
    torch.testing.assert_close(*forces, rtol=0, atol=1e-12)


def test_the_mean_readout_moves_no_phase_and_has_no_step_to_learn(make: Callable) -> None:
    layer, x = make(readout="mean"), torch.randn(1, 40, 12, dtype=F64)
    path = layer.trajectory(x)
    assert torch.equal(path.theta, path.theta0)
    assert (path.coupling == 0).all()
    assert "oscillators.coupling" not in dict(layer.named_parameters())
    for key in ("coupling", "learn_coupling"):
        with pytest.raises(ConfigError, match=key):
            Torus.Config.parse({"readout": "mean", key: 0}).check_idle()


@pytest.mark.parametrize("width", [32, 128, 768])
def test_phases_have_the_spread_asked_for_at_any_width(width: int, make_model: Callable) -> None:
    layer = make_model("torus", n_layer=1, n_embd=width, theta_std=0.9).blocks[0].attn
    x = F.layer_norm(torch.randn(4, 50, width), (width,))
    assert layer._initial_phases(x).std().item() == pytest.approx(0.9, rel=0.05)


@pytest.mark.parametrize("heads", [8, 4, 2])  # 16, 32 and 64 wide
def test_a_fresh_layer_leaves_attention_for_other_tokens_at_any_width(
    heads: int, make_model: Callable
) -> None:
    words = {"n_layer": 1, "n_embd": 128, "n_head": heads, "positions": "rope"}
    layer = make_model("torus", **words).blocks[0].attn
    x = F.layer_norm(torch.randn(2, 64, 128), (128,))
    with torch.no_grad():
        theta = layer._initial_phases(x).transpose(1, 2)
        own = lifted(theta)
        q, k = layer._features(own, own, layer._gate(x))
        scores = q @ k.mT
        A = scores.masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf).softmax(-1)
    assert A.diagonal(dim1=-2, dim2=-1)[..., 32:].mean() < 0.3
    if heads == 2:
        with torch.no_grad():
            layer.tau.fill_(4 * 64**-0.5)
            q, k = layer._features(own, own, layer._gate(x))
        A = (q @ k.mT).masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf).softmax(-1)
        assert A.diagonal(dim1=-2, dim2=-1)[..., 32:].mean() > 0.95


@pytest.mark.parametrize("name", ["torus", "fsn"])
def test_phases_of_all_layers_begin_with_the_spread(name: str, make_model: Callable) -> None:
    model = make_model(name, n_layer=4, n_embd=128, n_head=4, positions="rope")
    spreads = []
    for block in model.blocks:
        block.attn.phase.register_forward_hook(
            lambda _, __, theta: spreads.append(theta.flatten(0, 1).std(0).mean().item())
        )
    with torch.no_grad():
        model(torch.randint(model.config.vocab_size, (8, 32)))
    assert all(0.3 < spread < 0.45 for spread in spreads), spreads


# --- the decode cache ------------------------------------------------------------------------


def bytes_per_token(cache: LayerCache) -> int:
    buffers = cache._buffers or ()
    return sum(b[0, :, 0].numel() * b.element_size() for b in buffers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_of_a_token_is_its_angles_alone(
    dtype: torch.dtype, make_model: Callable, text_ids: Callable
) -> None:
    model, idx = make_model("torus", positions="rope").to(dtype), text_ids(2, 12)
    cache = model.new_cache()
    for token in idx.split(1, dim=1):
        model(token, cache=cache)
    for part in cache.layers:
        assert part.angles
        assert part.values is None
        assert part.state is None
        assert part.keys.dtype == torch.float32
        assert bytes_per_token(part) == 4 * 16
    softmax = make_model("softmax", positions="rope")
    softmax(idx, cache=(other := softmax.new_cache()))
    assert bytes_per_token(other.layers[0]) == 2 * 4 * 16


def test_a_cache_of_angles_takes_no_keys(make: Callable) -> None:
    cache, layer = LayerCache(), make()
    layer(torch.randn(1, 3, 12, dtype=F64), cache=cache)
    with pytest.raises(ConfigError, match="the cache holds keys of 1 rows, 3 heads and width 4"):
        cache.update(*torch.zeros(2, 1, 3, 1, 4, dtype=F64))


def test_copies_of_split_rows_are_clean_again_after_a_commit(
    make_model: Callable, text_ids: Callable
) -> None:
    model, idx = make_model("torus"), text_ids(2, 10)
    model(idx[:, :8], cache=(cache := model.new_cache()))
    cache.split()
    for part in cache.layers:
        part.edit = lambda part: part.phases[2:, :, -3:].add_(1.0)
    with torch.no_grad():
        logits = model(idx[:, 8:9], cache=cache).logits
    assert not torch.equal(logits[:2], logits[2:])
    cache.commit(3)
    for part in cache.layers:
        assert torch.equal(part.phases[:2], part.phases[2:])


def test_phases_with_a_cache_are_refused(make: Callable) -> None:
    with pytest.raises(ConfigError, match="no R with a cache"):
        make()(torch.randn(1, 3, 12, dtype=F64), cache=LayerCache(), return_phase=True)
