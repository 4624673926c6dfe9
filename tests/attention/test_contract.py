"""The contract of an attention layer, over every YAML of conf/attention and both positions.

A new mechanism is tested here as soon as its YAML exists; STATE_DICT is the one thing to add.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phasegpt.attention import Attention, build, layer_class
from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.model.config import AttentionSection, GPTConfig, ModelSection
from phasegpt.model.gpt import GPT
from phasegpt.phase.steering import NoiseKey, coherence_regularizer

STEMS = sorted(path.stem for path in (CONF_DIR / "attention").glob("*.yaml"))
#: Named controls that see the future: the contract expects them to leak, and to refuse a cache.
LEAKY = ("as_coded",)
CASES = [
    (stem, positions)
    for stem in STEMS
    for positions in ("learned", "rope")
    if stem not in LEAKY or positions == "learned"
]
VOCAB = 65
pytestmark = pytest.mark.filterwarnings("ignore:.*sees the future")
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 96, "dropout": 0.0}

LINEAR = ("weight", "bias")
SOFTMAX = [f"{m}.{p}" for m in ("c_attn", "c_proj") for p in LINEAR]
OSCILLATORS = [f"oscillators.{p}" for p in ("coupling", "omega", "phase.bias", "phase.weight")]
KURAMOTO = ["beta", *SOFTMAX, *OSCILLATORS]
PHASE_SYNC = [*(f"c_proj.{p}" for p in LINEAR), *OSCILLATORS]
#: Names of a layer's tensors: a checkpoint's promise. Changing one breaks every saved run.
STATE_DICT = {
    "softmax": SOFTMAX,
    "kuramoto": KURAMOTO,
    "phase_sync": PHASE_SYNC,
    "as_coded": PHASE_SYNC,
    "hybrid": [
        *("blend", *(f"softmax.{n}" for n in SOFTMAX)),
        *(f"partner.{n}" for n in KURAMOTO),
    ],
    "hybrid_phase_sync": [
        *("blend", *(f"softmax.{n}" for n in SOFTMAX)),
        *(f"partner.{n}" for n in PHASE_SYNC),
    ],
}


@functools.cache
def _sections(stem: str) -> tuple[dict[str, Any], dict[str, Any]]:
    run = plain(compose([f"attention={stem}"]))
    return run["model"], run["attention"]


def yaml_options(stem: str) -> dict[str, Any]:
    """The mechanism's own options as the YAML has them."""
    return {k: v for k, v in _sections(stem)[1].items() if k not in ("name", "layers")}


def config_of(stem: str, positions: str, options: dict[str, Any], sizes: dict) -> GPTConfig:
    model, attention = _sections(stem)
    section = ModelSection.parse({**model, **SIZES, "positions": positions, **sizes})
    group = AttentionSection.parse({**attention, "layers": [1], **options})
    return GPTConfig.from_sections(section, group, VOCAB)


def gpt(
    stem: str, positions: str = "learned", options: dict[str, Any] | None = None, **sizes: Any
) -> GPT:
    """A GPT whose layer 1 is the mechanism at its YAML's defaults."""
    return GPT(config_of(stem, positions, options or {}, sizes), seed=0).eval()


def tokens(batch: int, time: int) -> Tensor:
    return torch.randint(VOCAB, (batch, time))


def shrunk(stem: str) -> dict[str, Any]:
    """Fewer oscillators and steps where the mechanism has such options."""
    small = {"num_oscillators": 3, "steps": 3}
    return {k: v for k, v in small.items() if k in yaml_options(stem)}


NOISY = [s for s in STEMS if "noise_sigma" in yaml_options(s)]
noisy_yaml = pytest.mark.parametrize("stem", NOISY)
NOISE = {"noise_sigma": 0.03, "frequency_jitter": 0.02}

every_case = pytest.mark.parametrize(("stem", "positions"), CASES)
causal_case = pytest.mark.parametrize(
    ("stem", "positions"), [case for case in CASES if case[0] not in LEAKY]
)
every_yaml = pytest.mark.parametrize("stem", STEMS)


# --- shapes ----------------------------------------------------------------------------------


@every_case
def test_shapes_of_logits_and_phases(stem: str, positions: str) -> None:
    model = gpt(stem, positions)
    out = model(tokens(3, 7), return_phase=True)
    assert out.logits.shape == (3, 7, VOCAB)
    assert out.logits.dtype == torch.float32
    assert set(out.phase) <= {1}
    for phase in out.phase.values():
        B, T, H, _ = phase.theta.shape
        assert (B, T, H) == (3, 7, 2)
        assert phase.R.shape in ((B, T, H), phase.theta.shape)
        assert (phase.R >= 0).all()
        assert (phase.R <= 1 + 1e-6).all()
    assert model(tokens(3, 7)).phase == {}


