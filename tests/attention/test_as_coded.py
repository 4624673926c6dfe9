"""`as_coded`: the original PhaseGPT's layer, which sees the future."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from phasegpt.attention._cache import LayerCache
from phasegpt.attention.as_coded import AsCoded
from phasegpt.core.composition import compose
from phasegpt.core.errors import ConfigError
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.model.migration import as_hashed, migrated

F64 = torch.float64
SEED_SIZE = {
    **{"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 512, "vocab_size": 65},
}


def as_coded(model: GPT) -> AsCoded:
    attention = model.blocks[0].attn
    assert isinstance(attention, AsCoded)
    return attention


@pytest.fixture
def leaky(make_model: Callable) -> Callable[..., GPT]:
    """make_model for attention=as_coded, with its warning kept quiet."""

    def make(**words: object) -> GPT:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*sees the future")
            return make_model("as_coded", **words)

    return make


def test_the_seeds_models_have_exactly_the_seeds_parameter_counts(leaky: Callable) -> None:
    with torch.device("meta"):
        softmax = GPT(GPTConfig(**SEED_SIZE), seed=0)
        as_coded = leaky(**SEED_SIZE, layers=(7,))
    assert softmax.num_parameters() == 85_056_000
    assert as_coded.num_parameters() == 83_285_004
    embeddings = (65 + 512) * 768
    assert softmax.num_parameters(non_embedding=False) == 85_056_000 + embeddings


def naive_as_coded(layer: AsCoded, x: Tensor) -> Tensor:
    """The original code's loop: all token pairs, sin(theta_i - theta_j), wrap at every step."""
    osc = layer.oscillators
    B, T, _ = x.shape
    H, N = osc.omega.shape
    theta = math.pi * (x @ osc.phase.weight.T + osc.phase.bias).view(B, T, H, N).tanh()
    for _ in range(layer.options.steps):
        new = torch.empty_like(theta)
        for i in range(T):
            away = (theta[:, i : i + 1] - theta).sin().mean(1)
            step = osc.omega + osc.coupling.view(H, 1) * away
            new[:, i] = theta[:, i] + layer.options.dt * step
        theta = torch.atan2(new.sin(), new.cos())
    return theta.flatten(2) @ layer.c_proj.weight.T + layer.c_proj.bias


def test_as_coded_equals_a_naive_loop_over_all_token_pairs(
    leaky: Callable, roughen: Callable
) -> None:
    model = leaky(n_layer=1, n_embd=12, n_head=3, num_oscillators=5, dt=0.2)
    layer = roughen(as_coded(model).double(), 0.5)
    x = torch.randn(2, 9, 12, dtype=F64)
    torch.testing.assert_close(layer(x).y, naive_as_coded(layer, x), rtol=0, atol=1e-10)
    with torch.no_grad():  # one step of the layer did wrap something
        theta = math.pi * layer.oscillators.initial_phases(x).tanh()
        assert theta.abs().max() > 3


def test_as_coded_drives_tokens_apart_and_phase_sync_pulls_them_together(
    leaky: Callable, make_model: Callable
) -> None:
    x = torch.randn(1, 16, 16, dtype=F64)
    R = {}
    for name, model, scale in (
        ("as coded", leaky(n_layer=1, omega_std=0.0, steps=30, theta_std=0.1), 1.0),
        ("causal", make_model("phase_sync", n_layer=1, omega_std=0.0, steps=30), 0.5),
    ):
        layer = model.blocks[0].attn.double()
        start = layer.oscillators.initial_phases(scale * x)
        start = math.pi * start.tanh() if name == "as coded" else start
        end = layer(scale * x, return_phase=True).phase.theta
        R[name] = [torch.exp(1j * theta).mean(1).abs().mean().item() for theta in (start, end)]
    assert R["as coded"][1] < 0.6 * R["as coded"][0]
    assert R["causal"][1] > 1.2 * R["causal"][0]


def test_as_coded_sees_the_future_and_says_so(
    make_model: Callable, text_ids: Callable, leaky: Callable
) -> None:
    model, idx = leaky(layers=(1,)), text_ids(1, 20)
    changed = idx.clone()
    changed[:, 12:] = (idx[:, 12:] + 1) % 65
    difference = (model(idx).logits - model(changed).logits)[:, :12].abs().max()
    assert difference > 1e-6
    assert model.leaky
    for honest in (make_model(), make_model("phase_sync"), make_model("kuramoto")):
        assert not honest.leaky


def test_as_coded_warns_once(make_model: Callable, text_ids: Callable) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make_model("as_coded", layers=(1,))
        model(text_ids(1, 8))
        model(text_ids(1, 8))
    (warning,) = (w for w in caught if "sees the future" in str(w.message))
    assert "leaky" in str(warning.message)


def test_as_coded_refuses_to_decode_with_a_cache(leaky: Callable) -> None:
    model = leaky(layers=(0,))
    with pytest.raises(ConfigError, match=r"sees the future.*cannot decode with a cache"):
        model.new_cache()
    with pytest.raises(ConfigError, match="cannot decode with a cache"):
        as_coded(model)(torch.randn(1, 3, 16), cache=LayerCache())


def test_as_coded_refuses_rotary_positions(leaky: Callable) -> None:
    with pytest.raises(ConfigError, match="positions=learned"):
        leaky(positions="rope")


# --- how it was written before ---------------------------------------------------------------

IDLE = {"forget": None, "noise_sigma": 0.0, "frequency_jitter": 0.0}


@pytest.mark.parametrize(("name", "other"), [("name", {}), ("partner", {"name": "hybrid"})])
def test_the_old_spelling_is_migrated_and_hashed_as_it_was(name: str, other: dict) -> None:
    for switch, today in ((True, "as_coded"), (False, "phase_sync")):
        old = {**other, name: "phase_sync", "as_coded": switch, "coupling": 2.0, **IDLE}
        new = {**other, name: today, "coupling": 2.0, **({} if switch else IDLE)}
        assert migrated(old) == new and migrated(new) == new
        assert as_hashed(new) == old and as_hashed(old) == old
    kuramoto = {"name": "kuramoto", "coupling": 1.0}
    assert migrated(kuramoto) == as_hashed(kuramoto) == kuramoto


def test_a_key_that_did_nothing_in_the_old_layer_is_refused_by_name() -> None:
    old = {"name": "phase_sync", "as_coded": True, **IDLE, "noise_sigma": 0.3}
    with pytest.raises(ConfigError, match=r"noise_sigma=0.3 does nothing.*noise_sigma=0"):
        migrated(old)


def test_the_old_command_line_is_answered_with_the_new_spelling() -> None:
    for word in ("attention.as_coded=true", "+attention.as_coded=false"):
        with pytest.raises(ConfigError, match=r"no key any more.*attention=as_coded"):
            compose(["attention=phase_sync", word])


def test_noise_is_no_option_of_the_layer_as_coded(leaky: Callable) -> None:
    with pytest.raises(ConfigError, match=r"attention.noise_sigma is unknown"):
        leaky(noise_sigma=0.3)
