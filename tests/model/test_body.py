"""model.norm and model.mlp: each body is causal, decodes with a cache, and counts its weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import composed, make_run, need_compiler
from torch.nn import functional as F

from phasegpt.core.errors import ConfigError
from phasegpt.model import loading
from phasegpt.model.body import Head
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.training.optim import parameter_groups

BODIES = [
    {"norm": "rmsnorm"},
    {"mlp": "swiglu"},
    {"norm": "rmsnorm", "mlp": "swiglu", "bias": False},
    {"mlp": "none"},
]
every_body = pytest.mark.parametrize("body", BODIES, ids=str)
IDS = torch.arange(40).view(2, 20)


def test_the_defaults_are_gpt2s_and_their_numbers_are_the_same(make_model: Callable) -> None:
    named = make_model("kuramoto", norm="layernorm", mlp="gelu").state_dict()
    assert all(torch.equal(x, named[k]) for k, x in make_model("kuramoto").state_dict().items())
    assert GPTConfig.parse({}).norm == "layernorm"  # an export from before there was a choice


@every_body
def test_a_body_is_causal_and_its_cache_equals_the_whole(
    body: dict, make_model: Callable, roughen: Callable
) -> None:
    model = roughen(make_model("kuramoto", layers=(1,), **body))
    with torch.no_grad():
        whole = model(IDS).logits
        assert whole.shape == (2, 20, 65)
        changed = IDS.clone()
        changed[:, 12:] += 1
        assert torch.equal(model(changed).logits[:, :12], whole[:, :12])
        cache = model.new_cache()
        parts = [model(piece, cache=cache).logits for piece in IDS.split([5, 1, 14], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


@every_body
def test_every_weight_of_a_body_gets_a_gradient(body: dict, make_model: Callable) -> None:
    model = make_model(**body)
    model(IDS).logits.square().sum().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_swiglu_is_its_formula_at_its_width(make_model: Callable, roughen: Callable) -> None:
    model = roughen(make_model(mlp="swiglu"))
    mlp, x = model.blocks[0].mlp, torch.randn(2, 3, 16)
    assert mlp.c_fc.weight.shape == mlp.c_gate.weight.shape == (48, 16)  # 42.7 up to 48
    gate, up = mlp.c_gate(x), mlp.c_fc(x)
    expected = (gate * gate.sigmoid() * up) @ mlp.c_proj.weight.T + mlp.c_proj.bias
    torch.testing.assert_close(mlp(x), expected)
    with torch.device("meta"):
        wide = GPT(GPTConfig(n_layer=1, vocab_size=65, mlp="swiglu"), seed=0).blocks[0].mlp
    assert wide.c_fc.out_features == 2048  # 8/3 of 768


def test_rmsnorm_is_its_formula(make_model: Callable, roughen: Callable) -> None:
    norm = roughen(make_model(norm="rmsnorm", layer_norm_epsilon=0.5)).transformer["ln_f"]
    x = torch.randn(2, 3, 16)
    root = (x.square().mean(-1, keepdim=True) + 0.5).sqrt()
    torch.testing.assert_close(norm(x), x / root * norm.weight)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


def test_the_same_weights_begin_where_two_bodies_share_a_name(make_model: Callable) -> None:
    gelu, swiglu = make_model().state_dict(), make_model(mlp="swiglu").state_dict()
    shared = [name for name in gelu if name in swiglu and ".mlp." not in name]
    assert all(torch.equal(gelu[name], swiglu[name]) for name in shared)
    wide = make_model(mlp="swiglu", n_embd=96).blocks[0].mlp
    stds = [x.weight.std().item() for x in (wide.c_fc, wide.c_gate, wide.c_proj)]
    assert stds == pytest.approx([0.02, 0.02, 0.02 / 2], rel=0.05)  # c_proj over sqrt(2 n_layer)
    assert not torch.equal(wide.c_fc.weight, wide.c_gate.weight)


def test_sizes_are_counted_and_matrices_decay(make_model: Callable) -> None:
    model = make_model(mlp="swiglu", norm="rmsnorm")
    D, width, L = 16, 48, 2
    block = (3 * D * D + 3 * D) + (D * D + D) + 3 * D * width + 2 * width + D + 2 * D
    assert model.num_parameters() == L * block + D
    groups = parameter_groups(model, composed("attention=softmax").optimizer)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.dim() >= 2} == decayed


@every_body
def test_a_body_survives_its_checkpoint_and_its_export(
    body: dict, tmp_path: Path, text: list[str]
) -> None:
    words = [f"model.{k}={str(v).lower()}" for k, v in body.items()]
    run = make_run(tmp_path / "run", "data=text", *text, *words)
    model = loading.load(run)
    exported = loading.load(loading.export(run, tmp_path / "export"))
    assert torch.equal(model(IDS % 20).logits, exported(IDS % 20).logits)
    assert exported.config == model.config
    assert {k: getattr(exported.config, k) for k in body} == body


def test_without_mlp_a_block_is_its_attention_alone(make_model: Callable) -> None:
    model, D = make_model(mlp="none"), 16
    assert model.num_parameters() == 2 * (4 * D * D + 4 * D + 2 * D) + 2 * D
    gelu = make_model().state_dict()
    assert all(torch.equal(x, gelu[name]) for name, x in model.state_dict().items())
    for name, x in gelu.items():  # an MLP that adds nothing
        if "mlp.c_proj" in name:
            x.zero_()
    beside = make_model()
    beside.load_state_dict(gelu)
    assert torch.equal(beside(IDS).logits, model(IDS).logits)
    with pytest.raises(ConfigError, match=r"model\.mlp_width=8 does nothing while model\.mlp=none"):
        composed("model.mlp=none", "model.mlp_width=8")


@pytest.mark.parametrize("word", ["model.norm=rmsnorm", "model.mlp=swiglu"])
def test_a_body_has_a_hash_of_its_own_and_the_default_none(word: str) -> None:
    assert composed(word).hash != composed().hash
    default = {"model.norm=rmsnorm": "model.norm=layernorm", "model.mlp=swiglu": "model.mlp=gelu"}
    assert composed(default[word]).hash == composed().hash


# Inductor's C++ takes half a minute to compile what aot_eager traces in a second.
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_body_computes_the_same(
    backend: str, make_model: Callable, roughen: Callable
) -> None:
    if backend == "inductor":
        need_compiler()
    model = roughen(make_model(**BODIES[-1]))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ids = IDS[:, :8]
    loss = [F.cross_entropy(m(ids).logits.flatten(0, 1), ids.flatten()) for m in (model, compiled)]
    torch.testing.assert_close(loss[1], loss[0])
    grads = [torch.autograd.grad(x, list(model.parameters())) for x in loss]
    torch.testing.assert_close(grads[1], grads[0])


def test_a_padded_head_gives_the_same_logits_and_gradients(monkeypatch) -> None:
    model = GPT(
        GPTConfig(vocab_size=67, block_size=16, n_layer=1, n_head=2, n_embd=16, dropout=0.0)
    )
    model, idx = model.double(), torch.arange(12)[None]

    def found(pays: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(Head, "_pays", lambda self, x: pays)
        logits = model(idx).logits
        assert logits.shape == (1, 12, 67)
        torch.nn.functional.cross_entropy(logits[0], idx[0]).backward()
        gradients = [p.grad for p in model.parameters()]
        model.zero_grad()
        return [logits, *gradients]

    torch.testing.assert_close(found(True), found(False), rtol=1e-12, atol=1e-12)
    products, real = [], torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, *b: products.append(len(w)) or real(x, w, *b)
    )
    monkeypatch.setattr(Head, "_pays", lambda self, x: True)
    model(idx)
    assert products[-1] == 128 and model.lm_head.weight.shape == (67, 16)
    with torch.no_grad():  # a copy of the weights for nothing
        model(idx)
    assert products[-1] == 67