@every_case
def test_phases_of_a_float32_model_are_float32(stem: str, positions: str) -> None:
    for phase in gpt(stem, positions)(tokens(1, 5), return_phase=True).phase.values():
        assert (phase.theta.dtype, phase.R.dtype) == (torch.float32, torch.float32)


@every_case
def test_asking_for_phases_does_not_change_the_logits(stem: str, positions: str) -> None:
    model, idx = gpt(stem, positions), tokens(2, 9)
    assert torch.equal(model(idx).logits, model(idx, return_phase=True).logits)


# --- causality -------------------------------------------------------------------------------


@causal_case
def test_outputs_before_t_are_bit_identical_when_tokens_from_t_on_change(
    stem: str, positions: str, roughen: Callable
) -> None:
    T = 80
    model, idx = roughen(gpt(stem, positions)), tokens(2, T)
    with torch.no_grad():
        before = model(idx, return_phase=True)
        for t in (1, 2, 33, 64, T - 1):
            changed = idx.clone()
            changed[:, t:] = (idx[:, t:] + torch.randint(1, VOCAB, (2, T - t))) % VOCAB
            after = model(changed, return_phase=True)
            assert torch.equal(before.logits[:, :t], after.logits[:, :t]), t
            for layer, phase in before.phase.items():
                assert torch.equal(phase.theta[:, :t], after.phase[layer].theta[:, :t]), t
                assert torch.equal(phase.R[:, :t], after.phase[layer].R[:, :t]), t
            assert not torch.equal(before.logits[:, t], after.logits[:, t])  # the test can fail


@pytest.mark.parametrize("stem", LEAKY)
def test_a_leaky_control_sees_the_future_and_says_so(stem: str, roughen: Callable) -> None:
    model, idx = roughen(gpt(stem)), tokens(2, 20)
    changed = idx.clone()
    changed[:, 12:] = (idx[:, 12:] + 1) % VOCAB
    with torch.no_grad():
        moved = (model(idx).logits - model(changed).logits)[:, :12].abs().amax((0, 2))
    assert (moved > 1e-6).all()
    assert model.leaky
    with pytest.raises(ConfigError, match=f"attention={stem}.*cannot decode with a cache"):
        model.new_cache()
    with pytest.raises(ConfigError, match="positions=learned only"):
        gpt(stem, "rope")


@causal_case
def test_a_causal_mechanism_is_not_marked_leaky(stem: str, positions: str) -> None:
    assert not gpt(stem, positions).leaky


@causal_case
def test_the_layer_mixes_tokens_at_all(stem: str, positions: str, roughen: Callable) -> None:
    config = config_of(stem, positions, {}, {})
    layer = roughen(build(config.attention, config, config.attention_options, 1).eval())
    x = torch.randn(1, 12, 16)
    moved = x.clone()
    moved[:, 4] += 1
    change = (layer(moved).y - layer(x).y).detach().abs().amax(-1).squeeze(0)
    assert (change[:4] == 0).all()
    assert (change[5:] > 1e-5).all()


# --- decode ----------------------------------------------------------------------------------

CUTS = {
    "tokens": [1] * 24,
    "prefill then tokens": [17] + [1] * 7,
    "chunks": [5, 1, 11, 7],
    "whole": [24],
}


@causal_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_decoding_with_the_cache_equals_the_full_forward(
    stem: str, positions: str, dtype: torch.dtype, tolerance: float, roughen: Callable
) -> None:
    # Roughened less in float32: 1e-5 is meant for logits of order 1.
    scale = 0.05 if dtype == torch.float32 else 0.2
    model, idx = roughen(gpt(stem, positions), scale).to(dtype), tokens(2, 24)
    with torch.no_grad():
        full = model(idx).logits
        for name, cuts in CUTS.items():
            cache = model.new_cache()
            parts = [model(piece, cache=cache).logits for piece in idx.split(cuts, dim=1)]
            error = (torch.cat(parts, 1) - full).abs().max().item()
            assert error < tolerance, f"{name}: {error}"
            assert cache.length == 24


@causal_case
def test_phases_while_decoding_are_the_full_forwards_or_refused(stem: str, positions: str) -> None:
    model, idx = gpt(stem, positions), tokens(2, 9)
    full, cache = model(idx, return_phase=True).phase, model.new_cache()
    try:
        parts = [model(t, cache=cache, return_phase=True).phase for t in idx.split([6, 1, 2], 1)]
    except ConfigError as error:
        assert "cache" in str(error)
        return
    for layer, phase in full.items():
        for field in (0, 1):
            joined = torch.cat([part[layer][field] for part in parts], 1)
            torch.testing.assert_close(joined, phase[field], rtol=0, atol=1e-5)


