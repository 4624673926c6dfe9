"""A phase layer grown into GPT-2 leaves it what it was, and says what is new and left over."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import shown
from phasegpt.model import growth
from phasegpt.model.gpt import GPT

IDS = torch.arange(40).view(2, 20)
OSCILLATORS = [f"attn.oscillators.{x}" for x in ("omega", "coupling", "phase.weight", "phase.bias")]
PROJECTIONS = [f"attn.{x}.{y}" for x in ("c_attn", "c_proj") for y in ("weight", "bias")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT2LMHeadModel far from its initial weights, its heads as wide as GPT-2's."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 128, "n_positions": 24, "vocab_size": 40}
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(path)
    return path


def in_layers(names: list[str], *layers: int) -> list[str]:
    return [f"transformer.h.{layer}.{name}" for layer in layers for name in names]


@torch.no_grad()
def logits(model: GPT) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        ("kuramoto", {"beta": 0.0}),
        ("hybrid", {"blend": 0.0}),
        ("hybrid", {"blend": 0.0, "partner": "phase_sync"}),
        ("softmax", {}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
@pytest.mark.parametrize("layers", ["all", [1]], ids=str)
def test_a_grown_layer_that_is_off_gives_gpt2s_logits_exactly(
    attention: str, options: dict, layers: Any, folder: Path
) -> None:
    grown = GPT.from_hf(folder, attention, layers=layers, **options)
    assert grown.config.attention_layers == ((0, 1, 2) if layers == "all" else (1,))
    assert torch.equal(logits(grown), logits(GPT.from_hf(folder)))
    assert not any(module.training for module in grown.modules())


def test_a_grown_layer_that_is_on_changes_the_logits_and_learns(folder: Path) -> None:
    plain = logits(GPT.from_hf(folder))
    grown = GPT.from_hf(folder, "kuramoto", layers=[1], seed=1)
    assert not torch.allclose(logits(grown), plain, atol=1e-3)
    off = GPT.from_hf(folder, "kuramoto", layers=[1], beta=0.0, seed=1)
    off(IDS).logits.square().sum().backward()
    assert (off.blocks[1].attn.beta.grad != 0).all()


def test_the_seed_draws_what_is_new_and_nothing_else(folder: Path) -> None:
    a, b, c = (GPT.from_hf(folder, "kuramoto", layers=[1], seed=x).state_dict() for x in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    differ = [name for name in a if not torch.equal(a[name], c[name])]
    assert differ == in_layers(["attn.oscillators.omega", "attn.oscillators.phase.weight"], 1)


def test_without_a_use_for_the_projections_they_are_named_as_left_over(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"left over: attn\.c_attn\.weight, .* of layers 0, 2"):
        grown = GPT.from_hf(folder, "phase_sync", layers=[0, 2], seed=0)
    plain = GPT.from_hf(folder)
    taken = growth.taken(grown, plain, "x")
    assert sorted(taken.left_over) == sorted(in_layers(PROJECTIONS, 0, 2))
    # 2 H N is D here: the two c_proj have one shape and nothing to do with each other.
    new = [*OSCILLATORS, "attn.c_proj.weight", "attn.c_proj.bias"]
    assert sorted(taken.new) == sorted(in_layers(new, 0, 2))
    theirs = plain.state_dict()
    assert all(torch.equal(grown.state_dict()[name], theirs[name]) for name in taken.weights)


def test_nothing_is_said_where_nothing_is_left_over(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GPT.from_hf(folder, "kuramoto", layers=[1])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"attention": "kuramotto"}, "kuramoto"),
        ({"attention": "kuramoto", "layers": [3]}, "3 layers, counted 0..2"),
        ({"attention": "kuramoto", "bta": 0.0}, r"attention\.bta is unknown"),
        ({"beta": 0.0}, r"attention\.beta is unknown"),
        ({"attention": "kuramoto", "readout": "gate", "beta": 0.0}, "does nothing"),
    ],
    ids=str,
)
def test_a_wrong_attention_is_one_line_with_its_name(words: dict, says: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        GPT.from_hf(folder, **words)


# --- one of our models from another ----------------------------------------------------------

NAMES = ["softmax", "kuramoto", "phase_sync", "hybrid"]


@pytest.mark.parametrize("mine", NAMES)
@pytest.mark.parametrize("theirs", NAMES)
def test_every_tensor_is_taken_new_or_left_over(
    mine: str, theirs: str, make_model: Callable, roughen: Callable
) -> None:
    model, source = make_model(mine, layers=(1,)), roughen(make_model(theirs, layers=(1,)))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    taken = growth.taken(model, source, "x")
    growth.fill(model, taken)
    after = model.state_dict()
    assert {*taken.weights} | {*taken.new} == set(after)
    assert all(torch.equal(after[name], before[name]) for name in taken.new)
    assert all(torch.equal(after[name], x) for name, x in taken.weights.items())
    if mine == theirs:
        assert taken.new == taken.left_over == []
        assert torch.equal(logits(model), logits(source))


def test_both_parts_of_a_hybrid_begin_with_the_same_projections(
    make_model: Callable, roughen: Callable
) -> None:
    model, source = make_model("hybrid", layers=(1,)), roughen(make_model())
    growth.fill(model, growth.taken(model, source, "x"))
    attn, theirs = model.blocks[1].attn, source.blocks[1].attn
    for part in (attn.softmax, attn.partner):
        assert torch.equal(part.c_attn.weight, theirs.c_attn.weight)
        assert torch.equal(part.c_proj.bias, theirs.c_proj.bias)


def test_what_an_option_fixes_stays_as_the_option_says(make_model: Callable) -> None:
    fixed = {"learn_coupling": False, "omega_spread": 1.0}
    source = make_model("kuramoto", layers=(1,), coupling=2.0, seed=5, **fixed)
    off = make_model("kuramoto", layers=(1,), coupling=0.0, **fixed)
    growth.fill(off, growth.taken(off, source, "x"))
    assert (off.blocks[1].attn.oscillators.coupling == 0).all()
    same = make_model("kuramoto", layers=(1,), coupling=2.0, **fixed)
    growth.fill(same, growth.taken(same, source, "x"))
    ours, theirs = same.blocks[1].attn.oscillators, source.blocks[1].attn.oscillators
    assert torch.equal(ours.disorder, theirs.disorder)


#: An option of every mechanism that says where something learned begins, and other values of it.
STARTS = [
    ("torus", "coupling", {}, (1.0, 0.0)),
    ("fsn", "theta_std", {}, (0.4, 1.6)),
    ("fixed_query", "p", {"learn_p": True}, (4.0, 0.0)),
    ("kuramoto", "theta_init", {}, ("spread", "gpt2")),
    ("kuramoto", "beta", {}, (None, 0.0)),
    ("phase_sync", "forget", {}, (0.9, 0.5)),
    ("lohe", "omega", {}, (0.5, 0.1)),
    ("selective_rope", "increment_std", {}, (0.1, 0.2)),
    ("ssa", "bandwidth", {}, (1.3133, 1.0)),
    ("hybrid", "blend", {}, (0.5, 0.0)),
    ("hybrid", "coupling", {"partner": "phase_sync"}, (1.0, 0.0)),
    ("kope", "coupling", {"learn_coupling": True, "layers": (0, 1)}, (0.05, 0.0)),
]


@pytest.mark.parametrize(("name", "option", "more", "values"), STARTS, ids=lambda x: str(x)[:12])
def test_a_start_that_would_be_passed_over_is_refused_with_both_values(
    name: str, option: str, more: dict, values: tuple, make_model: Callable
) -> None:
    more = {"layers": (1,), **more}
    source, model, same = (
        make_model(name, **more, **{option: value}) for value in (*values, values[0])
    )
    theirs, mine = (f"attention.{option}={shown(x).strip(chr(39))}" for x in values)
    says = rf"{mine} says where .*=x has learned, which began with {theirs}; set {theirs}"
    with pytest.raises(ConfigError, match=says) as found:
        growth.taken(model, source, "x")
    learn = f"learn_{option}"
    switch = hasattr(model.config.attention_options, learn) or learn == "learn_coupling"
    assert (f"attention.{learn}=false, which holds it at" in str(found.value)) == switch
    growth.taken(same, source, "x")


def test_what_was_fixed_and_is_learned_now_begins_where_the_option_says(
    make_model: Callable,
) -> None:
    source = make_model("fixed_query", layers=(1,), p=4.0)
    model = make_model("fixed_query", layers=(1,), p=0.0, learn_p=True)
    taken = growth.taken(model, source, "x")
    growth.fill(model, taken)
    assert (model.blocks[1].attn.p == 0).all()
    assert "transformer.h.1.attn.p" in taken.new


def test_fewer_positions_are_the_first_ones_and_more_are_refused(make_model: Callable) -> None:
    source, short = make_model(), make_model(block_size=20, seed=3)
    taken = growth.taken(short, source, "x")
    growth.fill(short, taken)
    assert taken.positions == (20, 64)
    assert "the first 20 of 64 positions" in growth.said(taken.record())
    assert torch.equal(logits(short), logits(source))
    with pytest.raises(ConfigError, match=r"block_size=65 is longer .* set model\.block_size=64"):
        growth.taken(make_model(block_size=65), source, "x")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"n_layer": 3, "n_embd": 32}, r"set model\.n_layer=2 model\.n_embd=16$"),
        ({"bias": False}, r"set model\.bias=true$"),
        ({"norm": "rmsnorm", "mlp": "swiglu"}, r"set model\.norm=layernorm model\.mlp=gelu$"),
        ({"vocab_size": 70}, r"set model\.vocab_size=65$"),
        ({"positions": "rope"}, r"set model\.positions=learned$"),
    ],
    ids=str,
)
def test_another_body_is_refused_with_the_keys_to_set(
    words: dict, says: str, make_model: Callable
) -> None:
    with pytest.raises(ConfigError, match=says):
        growth.taken(make_model(**words), make_model(), "x")


def test_another_number_of_oscillators_is_refused_by_name(make_model: Callable) -> None:
    source = make_model("kuramoto", layers=(1,), num_oscillators=8)
    with pytest.raises(ConfigError, match=r"omega has shape .*attention\.num_oscillators"):
        growth.taken(make_model("kuramoto", layers=(1,), num_oscillators=4), source, "x")
