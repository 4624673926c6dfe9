"""What layers of `kope` hand on: caches, optimizers, growth, monitor, interpretation, samplers."""

import math
from collections.abc import Callable

import pytest
import torch

from phasegpt.attention import build
from phasegpt.attention._functional import rotary_angles
from phasegpt.core.errors import ConfigError
from phasegpt.interpretation.synchronization import measure
from phasegpt.model import growth
from phasegpt.phase.steering import coherence_regularizer
from phasegpt.samplers import PhaseSlip, RGate, calibrate_heads, decode
from phasegpt.training.optim import parameter_groups
from phasegpt.training.optimizer_config import AdamWConfig, MuonConfig
from phasegpt.training.phase_monitor import trajectories

F64 = torch.float64
OFF = {"coupling": 0.0, "mix": False, "rotate_values": False}


@pytest.mark.parametrize("layers", [(), (1,)])
def test_fewer_than_two_layers_have_nobody_to_hand_on_to(
    layers: tuple[int, ...], make_model: Callable
) -> None:
    if not layers:  # all of them are softmax
        assert make_model("kope", layers=layers).link is None
        return
    with pytest.raises(ConfigError, match=r"attention\.layers=\[1\].*two layers at least"):
        make_model("kope", layers=layers)
    with pytest.raises(ConfigError, match="even head width"):
        make_model("kope", n_embd=6)


