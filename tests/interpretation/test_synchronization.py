"""Synchronization, attention and interventions as measured, against hand computation."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from phasegpt import ops
from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.core.composition import compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.data.config import DataSection, task_class
from phasegpt.interpretation.attention_maps import attention_maps, map_measures
from phasegpt.interpretation.interventions import (
    Effect,
    coupling,
    interventions,
    scrambled,
    silent,
    task_interventions,
)
from phasegpt.interpretation.synchronization import BAND, estimate, measure, status
from phasegpt.interpretation.tracing import counts, integrating, phase_layers, token_losses, trace
from phasegpt.model.scoring import nats, score_task
from phasegpt.phase import order_parameter, prefix_order_parameter
from phasegpt.training import phase_measures
from phasegpt.training.phase_monitor import trajectories

MECHANISMS = {
    "kuramoto": {"attention": "kuramoto"},
    "gated and lagged": {"attention": "kuramoto", "readout": "both", "lag": 0.3},
    "phase_sync": {"attention": "phase_sync"},
    "forgetting with RoPE": {"attention": "phase_sync", "forget": 0.9, "positions": "rope"},
    "hybrid": {"attention": "hybrid"},
    "hybrid_phase_sync": {"attention": "hybrid", "partner": "phase_sync"},
}
#: One step of attention, so without options of an integration.
ONE_STEP = ("torus", "fsn")


@pytest.fixture
def make(make_model: Any, roughen: Any) -> Any:
    """make("kuramoto", coupling=0.0): a model of moved weights with oscillators in layer 1."""

    def build(name: str, **options: Any) -> Any:
        words = {"layers": (1,), "learn_coupling": False}
        if name in MECHANISMS:
            words |= {"num_oscillators": 4, "steps": 6, **MECHANISMS[name]}
        else:
            words["attention"] = name
        return roughen(make_model(**{**words, **options}), 0.3)

    return build


@pytest.fixture
def ids(text_ids: Any) -> Tensor:
    return text_ids(3, 41)


def by_name(effects: list[Effect]) -> dict[str, Effect]:
    return {effect.name: effect for effect in effects}


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_trace_holds_the_models_own_losses_and_phases(name: str, make: Any, ids: Tensor) -> None:
    model = make(name)
    loss_BT, (found,) = trace(model, ids)
    with torch.no_grad():
        out = model(ids[:, :-1], return_phase=True)
    total, count = nats(out.logits, ids[:, 1:])
    assert loss_BT.shape == (3, 40)
    assert loss_BT.double().sum().item() == pytest.approx(total.item(), rel=1e-6)
    assert loss_BT.numel() == count
    torch.testing.assert_close(found.theta_BTHN, out.phase[1].theta, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.path_STHN[-1], found.theta_BTHN[0], rtol=0, atol=0)
    assert found.steps == tuple(range(7))


def test_R_at_the_steps_is_that_of_kuramoto_rows(make: Any, ids: Tensor) -> None:
    _, (found,) = trace(model := make("kuramoto"), ids)
    oscillators = model.blocks[1].attn.oscillators
    zero = torch.zeros_like(oscillators.coupling)
    with torch.no_grad():
        theta0 = oscillators.initial_phases(found.x_BTD)
        for K, R_HS in (
            (oscillators.coupling, found.R_steps_HS),
            (zero, found.R_steps_uncoupled_HS),
        ):
            rows = ops.kuramoto_rows(
                theta0, oscillators.omega, K, steps=6, dt=0.1, return_order=True
            )
            assert rows.R is not None
            torch.testing.assert_close(R_HS, rows.R.mean((0, 1)), rtol=0, atol=1e-5)
    assert (found.R_BTHC[..., 0] == order_parameter(found.theta_BTHN)).all()
    assert (found.R_steps_HS[:, -1] > found.R_steps_uncoupled_HS[:, -1]).all()


@pytest.mark.parametrize("name", ["phase_sync", "forgetting with RoPE"])
def test_prefix_R_at_the_steps_is_that_of_the_scan(name: str, make: Any, ids: Tensor) -> None:
    _, (found,) = trace(model := make(name), ids)
    layer = model.blocks[1].attn
    forget = None if layer.forget_logit is None else layer.forget_logit.sigmoid()
    with torch.no_grad():
        scan = ops.kuramoto_scan(
            found.theta0_BTHN.flatten(2),
            layer.oscillators.omega.flatten(),
            layer.oscillators.coupling.repeat_interleave(4),
            steps=6,
            dt=0.1,
            forget=forget,
            return_order=True,
        )
    assert scan.R is not None
    R_BTHNS = scan.R.unflatten(2, (2, 4))
    torch.testing.assert_close(found.R_BTHC, R_BTHNS[..., -1], rtol=0, atol=1e-5)
    assert found.first == 31  # prefixes of 32 tokens and more count
    by_hand = R_BTHNS[:, 31:].mean((0, 1, 3))
    torch.testing.assert_close(found.R_steps_HS, by_hand, rtol=0, atol=1e-5)
    if forget is None:
        torch.testing.assert_close(found.R_BTHC, prefix_order_parameter(found.theta_BTHN))


def test_forgetting_prefixes_have_the_effective_number_of_their_weights(make: Any) -> None:
    (layer,) = phase_layers(model := make("forgetting with RoPE"))
    weight = model.blocks[1].attn.forget_logit.sigmoid()[5].item()  # head 1, oscillator 1
    weights = [weight**k for k in range(3)]
    expected = sum(weights) ** 2 / sum(w * w for w in weights)
    with torch.no_grad():
        assert counts(layer, 3)[2, 1, 1].item() == pytest.approx(expected, rel=1e-5)
        (plain,) = phase_layers(make("phase_sync"))
        assert counts(plain, 3)[:, 0, 0].tolist() == [1, 2, 3]


def test_dR_is_the_difference_of_two_means_and_0_without_coupling(make: Any, ids: Tensor) -> None:
    for name in MECHANISMS:
        off = measure(make(name, coupling=0.0), ids, effects=False).statistics["layers"][0]
        # roughen moves learned parameters alone: K is fixed here.
        assert off["dR"]["mean"] == pytest.approx(0, abs=1e-5)
        assert off["status"] == "uncoupled"
        on = measure(make(name, coupling=3.0), ids, effects=False).statistics["layers"][0]
        difference = on["R"]["mean"] - on["R_uncoupled"]
        assert on["dR"]["mean"] == pytest.approx(difference, abs=2e-6)
        assert on["dR"]["low"] > 0


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_of_attention_is_traced_and_measured(name: str, make: Any, ids: Tensor) -> None:
    measured = measure(model := make(name), ids)
    (found,), (layer,) = measured.traces, measured.statistics["layers"]
    with torch.no_grad():
        phases = model(ids[:, :-1], return_phase=True).phase[1]
    torch.testing.assert_close(found.theta_BTHN, phases.theta, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.R_BTHC, phases.R, rtol=0, atol=1e-5)
    assert torch.equal(found.uncoupled_BTHN, found.theta0_BTHN)
    assert (layer["mechanism"], layer["steps"], layer["oscillators"]) == (name, 1, 8)
    assert [head["budget"] for head in layer["heads"]] == [1.0, 1.0]
    effects = {e["name"]: e["change"]["mean"] for e in measured.statistics["interventions"]}
    assert effects["K x 1"] == effects["S = 1"] == 0
    assert effects["K x 0"] == effects["S = 0"] != 0
    for other in ("K x 2", "S = 2", "scrambled across tokens", "scrambled across oscillators"):
        assert effects[other] != 0
    off = measure(make(name, coupling=0.0), ids, effects=False).statistics["layers"][0]
    assert off["dR"]["mean"] == 0


def test_statistics_are_those_of_the_phases(make: Any, ids: Tensor) -> None:
    measured = measure(make("kuramoto"), ids, effects=False)
    layer, theta = measured.statistics["layers"][0], measured.traces[0].theta_BTHN
    R = order_parameter(theta)
    assert layer["R"]["mean"] == pytest.approx(R.mean().item(), abs=1e-6)
    assert layer["R"]["sd"] == pytest.approx(R.std(correction=0).item(), abs=1e-6)
    assert layer["R"]["min"] == pytest.approx(R.min().item(), abs=1e-6)
    inside = ((R >= 0.35) & (R <= 0.55)).float().mean().item()
    assert layer["R"]["in_band"] == pytest.approx(inside, abs=1e-6)
    head = layer["heads"][1]
    assert head["R"]["max"] == pytest.approx(R[..., 1].max().item(), abs=1e-6)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    cosines = [(theta[..., 1, a] - theta[..., 1, b]).cos().mean().item() for a, b in pairs]
    assert head["ppc"]["mean"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    own = measured.traces[0].theta0_BTHN[:, :, 1].mean((0, 1)).std(correction=0)
    assert head["offsets"] == pytest.approx(own.item(), abs=1e-5)
    r = head["loss_correlation"]["R"]
    each = [torch.corrcoef(torch.stack((measured.loss_BT[b], R[b, :, 1])))[0, 1] for b in range(3)]
    assert r["r"] == pytest.approx(sum(x.item() for x in each) / 3, abs=1e-5)


def test_intervals_are_students_over_sequences_or_tokens_of_one() -> None:
    two = estimate(torch.tensor([[1.0, 3.0], [4.0, 4.0]]))  # means 2 and 4, sd sqrt(2)
    assert two == {
        "mean": 3.0,
        "low": pytest.approx(3 - 12.7062, abs=1e-4),
        "high": pytest.approx(3 + 12.7062, abs=1e-4),
        "n": 2,
        "per": "sequence",
    }
    one = estimate(torch.tensor([[2.0, 4.0]]))
    assert one == {**two, "per": "token"}
    alone = estimate(torch.tensor([[2.0]]))
    assert alone == {"mean": 2.0, "low": None, "high": None, "n": 1, "per": "token"}


@pytest.mark.parametrize(
    ("axis", "R", "ppc", "low", "expected"),
    [
        ("oscillators", 0.45, 0.2, 0.01, "healthy"),
        ("oscillators", 0.45, 0.2, -0.01, "under-synchronized"),  # in the band, not by coupling
        ("oscillators", 0.45, 0.2, None, "under-synchronized"),
        ("oscillators", 0.20, 0.0, 0.01, "under-synchronized"),
        ("oscillators", 0.56, 0.3, 0.01, "over-synchronized"),
        ("oscillators", 0.95, 0.9, -0.5, "over-synchronized"),
        ("prefix", 0.95, 0.8, 0.01, "healthy"),  # the band is not for prefixes
        ("prefix", 0.97, 0.95, 0.01, "over-synchronized"),
        ("prefix", 0.30, 0.1, -0.01, "under-synchronized"),
    ],
)
def test_the_status_follows_its_rule(
    axis: str, R: float, ppc: float, low: float | None, expected: str
) -> None:
    name, reason = status(axis, R, ppc, {"mean": 0.1, "low": low, "high": 0.2})
    assert name == expected
    assert reason.endswith(".")


@pytest.mark.parametrize("name", ["kuramoto", "gated and lagged", "hybrid"])
def test_the_coherent_map_is_the_one_the_layer_attends_with(
    name: str, make: Any, ids: Tensor
) -> None:
    _, (found,) = trace(make(name), ids)
    module = found.layer.module
    assert isinstance(module, Kuramoto)
    maps = attention_maps(module, found.x_BTD, found.theta_BTHN)
    assert maps.coherent.sum(-1).allclose(torch.ones(()))
    with torch.no_grad():
        v = module.project(found.x_BTD, None)[2]
        gain = 1.0
        if module.gate is not None:
            null = math.sqrt(math.pi / 16)
            gain = 1 + module.gate.view(-1, 1, 1) * (found.R_BTHC.transpose(1, 2) - null)
        y = module.c_proj((maps.coherent @ v * gain).transpose(1, 2).flatten(2))
        torch.testing.assert_close(y, module(found.x_BTD).y, rtol=0, atol=1e-4)
        assert not torch.allclose(maps.plain, maps.coherent)
        with silent(found.layer):
            bare = attention_maps(module, found.x_BTD, found.theta_BTHN)
        torch.testing.assert_close(bare.coherent, maps.plain)
        torch.testing.assert_close(bare.plain, maps.plain)


def test_map_measures_are_those_of_the_rows(make: Any, ids: Tensor) -> None:
    _, (found,) = trace(make("kuramoto"), ids)
    module, theta = found.layer.module, found.theta_BTHN
    assert isinstance(module, Kuramoto)
    maps = attention_maps(module, found.x_BTD, theta)
    measures = map_measures(maps, theta, torch.Generator().manual_seed(0))
    b, h, t = 1, 1, 7
    A, plain = maps.coherent[b, h, t], maps.plain[b, h, t]
    got = {name: value[b, t, h].item() for name, value in measures.items()}
    before = A[: t + 1]
    entropy = -(before * before.log()).sum().item() / math.log(t + 1)
    assert got["entropy"] == pytest.approx(entropy, abs=1e-5)
    assert got["distance"] == pytest.approx(sum(A[u].item() * (t - u) for u in range(t)), abs=1e-4)
    assert got["moved"] == pytest.approx((A - plain).abs().sum().item() / 2, abs=1e-6)
    assert got["own"] == pytest.approx(A[t].item(), abs=1e-6)
    for name, row in (("largest", A), ("largest_plain", plain)):
        assert got[name] == max(row.tolist())
    assert (got["sink"], got["sink_plain"]) == (A[0].item(), plain[0].item())
    cosines = [(theta[b, t, h] - theta[b, u, h]).cos().mean().item() for u in range(t)]
    others = sum(A[u].item() * cosines[u] for u in range(t)) / A[:t].sum().item()
    assert got["coherence"] == pytest.approx(others, abs=1e-5)
    assert min(cosines) <= got["coherence_shuffled"] <= max(cosines)
    # The second token has one other token, so chance has no choice either.
    torch.testing.assert_close(measures["coherence"][:, 1], measures["coherence_shuffled"][:, 1])
    assert measures["coherence"][:, 0].isnan().all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_interventions_that_change_nothing_leave_every_loss(
    name: str, make: Any, ids: Tensor
) -> None:
    model = make(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss_BT = token_losses(model, ids)
    effects = by_name(interventions(model, ids))
    for same in ("K x 1", "S = 6"):
        torch.testing.assert_close(effects[same].loss_BT, loss_BT, rtol=0, atol=0)
    for other in ("K x 2", "S = 12", "scrambled across tokens", "scrambled across oscillators"):
        assert (effects[other].loss_BT - loss_BT).abs().max() > 1e-4
    assert all((before[k] == v).all() for k, v in model.state_dict().items())
    torch.testing.assert_close(token_losses(model, ids), loss_BT, rtol=0, atol=0)


def test_interventions_are_the_models_of_that_configuration(make: Any, ids: Tensor) -> None:
    effects = by_name(interventions(make("kuramoto"), ids))
    for name, options in {
        "K x 2": {"coupling": 2.0},
        "K x 0": {"coupling": 0.0},
        "S = 12": {"steps": 12},
        "S = 3": {"steps": 3},
    }.items():
        other = token_losses(make("kuramoto", **options), ids)
        torch.testing.assert_close(effects[name].loss_BT, other, rtol=0, atol=1e-5)
    # With the bias readout, frequencies and constant offsets cancel: K = 0 equals S = 0.
    torch.testing.assert_close(effects["K x 0"].loss_BT, effects["S = 0"].loss_BT)
    model = make("kuramoto")
    with torch.no_grad():
        model.blocks[1].attn.beta.zero_()
    softmax = token_losses(model, ids)
    torch.testing.assert_close(effects["coherence not read out"].loss_BT, softmax)
    assert "coherence not read out" not in by_name(interventions(make("phase_sync"), ids))


def test_scrambling_deals_the_phases_anew_and_is_a_function_of_the_seed(
    make: Any, ids: Tensor
) -> None:
    model = make("kuramoto")
    (layer,) = phase_layers(model)

    def phases(what: str | None, seed: int = 0) -> Tensor:
        with torch.no_grad():
            if what is None:
                return model(ids, return_phase=True).phase[1].theta
            with scrambled(layer, what, seed):
                return model(ids, return_phase=True).phase[1].theta

    own, oscillators, tokens = phases(None), phases("oscillators"), phases("tokens")
    assert (own.sort(-1).values == oscillators.sort(-1).values).all()
    torch.testing.assert_close(order_parameter(own), order_parameter(oscillators))
    assert (own.sort(1).values == tokens.sort(1).values).all()
    assert not (own == tokens).all()
    assert (phases("tokens") == tokens).all()
    assert not (phases("tokens", seed=1) == tokens).all()


def test_an_error_inside_an_intervention_leaves_the_model_as_it_was(make: Any) -> None:
    model = make("gated and lagged")
    (layer,) = phase_layers(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with (
        pytest.raises(RuntimeError, match="stop"),
        coupling(layer, 0.5),
        silent(layer),
        integrating(layer, lambda advance, theta0: theta0),
        integrating(layer, lambda advance, theta0: theta0),
    ):
        raise RuntimeError("stop")
    assert all((before[k] == v).all() for k, v in model.state_dict().items())
    assert not layer.oscillators._forward_hooks


def test_models_without_oscillators_layers_or_a_future_are_refused(
    make: Any, make_model: Any, ids: Tensor
) -> None:
    with pytest.raises(ConfigError, match="no oscillators"):
        measure(make_model("softmax"), ids)
    with pytest.raises(ConfigError, match=r"layer 0 has no oscillators; choose from: 1"):
        measure(make("kuramoto"), ids, layers=[0])
    with pytest.warns(UserWarning, match="sees the future"):
        leaky = make_model("as_coded")
    with pytest.raises(ConfigError, match="sees the future"):
        measure(leaky, ids)
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        token_losses(make("kuramoto"), ids[:, :1])


def test_no_steps_and_a_single_short_sequence_can_be_measured(make: Any, ids: Tensor) -> None:
    for name in MECHANISMS:
        measured = measure(make(name, steps=0), ids[:1, :3])
        (layer,) = measured.statistics["layers"]
        assert layer["dR"]["mean"] == 0
        json.dumps(measured.statistics, allow_nan=False)


SEAMS = {
    "kuramoto": {"omega_spread": 1.0, "integrator": "heun", "readout": "gate", "lag": 0.3},
    "gated and lagged": {"omega_spread": 1.0, "learn_coupling": True},
    "phase_sync": {"omega_spread": 1.0, "positions": "rope"},
    "hybrid": {"integrator": "rk4"},
    "hybrid_phase_sync": {"steps": 0},
}


@pytest.mark.filterwarnings("ignore:oscillators are integrated in plain PyTorch")
@pytest.mark.parametrize("name", SEAMS)
def test_the_monitor_and_the_report_measure_the_same(name: str, make: Any, ids: Tensor) -> None:
    model = make(name, **SEAMS[name])
    (row,) = measure(model, ids, effects=False).statistics["layers"]
    (path,) = trajectories(model, ids[:, :-1]).values()
    found = phase_measures.scalars({1: phase_measures.measure(path, BAND)}, "phase")
    report = {"R_end/layer1": row["R"], "dR/layer1": row["dR"], "ppc/layer1": row["ppc"]}
    for metric, value in report.items():
        assert found[f"phase/{metric}"] == pytest.approx(value["mean"], abs=2e-5), metric
    if row["R"]["in_band"] is not None:
        assert found["phase/band_final/layer1"] == pytest.approx(row["R"]["in_band"], abs=1e-5)
    for metric in ("participation", "offsets", "budget"):
        heads = [head[metric] for head in row["heads"]]
        assert found[f"phase/{metric}/layer1"] == pytest.approx(sum(heads) / 2, rel=1e-4)


def test_the_report_says_that_a_forgetting_layer_weighs_its_prefix(make: Any, ids: Tensor) -> None:
    for name, weighted in {"forgetting with RoPE": True, "phase_sync": False}.items():
        (row,) = measure(make(name), ids, effects=False).statistics["layers"]
        assert ("weighted" in row["R_is_over"]) == weighted


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_equal_phases_carry_nothing_that_a_scramble_could_take(
    positions: str, make: Any, ids: Tensor
) -> None:
    model = make("phase_sync", coupling=0.0, positions=positions, omega_std=0.0)
    with torch.no_grad():
        for name in ("phase.weight", "phase.bias", "omega"):
            model.blocks[1].attn.oscillators.get_parameter(name).zero_()
        model.blocks[1].attn.c_proj.weight.mul_(20)
    found = by_name(interventions(model, ids))
    for what in ("tokens", "oscillators"):
        change = found[f"scrambled across {what}"].loss_BT - found["K x 1"].loss_BT
        assert change.abs().max() < 1e-4
    (head, _) = measure(model, ids, effects=False).statistics["layers"][0]["heads"]
    assert head["offsets"] < 1e-5


def test_layers_that_nothing_can_couple_do_not_set_the_status(make: Any, ids: Tensor) -> None:
    kope = measure(make("kope", layers=(0, 1), learn_coupling=True), ids, effects=False).statistics
    assert next(row["status"] for row in kope["layers"]) == "uncoupled" != kope["status"]
    assert measure(make("ssa"), ids, effects=False).statistics["status"] == "uncoupled"


def test_no_layers_are_no_choice(make: Any, ids: Tensor) -> None:
    with pytest.raises(ConfigError, match="names no layer"):
        measure(make("kuramoto"), ids, layers=[])


def test_weights_of_a_forgotten_prefix_give_the_layers_R(make: Any, ids: Tensor) -> None:
    _, (found,) = trace(make("forgetting with RoPE"), ids)
    before, weights = found.theta_BTHN[0, :20], found.weights(20)
    mean = (weights * torch.polar(torch.ones_like(before), before)).sum(0) / weights.sum(0)
    torch.testing.assert_close(mean.abs(), found.R_BTHC[0, 19], rtol=0, atol=1e-5)


def test_interventions_on_a_task_are_scored_as_the_task_is(make: Any) -> None:
    data = plain(compose(["data=induction_small", "data.val_examples=16"]))["data"]
    task = task_class("induction")(DataSection.parse(data))
    model = make("fsn", block_size=128, learn_coupling=True)
    found = {e.name: e.scores for e in task_interventions(model, task, "val")}
    alone = score_task(model, task, "val", batch_size=32)
    assert found["K x 1"] == found["S = 1"] == alone
    model.blocks[1].attn.oscillators.coupling.data.zero_()
    assert found["K x 0"] == score_task(model, task, "val", batch_size=32) != alone
    assert found["S = 0"]["loss"] == pytest.approx(found["K x 0"]["loss"], abs=1e-6)
    assert found["scrambled across tokens"] != alone