# --- gradients -------------------------------------------------------------------------------


@every_case
def test_gradients_of_every_parameter_and_the_input_are_exact(
    stem: str, positions: str, roughen: Callable
) -> None:
    config = config_of(stem, positions, shrunk(stem), {"n_embd": 4})
    layer = build(config.attention, config, config.attention_options, 1).double()
    roughen(layer, 0.7)
    names = [n for n, _ in layer.named_parameters()]
    x = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, values, strict=True))
        out = torch.func.functional_call(layer, parameters, (x,), {"return_phase": True})
        return out.y if out.phase is None else (out.y, out.phase.theta, out.phase.R)

    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(f, (x, *values))


def attention_modules(model: nn.Module) -> dict[str, Attention]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Attention)}


@every_case
def test_every_parameter_of_the_mechanism_is_alive_at_init_on_real_text(
    stem: str, positions: str, text_ids: Callable
) -> None:
    model = gpt(stem, positions, n_embd=64, n_head=4, block_size=128).train()
    idx = text_ids(4, 129)
    logits = model(idx[:, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).backward()
    for name, layer in attention_modules(model.blocks[1]).items():
        own = dict(layer.named_parameters())
        projection = own.get("c_proj.weight", own.get("softmax.c_proj.weight"))
        for key in layer.lr_factors:
            if key not in own:
                continue  # belongs to another readout, or is fixed
            ratio = (own[key].grad.norm() / projection.grad.norm()).item()
            floor = 1e-4 if key.endswith("phase.weight") else 1e-5
            assert ratio >= floor, f"{name}.{key}: {ratio:.1e}"
    for name, parameter in model.blocks[1].attn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 0, name


@every_yaml
def test_every_oscillator_parameter_is_named_in_lr_factors(stem: str) -> None:
    # Those names are what keeps weight decay away from phases, frequencies and couplings.
    plain_linear = ("c_attn", "c_proj", "resid_dropout")
    for layer in attention_modules(gpt(stem).blocks[1]).values():
        children = [n for n, m in layer.named_children() if isinstance(m, Attention)]
        for name, _ in layer.named_parameters():
            if name.split(".")[0] not in (*plain_linear, *children):
                assert name in layer.lr_factors


# --- numerics --------------------------------------------------------------------------------


@every_case
def test_bf16_autocast_is_finite_over_1024_tokens(
    stem: str, positions: str, roughen: Callable
) -> None:
    model = gpt(stem, positions, {"layers": [0]}, n_layer=1, n_head=1, block_size=1024)
    roughen(model).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(tokens(1, 1024), return_phase=True)
        loss = out.logits.float().square().mean()
    loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert out.logits.isfinite().all()
    for phase in out.phase.values():
        assert phase.theta.dtype in (torch.float32, torch.float64)
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


@every_case
def test_phases_keep_float32_precision_under_bf16_autocast(stem: str, positions: str) -> None:
    config = config_of(stem, positions, {}, {})
    layer = build(config.attention, config, config.attention_options, 1)
    x = torch.randn(2, 20, 16)
    exact = layer(x, return_phase=True).phase
    with torch.autocast("cpu", dtype=torch.bfloat16):
        phase = layer(x, return_phase=True).phase
    if exact is not None:
        torch.testing.assert_close(tuple(phase), tuple(exact), rtol=0, atol=1e-5)


@every_case
def test_one_compiled_graph_equals_eager(stem: str, positions: str) -> None:
    torch._dynamo.reset()
    model = gpt(stem, positions, {**shrunk(stem), "layers": [0]}, n_layer=1)
    idx = tokens(2, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for return_phase in (False, True):
        a, b = model(idx, return_phase=return_phase), compiled(idx, return_phase=return_phase)
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-6, atol=1e-6)
        assert a.phase.keys() == b.phase.keys()
        for layer in a.phase:
            torch.testing.assert_close(a.phase[layer], b.phase[layer], rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(a.logits.square().sum(), list(model.parameters()))
    grads = torch.autograd.grad(b.logits.square().sum(), list(model.parameters()))
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-5)


@every_yaml
def test_activation_checkpointing_gives_the_same_loss_and_gradients(stem: str) -> None:
    idx = tokens(2, 16)
    noise = NOISE if stem in NOISY else {}
    results = []
    for recompute in (False, True):
        model = gpt(stem, options=noise, activation_checkpointing=recompute, dropout=0.2).train()
        key = NoiseKey(seed=1, step=2, sample_B=(3, 4))
        torch.manual_seed(3)
        out = model(idx, perturbations=model.draw_perturbations(key, 16), return_phase=True)
        loss = out.logits.square().mean()
        for phase in out.phase.values():
            loss = loss + coherence_regularizer(phase.R, target=0.1, weight=1.0)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=1e-7)


