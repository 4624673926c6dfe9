"""Llama's weights in our GPT: the logits of transformers, and a phase layer grown into them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import composed, make_run
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

import phasegpt
from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.data.json_tokenizers import JsonTokenizer
from phasegpt.data.tokenizers import build as tokenizer
from phasegpt.export import ExportConfig, export
from phasegpt.model import loading, pretrained
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.model.huggingface import PhaseGPTForCausalLM

IDS = torch.arange(40).view(2, 20)
#: Its own width in the MLP, grouped heads, its own base of the rotary frequencies.
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 56, "vocab_size": 101, "max_position_embeddings": 48,
    "rms_norm_eps": 1e-4, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
}  # fmt: skip
#: The same body as options of ours.
BODY: dict[str, Any] = {
    "n_head": 4, "n_kv_head": 2, "n_embd": 32, "mlp_width": 56, "vocab_size": 101,
    "block_size": 48, "positions": "rope", "rope_theta": 500.0, "norm": "rmsnorm",
    "mlp": "swiglu", "bias": False,
}  # fmt: skip


def llama(roughen: Callable[[Any], Any], folder: Path, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = roughen(LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval())
    model.save_pretrained(folder)
    return model


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4])
@torch.no_grad()
def test_logits_are_those_of_transformers(
    tied: bool, heads: int, tmp_path: Path, roughen: Callable[[Any], Any]
) -> None:
    theirs = llama(roughen, tmp_path, tie_word_embeddings=tied, num_key_value_heads=heads)
    ours = GPT.from_hf(tmp_path)
    expected = theirs(IDS).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert (ours.lm_head.weight is ours.transformer["wte"].weight) is tied
    assert ours.num_parameters(non_embedding=False) == sum(p.numel() for p in theirs.parameters())
    cache = ours.new_cache()
    parts = [ours(piece, cache=cache).logits for piece in IDS.split([7, 1, 12], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)


def test_old_files_are_read_as_well(tmp_path: Path, roughen: Callable[[Any], Any]) -> None:
    """With rope_theta beside the sizes, in half precision, and with the angles stored."""
    llama(roughen, tmp_path)
    new = GPT.from_hf(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"], config["head_dim"], config["tie_word_embeddings"]
    config |= {"rope_theta": 500.0, "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights = {name: value.bfloat16() for name, value in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    old = GPT.from_hf(tmp_path)
    assert old.config == new.config
    rounded = new.state_dict()["transformer.wte.weight"].bfloat16().float()
    assert torch.equal(old.state_dict()["transformer.wte.weight"], rounded)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu', which a GPT does not compute"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_scaling": {"factor": 8.0, "rope_type": "llama3"}}, "rope_scaling="),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_parameters="),
        ({"head_dim": 16}, "head_dim=16"),
        ({"num_key_value_heads": 3}, "not divisible by model.n_kv_head=3"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1|transformer\.h\.1.*would not be used"),
        ({"num_hidden_layers": 3}, r"has no transformer\.h\.2\.ln_1"),
        ({"intermediate_size": 64}, r"shape \[56, 32\].*expected \[64, 32\]"),
        ({"tie_word_embeddings": True}, "one matrix for both"),
        ({"model_type": "mistral"}, "'mistral' model; only 'gpt2' and 'llama' can be read"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_computes_something_else_is_refused(
    values: dict, says: str, tmp_path: Path, roughen: Callable[[Any], Any]
) -> None:
    llama(roughen, tmp_path)
    change(tmp_path, **values)
    with pytest.raises(CheckpointError, match=says):
        GPT.from_hf(tmp_path)


@pytest.mark.parametrize("mechanism", ["kuramoto", "hybrid"])
@torch.no_grad()
def test_a_grown_layer_begins_as_llama(
    mechanism: str, tmp_path: Path, roughen: Callable[[Any], Any]
) -> None:
    theirs = llama(roughen, tmp_path)
    off = {"beta": 0.0} if mechanism == "kuramoto" else {"blend": 0.0}
    model = GPT.from_hf(tmp_path, mechanism, layers=[1], num_oscillators=4, seed=0, **off)
    out = model(IDS, return_phase=True)
    torch.testing.assert_close(out.logits, theirs(IDS).logits, atol=1e-5, rtol=1e-5)
    assert out.phase[1].theta.shape == (2, 20, 4, 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("beta", "blend")):
                parameter.fill_(0.7)
    assert (model(IDS).logits - out.logits).abs().max() > 0.01


def of_bytes(alphabet: list[str]) -> JsonTokenizer:
    """A tokenizer.json whose tokens are the bytes, in the order of their characters."""
    fast = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return JsonTokenizer(fast.to_str())


def test_a_llama_has_tokens_of_its_own(tmp_path: Path, roughen: Callable[[Any], Any]) -> None:
    llama(roughen, tmp_path)
    config = GPT.from_hf(tmp_path).config
    start = pretrained.start(str(tmp_path), config)
    assert start.taken.new == start.taken.left_over == []
    with pytest.raises(ConfigError, match=r"set data\.tokenizer=hf .*, which is not there"):
        pretrained.start(str(tmp_path), config, tokenizer("byte"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own, other = of_bytes(alphabet), of_bytes(alphabet[::-1])
    (tmp_path / "tokenizer.json").write_text(own.state()["json"])
    assert pretrained.start(str(tmp_path), config, own).taken.new == []
    with pytest.raises(ConfigError, match=r"data\.tokenizer=hf gives them another meaning"):
        pretrained.start(str(tmp_path), config, other)


# --- the same body, trained here ---------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["softmax", "kuramoto", "phase_sync", "hybrid"])
def test_grouped_heads_are_causal_cached_and_learn(
    mechanism: str, make_model: Callable, roughen: Callable
) -> None:
    options = {} if mechanism == "softmax" else {"num_oscillators": 4, "steps": 3}
    words = {**BODY, **options, "layers": (1,)}
    model = roughen(make_model(mechanism, tie_embeddings=False, **words))
    whole = model(IDS).logits
    changed = IDS.clone()
    changed[:, 12:] += 1
    assert torch.equal(model(changed).logits[:, :12], whole[:, :12])
    cache = model.new_cache()
    parts = [model(piece, cache=cache).logits for piece in IDS.split([5, 1, 14], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=2e-5)
    whole.square().sum().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert not torch.equal(whole, roughen(make_model(mechanism, **words))(IDS).logits)


def test_a_group_shares_its_keys_and_values(make_model: Callable, roughen: Callable) -> None:
    attn = roughen(make_model(**BODY)).blocks[0].attn
    _, k, v = attn.project(torch.randn(2, 5, 32), None)
    for z in (k, v):
        assert torch.equal(z[:, 0], z[:, 1]) and torch.equal(z[:, 2], z[:, 3])
        assert not torch.equal(z[:, 1], z[:, 2])


def test_a_head_of_its_own_begins_by_gpt2s_rule(make_model: Callable) -> None:
    tied, free = (make_model(n_embd=128, tie_embeddings=value) for value in (True, False))
    head = free.lm_head.weight
    assert head.std().item() == pytest.approx(0.02, rel=0.05)
    states = tied.state_dict(), free.state_dict()
    shared = [name for name in states[0] if name != "lm_head.weight"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in shared)
    assert not torch.equal(head, states[1]["transformer.wte.weight"])


def test_a_head_of_its_own_travels_everywhere(tmp_path: Path, text: list[str]) -> None:
    words = ["model.tie_embeddings=false", "model.n_kv_head=1", "model.mlp_width=24"]
    run = make_run(tmp_path / "run", "data=text", *text, *words)
    model, idx = phasegpt.load(run), IDS % 20
    assert model.lm_head.weight is not model.transformer["wte"].weight
    logits = model(idx).logits
    assert torch.equal(phasegpt.load(loading.export(run, tmp_path / "ours"))(idx).logits, logits)
    export(ExportConfig(checkpoint=str(run), out=str(tmp_path / "hf")))
    wrapped = PhaseGPTForCausalLM.from_pretrained(tmp_path / "hf")
    assert torch.equal(wrapped(idx).logits, logits)
    wrapped.save_pretrained(tmp_path / "saved")
    assert torch.equal(phasegpt.load(tmp_path / "saved")(idx).logits, logits)


def test_options_are_checked_and_hashed() -> None:
    assert composed("model.n_kv_head=1").hash != composed().hash
    defaults = ["n_kv_head=null", "mlp_width=null", "tie_embeddings=true", "rope_theta=10000.0"]
    assert composed(*(f"model.{word}" for word in defaults)).hash == composed().hash
    with pytest.raises(ConfigError, match="n_head=4 is not divisible by model"):
        GPTConfig(n_head=4, n_kv_head=3)
    for attention, refused in (("phase_sync", True), ("hybrid_phase_sync", False)):
        run = composed(f"attention={attention}", "model=nano", "model.n_kv_head=1")
        if refused:
            with pytest.raises(ConfigError, match="n_kv_head=1 does nothing"):
                GPT(run.gpt(65))
        else:
            GPT(run.gpt(65))
    with pytest.raises(ConfigError, match="does nothing while model"):
        composed("model.rope_theta=5.0")
