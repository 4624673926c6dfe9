"""`lohe`: against loops, public code, the Kuramoto model, and what physics says of spheres."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from naive import lohe as naive

from phasegpt.attention.lohe import Lohe, LoheConfig, advance_points
from phasegpt.core.composition import compose
from phasegpt.core.errors import ConfigError
from phasegpt.interpretation.interventions import interventions
from phasegpt.interpretation.synchronization import BAND, measure
from phasegpt.model import contract, contract_state, contract_training
from phasegpt.model.contract import Subject
from phasegpt.phase import mean_field_force
from phasegpt.samplers import PhaseSlip, decode
from phasegpt.training import phase_measures
from phasegpt.training.config import run_config
from phasegpt.training.phase_monitor import trajectories

F64 = torch.float64
AKORN = ROOT / "tests" / "fixtures" / "public" / "akorn.npz"


def layer_of(make_model: Callable[..., Any], roughen: Callable[..., Any], **words: Any) -> Lohe:
    model = make_model("lohe", n_layer=1, n_embd=16, n_head=2, layers=(0,), **words)
    layer = roughen(model.blocks[0].attn.double(), 0.5)
    assert isinstance(layer, Lohe)
    return layer


def states(layer: Lohe, h_BTD: torch.Tensor) -> list[torch.Tensor]:
    """x after every step, [B,T,D]."""
    x, advance = layer.dynamics(h_BTD)
    found = []
    for _ in range(layer.options.steps):
        x = advance(x, 1)
        points = torch.stack((x.cos(), x.sin()), -1) if layer.has_phases else x
        found.append(points.flatten(2))
    return found


def heads(width: int, count: int) -> list[list[int]]:
    return torch.arange(width).view(count, -1).tolist()


# --- against loops, and public code ----------------------------------------------------------


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize(
    "words", [{}, {"group": 2, "omega": 0.0}, {"group": 8, "steps": 1, "gamma": 0.3}], ids=str
)
def test_the_layer_equals_loops_over_numbers(
    words: dict[str, Any], positions: str, make_model: Callable, roughen: Callable
) -> None:
    layer = layer_of(make_model, roughen, positions=positions, **words)
    h = torch.randn(6, 16, dtype=F64)
    weight = {name: p.detach().numpy() for name, p in layer.named_parameters()}
    rope = layer.rope_theta if positions == "rope" else None

    def couple(x: np.ndarray) -> np.ndarray:
        qkv = weight["c_couple.weight"]
        mixed = naive.attention(x, lambda z: qkv @ z, heads(16, 2), causal=True, rope=rope)
        return mixed @ weight["c_join.weight"].T

    o, omega = layer.options, weight.get("omega")
    expected_states = naive.states(
        h.numpy() @ weight["c_start.weight"].T,
        h.numpy(),
        couple,
        None if omega is None else np.abs(omega),
        group=o.group,
        gamma=o.gamma,
        steps=o.steps,
    )
    norms = naive.readout(expected_states[-1], weight["c_read.weight"], weight["c_read.bias"])
    expected = norms @ weight["c_proj.weight"].T + weight["c_proj.bias"]
    with torch.no_grad():
        found = states(layer, h.unsqueeze(0))
        y = layer(h.unsqueeze(0)).y
    for mine, loops in zip(found, expected_states, strict=True):
        np.testing.assert_allclose(mine[0].numpy(), loops, atol=1e-10)
    np.testing.assert_allclose(y[0].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("case", ["n2_omega", "n4_omega", "n8_omega", "n4_still"])
def test_the_loops_without_causality_give_the_numbers_of_akorns_code(case: str) -> None:
    with np.load(AKORN) as public:
        assert str(public["commit"]) == "eabbe2728c5b83836ce44f6d780b7cc37eea2a31"
        given = {name.split("/")[1]: public[name] for name in public if name.startswith(case)}
        x_BTC, drive_BTC = public["x"], public["drive"]
        steps, gamma, H = (public[name].item() for name in ("steps", "gamma", "heads"))
    turns = "omega" in given  # without it their code adds x itself: a smaller step
    gamma, C = gamma if turns else gamma / (1 + gamma), x_BTC.shape[-1]
    interleaved = [list(range(head, C, H)) for head in range(H)]  # their heads share neighbours

    def couple(x: np.ndarray) -> np.ndarray:
        mixed = naive.attention(
            x, lambda z: given["W_qkv"] @ z + given["b_qkv"], interleaved, causal=False, rope=None
        )
        return mixed @ given["W_o"].T + given["b_o"]

    omega = -given["omega"] if turns else None  # they turn the other way
    group = int(case[1])
    for row in range(2):
        found = naive.states(
            x_BTC[row], drive_BTC[row], couple, omega, group=group, gamma=gamma, steps=steps
        )
        np.testing.assert_allclose(np.stack(found), given["states"][:, row], atol=1e-10)


def test_the_readout_is_that_of_akorns_code() -> None:
    with np.load(AKORN) as public:
        x_BTC, W, b = public["readout/x"], public["readout/W"], public["readout/b"]
        for x_TC, y_TC in zip(x_BTC, public["readout/y"], strict=True):
            mine = naive.readout(x_TC, W, b) + public["readout/bias"]
            np.testing.assert_allclose(mine, y_TC, atol=1e-12)


# --- groups of two: the Kuramoto model -------------------------------------------------------


def test_groups_of_two_are_phases_that_are_pulled_by_sines(
    make_model: Callable, roughen: Callable
) -> None:
    """theta <- theta + atan(gamma (omega + |y| sin(psi - theta))), step by step, in angles."""
    layer = layer_of(make_model, roughen, group=2, gamma=0.4, positions="rope")
    h = torch.randn(2, 7, 16, dtype=F64)
    with torch.no_grad():
        theta = torch.atan2(*layer.c_start(h).view(2, 7, 8, 2).flip(-1).unbind(-1))
        for _ in range(layer.options.steps):
            x = torch.stack((theta.cos(), theta.sin()), -1).flatten(2)
            y = (layer._coupling(x, None) + h).view(2, 7, 8, 2)
            size, psi = y.norm(dim=-1), torch.atan2(y[..., 1], y[..., 0])
            theta = theta + (0.4 * (layer.omega.abs() + size * (psi - theta).sin())).atan()
        out = layer(h, return_phase=True)
        path = layer.trajectory(h, return_path=True)
    expected = theta.unflatten(-1, (2, 4))
    torch.testing.assert_close(out.phase.theta, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(path.path[-1], expected, atol=1e-10, rtol=0)


def test_on_circles_the_tangent_to_the_mean_is_kuramotos_force() -> None:
    theta_N = torch.randn(9, dtype=F64) * 3
    x = torch.stack((theta_N.cos(), theta_N.sin()), -1)
    mean = x.mean(0).expand_as(x)
    new = advance_points(x.unsqueeze(-2), mean.unsqueeze(-2), None, 0.3).squeeze(-2)
    turn = torch.atan2(new[:, 1], new[:, 0]) - theta_N
    expected = (0.3 * mean_field_force(theta_N)).atan()
    torch.testing.assert_close(turn.sin(), expected.sin(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize(
    "rule",
    [
        contract.shapes,
        contract.causality,
        contract.same_logits_with_phases,
        contract_state.phases_while_decoding,
        contract_state.order_parameter,
        contract_state.trajectory,
        contract_training.precise_phases,
        contract_training.gradients,
    ],
    ids=lambda rule: rule.__name__,
)
def test_a_rule_of_the_contract_holds_where_there_are_phases(
    rule: Callable[[Subject], None], positions: str
) -> None:
    subject = Subject("lohe", {"group": 2}, positions)
    assert subject.layer().has_phases
    rule(subject)


def test_the_report_reads_phases_and_changes_their_coupling(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model, ids = roughen(make_model("lohe", group=2, layers=(1,)), 0.3), text_ids(3, 41)
    measured = measure(model, ids)
    (row,), (found,) = measured.statistics["layers"], measured.traces
    with torch.no_grad():
        out = model(ids[:, :-1], return_phase=True)
    torch.testing.assert_close(found.theta_BTHN, out.phase[1].theta)
    (path,) = trajectories(model, ids[:, :-1]).values()
    monitored = phase_measures.measure(path, BAND)
    assert monitored["dR"].mean().item() == pytest.approx(row["dR"]["mean"], abs=2e-5)
    effects = {e.name: e.loss_BT for e in interventions(model, ids)}
    torch.testing.assert_close(effects["K x 1"], measured.loss_BT)
    assert (effects["K x 0"] - measured.loss_BT).abs().max() > 1e-4


def test_phases_without_coupling_follow_their_own_drive(
    make_model: Callable, roughen: Callable
) -> None:
    layer, h = layer_of(make_model, roughen, group=2), torch.randn(1, 6, 16, dtype=F64)
    with torch.no_grad():
        free = layer.trajectory(h).free
        layer.oscillators.coupling.zero_()
        torch.testing.assert_close(layer(h, return_phase=True).phase.theta, free[-1])
        alone = layer(h[:, 5:], return_phase=True).phase.theta
    torch.testing.assert_close(alone[:, 0], free[-1][:, 5])


def test_only_groups_of_two_have_phases(make_model: Callable) -> None:
    layer = make_model("lohe", layers=(1,)).blocks[1].attn
    x = torch.randn(1, 5, layer.n_embd)
    assert not layer.has_phases
    assert layer.trajectory(x) is None
    assert layer(x, return_phase=True).phase is None


def test_a_penalty_through_the_coupling_moves_nothing_that_is_shared(
    make_model: Callable, roughen: Callable
) -> None:
    layer = layer_of(make_model, roughen, group=2)
    h, norms = torch.randn(1, 40, 16, dtype=F64), {}
    for how in (True, "coupling"):
        layer.zero_grad()
        layer(h, return_phase=how).phase.R.square().sum().backward()
        norms[how] = {n: p.grad.norm() for n, p in layer.named_parameters() if p.grad is not None}
    assert norms[True]["omega"] > 1e-6
    assert "omega" not in norms["coupling"]
    for name in ("c_couple.weight", "c_join.weight", "c_start.weight"):
        assert norms["coupling"][name] > 1e-6
    for how in (False, True):  # what moves all tokens alike has no gradient at the start
        h.requires_grad_()
        theta, _ = layer.dynamics(h, coupling_only=how)
        (pull,) = torch.autograd.grad(theta[..., 0, 0].sum(), h)
        assert (pull.abs().max() < 1e-12) == how


# --- options, memory, samplers ---------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_memory_of_a_token_is_two_widths_a_step(steps: int, make_model: Callable) -> None:
    model = make_model("lohe", layers=(1,), steps=steps)
    cache = model.new_cache()
    model(torch.randint(60, (2, 5)), cache=cache)
    held = sum(
        part.keys[:, :, 0].numel() + part.values[:, :, 0].numel()
        for part in cache.parts(1)
        if part.keys is not None
    )
    assert held / 2 == steps * 2 * model.config.n_embd  # 2 rows
    assert cache.parts(1)[0].length == 5


def test_a_model_runs_with_more_steps_than_it_was_trained_with(make_model: Callable) -> None:
    few, many = (make_model("lohe", layers=(1,), steps=steps) for steps in (2, 6))
    many.load_state_dict(few.state_dict())
    idx = torch.randint(60, (1, 9))
    assert (few(idx).logits - many(idx).logits).abs().max() > 1e-6


@pytest.mark.parametrize("words", [{"group": 3}, {"group": 6}, {"group": 32}], ids=str)
def test_groups_that_do_not_fit_are_refused(words: dict[str, Any], make_model: Callable) -> None:
    with pytest.raises(ConfigError, match=r"attention\.group=\d+ must be even and divide"):
        make_model("lohe", n_embd=16, n_head=2, **words)


def test_options_of_steps_that_are_not_taken_are_refused() -> None:
    LoheConfig(steps=0).check_idle()
    with pytest.raises(ConfigError, match=r"gamma=.* does nothing while attention.steps=0"):
        LoheConfig(steps=0, gamma=0.5).check_idle()


def test_what_acts_on_phases_is_refused_for_groups_of_four() -> None:
    words = ["attention=lohe", "regularizer=center"]
    run_config(compose([*words, "attention.group=2"])).check_idle()
    with pytest.raises(ConfigError, match="does nothing without oscillators"):
        run_config(compose(words)).check_idle()


def test_values_of_every_step_slip_and_phases_are_refused(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model, idx = roughen(make_model("lohe", group=2)), text_ids(1, 8)
    slip = PhaseSlip([(1, 0)], angle=1.0, gate=None)
    decode(model, idx, max_new_tokens=3, seeds=[1], intervention=slip)
    assert len(slip._parts) == 4
    assert all(float(step.kl.min()) > 0 for step in slip.trace)
    with pytest.raises(ConfigError, match="layer 1 keeps no phases to rotate"):
        slip = PhaseSlip([(1, 0)], target="phases", angle=1.0)
        decode(model, idx, max_new_tokens=3, seeds=[1], intervention=slip)