# --- training noise --------------------------------------------------------------------------


def drawn(model: GPT, samples: tuple[int, ...], seed: int = 1, step: int = 5) -> list[Tensor]:
    """Everything drawn for one batch, sample first: [B, ...]."""
    key = NoiseKey(seed=seed, step=step, sample_B=samples)
    found = []
    for perturbation in model.draw_perturbations(key, 6).values():
        found += [perturbation.noise_SBTHN.transpose(0, 1), perturbation.jitter_BHN]
    return found


@noisy_yaml
def test_noise_of_a_sample_does_not_depend_on_its_batch(stem: str) -> None:
    model = gpt(stem, options=NOISE)
    whole = drawn(model, (10, 11, 12, 13))
    first, second = drawn(model, (10, 11)), drawn(model, (12, 13))
    assert len(whole) == 2
    for a, b, c in zip(whole, first, second, strict=True):
        assert torch.equal(a, torch.cat((b, c)))
        assert len({tuple(row.flatten().tolist()) for row in a}) == 4  # no two samples alike


@noisy_yaml
def test_noise_changes_with_seed_step_sample_and_layer(stem: str) -> None:
    model = gpt(stem, options={**NOISE, "layers": [0, 1]})
    base = drawn(model, (0,))
    for other in (drawn(model, (0,), seed=2), drawn(model, (0,), step=6), drawn(model, (1,))):
        for a, b in zip(base, other, strict=True):
            assert not torch.equal(a, b)
    noise_0, jitter_0, noise_1, jitter_1 = base
    assert not torch.equal(noise_0, noise_1)
    assert not torch.equal(jitter_0, jitter_1)


@noisy_yaml
def test_noise_neither_reads_nor_moves_the_global_generator(stem: str) -> None:
    model = gpt(stem, options=NOISE)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = drawn(model, (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    for x, y in zip(a, drawn(model, (0, 1)), strict=True):
        assert torch.equal(x, y)


@noisy_yaml
def test_noise_has_the_size_that_was_asked_for(stem: str) -> None:
    noise, jitter = drawn(gpt(stem, options=NOISE), tuple(range(64)))
    assert noise.std().item() == pytest.approx(0.03, rel=0.02)
    assert jitter.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(noise.mean().item()) < 3e-4


@every_yaml
def test_no_noise_is_an_empty_dict_and_leaves_the_outputs_bit_identical(stem: str) -> None:
    model, idx = gpt(stem).train(), tokens(2, 6)
    perturbations = model.draw_perturbations(NoiseKey(seed=1, step=0, sample_B=(0, 1)), 6)
    assert perturbations == {}
    assert torch.equal(model(idx, perturbations=perturbations).logits, model(idx).logits)


@noisy_yaml
def test_noise_alone_or_jitter_alone_changes_the_outputs(stem: str) -> None:
    idx = tokens(2, 6)
    clean = gpt(stem)(idx).logits
    for options in ({"noise_sigma": 0.3}, {"frequency_jitter": 0.3}):
        model = gpt(stem, options=options)
        noise = model.draw_perturbations(NoiseKey(seed=1, step=0, sample_B=(0, 1)), 6)
        assert (model(idx, perturbations=noise).logits - clean).abs().max() > 1e-6
        assert torch.equal(model(idx).logits, clean)  # evaluation draws none


# --- names and defaults ----------------------------------------------------------------------


@every_yaml
def test_names_of_saved_tensors_are_the_promised_ones(stem: str) -> None:
    found = sorted(gpt(stem).blocks[1].attn.state_dict())
    assert stem in STATE_DICT, f"add to STATE_DICT: {stem!r}: {found}"
    assert found == sorted(STATE_DICT[stem])


@every_yaml
def test_a_fixed_parameter_is_saved_under_the_same_name_as_a_learned_one(stem: str) -> None:
    switches = [k for k in yaml_options(stem) if k.startswith("learn_")]
    model = gpt(stem, options=dict.fromkeys(switches, False))
    assert model.state_dict().keys() == gpt(stem).state_dict().keys()
    fewer = len(list(gpt(stem).parameters())) - len(list(model.parameters()))
    assert fewer == len(switches)


@every_yaml
def test_the_yaml_and_the_config_have_one_set_of_defaults(stem: str) -> None:
    cls, written = layer_class(_sections(stem)[1]["name"]).Config, yaml_options(stem)
    assert written == cls(**{k: v for k, v in written.items() if k == "partner"}).to_dict()


def test_every_mechanism_has_a_yaml() -> None:
    from phasegpt.attention import names

    assert {_sections(stem)[1]["name"] for stem in STEMS} == set(names())
