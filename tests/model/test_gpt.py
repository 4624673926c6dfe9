"""GPT is GPT-2: Hugging Face's logits, names and initialisation; weights are keyed by seed."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phasegpt.attention._cache import LayerCache
from phasegpt.attention.kuramoto import KuramotoConfig
from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.model.config import AttentionSection, GPTConfig, ModelSection
from phasegpt.model.gpt import GPT

# --- Hugging Face ----------------------------------------------------------------------------


@pytest.fixture
def hf(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A random GPT2LMHeadModel far from its initial weights, and the folder it is saved in."""
    import transformers

    config = transformers.GPT2Config(
        n_layer=3, n_head=4, n_embd=32, n_positions=48, vocab_size=101, layer_norm_epsilon=2e-5
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_logits_equal_hugging_faces_gpt2_of_the_same_weights(hf: tuple[nn.Module, Path]) -> None:
    theirs, folder = hf
    ours = GPT.from_hf(folder).eval()
    for idx in (torch.randint(101, (2, 48)), torch.randint(101, (3, 1))):
        with torch.no_grad():
            expected = theirs(idx).logits
            torch.testing.assert_close(ours(idx).logits, expected, rtol=0, atol=1e-5)
            cache = ours.new_cache()
            parts = [ours(token, cache=cache).logits for token in idx.split(1, dim=1)]
            torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-5)
        assert expected.std() > 0.5  # the comparison is not between zeros


def test_from_hf_reads_sizes_and_is_deterministic_and_tied(hf: tuple[nn.Module, Path]) -> None:
    model = GPT.from_hf(str(hf[1]))
    assert not any(module.training for module in model.modules())
    c = model.config
    assert (c.n_layer, c.n_head, c.n_embd, c.block_size, c.vocab_size) == (3, 4, 32, 48, 101)
    assert (c.layer_norm_epsilon, c.dropout, c.attention_layers) == (2e-5, 0.1, ())
    assert model.lm_head.weight is model.transformer["wte"].weight
    again = GPT.from_hf(hf[1]).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again[name])


def test_from_hf_reads_weights_saved_without_the_transformer_prefix(
    hf: tuple[nn.Module, Path],
) -> None:
    # The hub's own "gpt2" is stored so, with the causal masks as extra tensors.
    from safetensors.torch import load_file, save_file

    file = hf[1] / "model.safetensors"
    expected = GPT.from_hf(hf[1]).state_dict()
    weights = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 48, 48)
    save_file(weights, file)
    for name, value in GPT.from_hf(hf[1]).state_dict().items():
        assert torch.equal(value, expected[name])


def test_from_hf_needs_both_files(hf: tuple[nn.Module, Path]) -> None:
    for file in ("model.safetensors", "config.json"):
        (hf[1] / file).unlink()
        with pytest.raises(CheckpointError, match=f"has no {file}"):
            GPT.from_hf(hf[1])


def test_from_hf_refuses_another_kind_of_model(hf: tuple[nn.Module, Path]) -> None:
    file = hf[1] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "bloom"}))
    with pytest.raises(CheckpointError, match="holds a 'bloom' model; only 'gpt2' and"):
        GPT.from_hf(hf[1])


def test_from_hf_names_a_missing_tensor(hf: tuple[nn.Module, Path]) -> None:
    from safetensors.torch import load_file, save_file

    file = hf[1] / "model.safetensors"
    weights = load_file(file)
    del weights["transformer.h.1.mlp.c_fc.bias"]
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=r"has no transformer.h.1.mlp.c_fc.bias"):
        GPT.from_hf(hf[1])