@torch.no_grad()
def test_other_layers_pass_the_phases_on(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model = roughen(make_model("kope", n_layer=5, layers=(1, 3), dtype=F64))
    idx, calls, inputs = text_ids(2, 20), [], []
    model.link.register_forward_hook(lambda _, args, out: calls.append((*args, out)))
    model.blocks[2].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    phase = model(idx, return_phase=True).phase
    assert set(phase) == {1, 3}
    ((x, theta, carry),) = calls  # after the first of them and not after the last
    assert torch.equal(x, inputs[0]) and torch.equal(theta, phase[1].theta)
    again = model.blocks[3].attn(torch.zeros(2, 20, 16, dtype=F64), carry=carry, return_phase=True)
    assert torch.equal(again.phase.theta, phase[3].theta)
    cache = model.new_cache()
    parts = [model(piece, cache=cache).logits for piece in idx.split([7, 1, 12], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(idx).logits, rtol=0, atol=1e-11)


@torch.no_grad()
def test_a_token_costs_4_D_in_the_cache_and_2_D_in_the_last_layer(make_model: Callable) -> None:
    model = make_model("kope", n_layer=3)
    cache = model.new_cache()
    model(torch.zeros(1, 10, dtype=torch.long), cache=cache)
    held = []
    for layer in range(3):
        parts = [(part.keys, part.values) for part in cache.parts(layer)]
        held.append(sum(x.numel() // 10 for pair in parts for x in pair if x is not None))
    assert held == [64, 64, 32]
    with pytest.raises(ConfigError, match="no prefix R with a cache"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=model.new_cache(), return_phase=True)


def test_the_coupling_is_one_module_that_is_counted_and_stepped_once(make_model: Callable) -> None:
    D, layers = 16, 4
    model = make_model("kope", n_layer=layers, learn_coupling=True)
    names = [name for name in model.state_dict() if "link" in name]
    assert names == [f"transformer.link.{n}" for n in ("scale", "c_attn.weight", "c_attn.bias")]
    plain = make_model("softmax", n_layer=layers)
    more = model.num_parameters() - plain.num_parameters()
    assert more == layers * 2 * 4 * 4 + 2 * D * D + 2 * D + D + (layers - 1) * 2
    groups = parameter_groups(
        model, AdamWConfig(lr=1e-3, weight_decay=0.1, oscillator_lr_factor=3.0)
    )
    where = {id(p): group for group in groups for p in group["params"]}
    assert len(where) == sum(len(group["params"]) for group in groups)
    assert len(where) == len(list(model.parameters()))
    attn = model.blocks[2].attn
    for part in (model.link.scale, attn.oscillators.coupling, attn.mixing):
        assert where[id(part)]["weight_decay"] == 0
        assert where[id(part)]["lr"] == pytest.approx(3 * groups[0]["lr"])
    assert where[id(model.link.c_attn.weight)]["weight_decay"] == 0.1


def test_muon_turns_the_matrix_of_the_coupling_too(make_model: Callable) -> None:
    model = make_model("kope")
    groups = parameter_groups(model, MuonConfig(lr=1e-3))
    rule = {id(p): group["rule"] for group in groups for p in group["params"]}
    assert rule[id(model.link.c_attn.weight)] == "muon"
    assert rule[id(model.link.scale)] == rule[id(model.blocks[0].attn.mixing)] == "adamw"


def test_layers_computed_again_have_the_same_gradients(
    make_model: Callable, text_ids: Callable
) -> None:
    found = []
    for again in (False, True):
        words = {"layers": (0, 1, 3), "n_layer": 4, "activation_checkpointing": again}
        model = make_model("kope", coupling=0.5, **words).train()
        model(text_ids(2, 20), return_phase=True).logits.square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-7)


def test_initial_values_are_the_sources_and_keyed(make_model: Callable) -> None:
    model = make_model("kope", n_head=4, n_embd=256, n_layer=2)
    M = model.blocks[0].attn.mixing - torch.eye(32)
    assert M.std().item() == pytest.approx(0.1 * (2 / (32 * 32 + 4 * 32)) ** 0.5, rel=0.05)
    other = make_model("kope", n_head=4, n_embd=256, n_layer=2, coupling=0.0)
    assert torch.equal(other.blocks[0].attn.mixing, model.blocks[0].attn.mixing)
    assert torch.equal(other.link.c_attn.weight, model.link.c_attn.weight)
    assert not torch.equal(model.blocks[0].attn.mixing, model.blocks[1].attn.mixing)
    first, second = (block.attn.oscillators.coupling for block in model.blocks)
    assert not first.any()  # nothing pulls there
    assert second.tolist() == pytest.approx([0.05] * 4)
    assert model.link.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_penalty_on_R_reaches_the_coupling_through_the_layers_above(
    make_model: Callable, text_ids: Callable
) -> None:
    model = make_model("kope", n_layer=3, learn_coupling=True)
    phase = model(text_ids(2, 40), return_phase="coupling").phase
    assert not phase[0].R.requires_grad  # RoPE's angles
    penalty = coherence_regularizer(phase[2].R, target=0.1, weight=1.0)
    found = torch.autograd.grad(
        penalty, [model.link.c_attn.weight, model.blocks[2].attn.oscillators.coupling]
    )
    assert all(gradient.norm() > 0 for gradient in found)


@torch.no_grad()
def test_the_monitor_follows_every_step_of_the_coupling(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model = roughen(make_model("kope", n_layer=4, layers=(0, 1, 3), coupling=0.3))
    paths, phase = trajectories(model, text_ids(2, 40)), model(text_ids(2, 40), return_phase=True)
    assert list(paths) == [0, 1, 3]
    for layer, path in paths.items():
        assert path.steps == 1 and path.over_prefix
        torch.testing.assert_close(path.theta, phase.phase[layer].theta)
        turned = (path.theta - path.theta0).abs().max()
        assert turned == 0 if layer == 0 else 1e-3 < turned <= math.atan(0.3)
    torch.testing.assert_close(paths[3].theta0, paths[1].theta)


@torch.no_grad()
def test_interpretation_measures_and_changes_the_coupling(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model = roughen(make_model("kope", n_layer=3, coupling=0.5))
    found = measure(model, text_ids(3, 41)).statistics
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2]
    assert found["layers"][0]["dR"]["mean"] == 0 != found["layers"][2]["dR"]["mean"]
    change = {effect["name"]: effect["change"]["mean"] for effect in found["interventions"]}
    assert change["K x 1"] == 0 != change["K x 0"]
    assert change["S = 1"] == 0 != change["S = 0"]


# --- beginning with other weights ------------------------------------------------------------


def test_it_grows_into_softmax_and_says_that_the_coupling_is_new(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    source = roughen(make_model("softmax", positions="rope"))
    grown = make_model("kope", positions="rope", seed=1, **OFF)
    taken = growth.taken(grown, source, "x")
    growth.fill(grown, taken)
    assert not taken.left_over
    assert sum("link" in name for name in taken.new) == 3
    assert len(taken.new) == 2 + 3
    idx = text_ids(2, 20)
    torch.testing.assert_close(grown(idx).logits, source(idx).logits, rtol=0, atol=1e-5)
    back = growth.taken(make_model("softmax", positions="rope"), grown, "x")
    assert sorted(back.left_over) == sorted(taken.new)


def test_one_begins_with_another_and_takes_its_coupling(make_model: Callable) -> None:
    source, model = make_model("kope", seed=1), make_model("kope", coupling=0.2)
    taken = growth.taken(model, source, "x")
    assert all("coupling" in name for name in taken.new)  # an option fixes it
    growth.fill(model, taken)
    assert torch.equal(model.link.c_attn.weight, source.link.c_attn.weight)


# --- sampling --------------------------------------------------------------------------------


def test_carried_phases_slip_and_are_back_for_the_next_token(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model = roughen(make_model("kope", n_layer=3, coupling=0.5))
    slip = PhaseSlip(target="phases", angle=1.0, anchor=1.0)
    out = decode(model, text_ids(2, 8), max_new_tokens=6, seeds=[1, 2], intervention=slip)
    assert torch.equal(out, decode(model, text_ids(2, 8), max_new_tokens=6, seeds=[1, 2]))
    assert all(float(step.kl.min()) > 0 for step in slip.trace)
    assert {layer for layer, _ in slip._fitted[1]} == {0, 1} and len(slip._parts) == 2
    for part, _ in slip._parts:
        cos, sin = part.phases.chunk(2, -1)
        torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))
        assert torch.equal(part.phases[:2], part.phases[2:])
    last = PhaseSlip([(2, 0)], target="phases", angle=1.0)
    with pytest.raises(ConfigError, match="layer 2 keeps no phases"):
        decode(model, text_ids(1, 8), max_new_tokens=2, seeds=[1], intervention=last)


@torch.no_grad()
def test_the_R_of_a_gate_is_that_of_the_handed_phases(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model, idx = roughen(make_model("kope", n_layer=3, coupling=0.5)), text_ids(2, 9)
    cache = model.new_cache()
    model(idx, cache=cache)
    phase = model(idx, return_phase=True).phase
    for layer in (0, 1):
        found = cache.layers[layer].child("link").order_parameter()
        expected = phase[layer].R[:, -1].mean(-1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    slip = PhaseSlip([(1, 0)], target="phases", angle=2.0, anchor=0.0, gate=RGate(1.0))
    decode(model, idx, max_new_tokens=3, seeds=[1, 2], intervention=slip)
    assert all((step.weight == 0).all() for step in slip.trace)


def test_a_slip_of_values_turns_those_of_the_layers_alone(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model = roughen(make_model("kope", n_layer=3))
    slip = PhaseSlip([(0, 0), (2, 1)], angle=0.5)
    decode(model, text_ids(1, 8), max_new_tokens=3, seeds=[1], intervention=slip)
    assert [part.phases for part, _ in slip._parts] == [None, None]
    scores = calibrate_heads(model, text_ids(2, 16)).scores
    assert scores.shape == (3, 2) and scores.isfinite().all()


def test_a_layer_built_alone_begins_with_ropes_angles(make_model: Callable) -> None:
    config = make_model("kope").config
    x = torch.randn(2, 5, 16)
    out = build("kope", config, None, 0)(x, return_phase=True)
    angles = rotary_angles(0, 5, 4, torch.device("cpu")).float()
    assert out.phase is not None
    torch.testing.assert_close(out.phase.theta[1, :, 1].cos(), angles.cos())