@pytest.mark.parametrize(
    "change",
    [
        {"activation_function": "relu"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_from_hf_refuses_a_gpt2_that_computes_something_else(
    hf: tuple[nn.Module, Path], change: dict
) -> None:
    # Loading it as plain GPT-2 would give other logits without a word.
    file = hf[1] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        GPT.from_hf(hf[1])


def test_from_hf_answers_a_damaged_file_with_its_name(hf: tuple[nn.Module, Path]) -> None:
    for file in ("model.safetensors", "config.json"):
        (hf[1] / file).write_bytes(b"neither safetensors nor JSON")
        with pytest.raises(CheckpointError, match=file):
            GPT.from_hf(hf[1])


def test_from_hf_names_the_folder_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match="nowhere is neither a folder nor a model"):
        GPT.from_hf(missing)


# --- names and sizes -------------------------------------------------------------------------


def test_names_are_gpt2s(make_model: Callable) -> None:
    block = [
        *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias"),
        *("attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias"),
        *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
    ]
    expected = [
        *("transformer.wte.weight", "transformer.wpe.weight"),
        *(f"transformer.h.{i}.{name}" for i in (0, 1) for name in block),
        *("transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"),
    ]
    assert list(make_model().state_dict()) == expected
    rope = make_model(positions="rope").state_dict()
    assert expected[0] in rope
    assert expected[1] not in rope


def test_without_bias_no_linear_map_or_norm_has_one(make_model: Callable) -> None:
    assert not [name for name in make_model(bias=False).state_dict() if name.endswith("bias")]


def test_the_head_is_tied_and_counted_once(make_model: Callable) -> None:
    model = make_model()
    assert model.lm_head.weight is model.transformer["wte"].weight
    D, V, T, L = 16, 65, 64, 2
    block = (3 * D * D + 3 * D) + (D * D + D) + (4 * D * D + 4 * D) + (4 * D * D + D) + 4 * D
    assert model.num_parameters() == L * block + 2 * D
    assert model.num_parameters(non_embedding=False) == L * block + 2 * D + (V + T) * D


# --- initialisation --------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["softmax", "kuramoto", "phase_sync", "hybrid"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    attention: str, make_model: Callable
) -> None:
    torch.manual_seed(1)
    a = make_model(attention, seed=3).state_dict()
    torch.manual_seed(2)
    b, c = make_model(attention, seed=3).state_dict(), make_model(attention, seed=4).state_dict()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
        drawn = value.unique().numel() > 1
        assert torch.equal(value, c[name]) != drawn, name


def test_without_a_seed_the_global_generator_decides() -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=5)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(GPT(config).lm_head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_building_with_a_seed_leaves_the_weights_of_no_two_layers_alike(
    make_model: Callable,
) -> None:
    blocks = make_model("kuramoto").blocks
    assert not torch.equal(blocks[0].mlp.c_fc.weight, blocks[1].mlp.c_fc.weight)
    first, second = (b.attn.oscillators for b in blocks)
    assert not torch.equal(first.phase.weight, second.phase.weight)
    assert not torch.equal(first.omega, second.omega)


@pytest.mark.parametrize("layers", [2, 8])
def test_initial_weights_have_gpt2s_spread(layers: int, make_model: Callable) -> None:
    model = make_model(n_layer=layers, n_embd=128, n_head=4)
    residual = 0.02 / math.sqrt(2 * layers)
    for name, value in model.named_parameters():
        kind = ".".join(name.split(".")[-2:])
        if kind in ("ln_1.weight", "ln_2.weight", "ln_f.weight"):
            assert value.eq(1).all(), name
        elif kind.endswith("bias"):
            assert value.eq(0).all(), name
        else:
            expected = residual if kind == "c_proj.weight" else 0.02
            assert value.std().item() == pytest.approx(expected, rel=0.04), name
            assert abs(value.mean().item()) < 0.05 * expected, name


def test_a_new_model_predicts_all_but_uniformly(make_model: Callable, text_ids: Callable) -> None:
    model = make_model(n_embd=64, n_head=4)
    idx = text_ids(4, 41)
    logits = model(idx[:, :-1]).logits.flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, idx[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(65), abs=0.1)


# --- forward ---------------------------------------------------------------------------------


def test_phases_are_keyed_by_layer_and_shaped_by_heads(
    make_model: Callable, text_ids: Callable
) -> None:
    model = make_model("kuramoto", layers=(1, 3), n_layer=4, num_oscillators=6)
    out = model(text_ids(3, 7), return_phase=True)
    assert out.logits.shape == (3, 7, 65)
    assert list(out.phase) == [1, 3]
    for phase in out.phase.values():
        assert phase.theta.shape == (3, 7, 2, 6)
        assert phase.R.shape == (3, 7, 2)
    assert model(text_ids(3, 7)).phase == {}
    assert make_model()(text_ids(3, 7), return_phase=True).phase == {}


def test_phases_carry_gradients(make_model: Callable, text_ids: Callable) -> None:
    model = make_model("kuramoto", layers=(1,))
    model(text_ids(1, 7), return_phase=True).phase[1].R.sum().backward()
    assert model.blocks[1].attn.oscillators.phase.weight.grad.norm() > 0


def test_more_tokens_than_block_size_are_refused_with_and_without_cache(
    make_model: Callable,
) -> None:
    model = make_model(block_size=8)
    idx = torch.zeros(1, 9, dtype=torch.long)
    message = "cannot attend to 9 tokens: model.block_size is 8; pass fewer"
    with pytest.raises(ConfigError, match=message):
        model(idx)
    cache = model.new_cache()
    model(idx[:, :8], cache=cache)
    with pytest.raises(ConfigError, match=message):
        model(idx[:, 8:], cache=cache)


def test_dropout_acts_in_training_alone(make_model: Callable, text_ids: Callable) -> None:
    model = make_model("kuramoto", dropout=0.3)
    idx = text_ids(2, 20)
    assert torch.equal(model(idx).logits, model(idx).logits)
    model.train()
    assert not torch.equal(model(idx).logits, model(idx).logits)


@pytest.mark.parametrize("attention", ["softmax", "kuramoto", "phase_sync", "hybrid"])
def test_rope_sees_distances_alone(attention: str, make_model: Callable) -> None:
    words = {"n_layer": 1, "positions": "rope", "dtype": torch.float64}
    layer = make_model(attention, **words).blocks[0].attn
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    far = LayerCache()  # an empty memory that says ten tokens went before
    for memory in (far, far.child("softmax"), far.child("partner")):
        memory.length = 10
    torch.testing.assert_close(layer(x, cache=far).y, layer(x).y, rtol=0, atol=1e-12)
    still = make_model(attention, **(words | {"positions": "learned"})).blocks[0].attn
    assert (still(x).y - layer(x).y).abs().max() > 1e-6


# --- config ----------------------------------------------------------------------------------


def test_the_config_is_flat_and_frozen(make_model: Callable) -> None:
    config = make_model("kuramoto", layers=(1,), coupling=0.5).config
    for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "dropout"):
        assert isinstance(getattr(config, name), int | float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layer = 3
    copy = GPTConfig.parse(json.loads(json.dumps(config.to_dict())))
    assert copy == config
    assert copy.attention_options == KuramotoConfig(coupling=0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"n_embd": 10, "n_head": 4}, "n_embd=10 is not divisible by model.n_head=4; .*1,2,5,10"),
        ({"n_embd": 6, "n_head": 2, "positions": "rope"}, "rope needs an even head width"),
        ({"attention_layers": (2,), "n_layer": 2}, r"layers=\[2\] is out of range: .*0\.\.1"),
        ({"attention_layers": (-1,)}, r"layers=\[-1\] is out of range"),
        ({"attention": "kuramotto", "attention_layers": (0,)}, "did you mean attention=kuramoto"),
        ({"n_layer": 0}, "model.n_layer=0 is out of range; it must be >= 1"),
        ({"dropout": 1.0}, "model.dropout=1.0 is out of range; it must be < 1"),
        ({"bias": "yes"}, "model.bias='yes' must be true or false"),
        ({"positions": "learnt"}, r"positions='learnt' is not allowed \(did you mean learned\?\)"),
    ],
    ids=str,
)
def test_an_impossible_model_is_refused_with_the_fix(words: dict, message: str) -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "vocab_size": 11}
    with pytest.raises(ConfigError, match=message):
        GPT(GPTConfig(**(sizes | words)), seed=0)


def test_layers_are_sorted_and_unique() -> None:
    assert GPTConfig(attention_layers=(7, 4, 7)).attention_layers == (4, 7)


def test_a_mechanism_is_in_all_layers_unless_it_is_said_otherwise() -> None:
    sizes: dict[str, Any] = {"n_layer": 3, "n_head": 2, "n_embd": 8, "block_size": 8}
    words: dict[str, Any] = {"attention": "kuramoto", "attention_options": {"coupling": 5.0}}
    config = GPTConfig(**sizes, **words, vocab_size=11)
    assert set(GPT(config, seed=0).oscillators) == {0, 1, 2}
    section = AttentionSection.parse({"name": "kuramoto", "coupling": 5.0})
    assert GPTConfig.from_sections(ModelSection(**sizes), section, 11) == config  # of a command
    assert GPTConfig.parse(json.loads(json.dumps(config.to_dict()))) == config
    for none in (GPTConfig(**sizes), GPTConfig(**sizes, **words, attention_layers=())):
        assert none.attention_layers == ()
