"""Phase-Slip in layers with oscillators: phases that slip, and a gate that sees their R."""

import math
from typing import Any

import pytest
import torch

from phasegpt.attention._cache import LayerCache
from phasegpt.core.errors import ConfigError
from phasegpt.samplers import PhaseSlip, RGate, decode


@pytest.mark.parametrize("mechanism", ["kuramoto", "phase_sync", "hybrid", "torus", "fsn", "ssa"])
def test_phases_slip_and_are_back_for_the_next_token(
    mechanism: str, make_model: Any, roughen: Any, text_ids: Any
) -> None:
    model = roughen(make_model(mechanism, n_layer=3))
    slip = PhaseSlip(target="phases", angle=1.0, anchor=1.0)
    out = decode(model, text_ids(2, 8), max_new_tokens=12, seeds=[1, 2], intervention=slip)
    assert torch.equal(out, decode(model, text_ids(2, 8), max_new_tokens=12, seeds=[1, 2]))
    assert {layer for layer, _ in slip._fitted[1]} == {0, 1, 2}
    assert all(float(step.kl.min()) > 0 for step in slip.trace)
    for part, _ in slip._parts:
        if part.phases is not None:
            if not part.angles:
                cos, sin = part.phases.chunk(2, -1)
                torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))
            assert torch.equal(part.phases[:2], part.phases[2:])
        else:
            assert torch.equal(part.state.cos_SBC[:, :2], part.state.cos_SBC[:, 2:])


def test_a_slip_of_phases_keeps_the_size_of_the_running_sums(
    make_model: Any, roughen: Any, text_ids: Any
) -> None:
    slip = PhaseSlip([(1, 0)], target="phases", angle=0.7, gate=None)
    decode(roughen(make_model("phase_sync")), text_ids(1, 8), max_new_tokens=3, seeds=[1],
           intervention=slip)  # fmt: skip
    ((part, heads),) = slip._parts
    before = part.state
    after = slip._slip_state(before, heads, part.oscillators)
    N = part.oscillators
    for x, y in ((before, after),):
        torch.testing.assert_close(
            x.cos_SBC.square() + x.sin_SBC.square(), y.cos_SBC.square() + y.sin_SBC.square()
        )
        assert torch.equal(x.cos_SBC[:, :1], y.cos_SBC[:, :1])  # clean
        assert torch.equal(x.cos_SBC[:, 1:, N:], y.cos_SBC[:, 1:, N:])  # the other head
    turn = torch.atan2(after.sin_SBC, after.cos_SBC) - torch.atan2(before.sin_SBC, before.cos_SBC)
    turn = (torch.remainder(turn + math.pi, 2 * math.pi) - math.pi)[:, 1:, :N].abs()
    torch.testing.assert_close(turn, torch.full_like(turn, 0.7), atol=1e-4, rtol=0)


def test_angles_slip_by_the_angle_in_the_window_of_the_copies_alone(
    make_model: Any, roughen: Any, text_ids: Any
) -> None:
    slip = PhaseSlip([(1, 0)], target="phases", angle=0.7, gate=None, window=5)
    model = roughen(make_model("torus"))
    decode(model, text_ids(1, 8), max_new_tokens=3, seeds=[1], intervention=slip)
    ((part, heads),) = slip._parts
    with torch.inference_mode():
        before = part.phases.clone()
        slip._edit(heads, part)
    moved = part.phases - before
    assert not moved[:1].any()  # clean
    assert not moved[:, 1:].any()  # the other head
    assert not moved[1:, :, :-5].any()
    turned = moved[1:, :1, -5:]
    torch.testing.assert_close(turned.abs(), torch.full_like(turned, 0.7), atol=1e-5, rtol=0)
    assert 0 < (turned > 0).float().mean() < 1


@pytest.mark.parametrize("mechanism", ["kuramoto", "phase_sync", "torus", "ssa"])
def test_the_R_gate_is_open_only_where_a_head_is_over_synchronized(
    mechanism: str, make_model: Any, roughen: Any, text_ids: Any
) -> None:
    model, ids, seeds = roughen(make_model(mechanism)), text_ids(3, 8), [1, 2, 3]
    plain = decode(model, ids, max_new_tokens=12, seeds=seeds)
    weights = {}
    for threshold in (0.0, 0.35, 1.0):
        slip = PhaseSlip(target="phases", angle=2.0, anchor=0.0, gate=RGate(threshold))
        out = decode(model, ids, max_new_tokens=12, seeds=seeds, intervention=slip)
        weights[threshold] = torch.stack([step.weight for step in slip.trace])
    assert (weights[0.0] == 1).all()
    assert (weights[1.0] == 0).all()
    assert torch.equal(out, plain)  # never open: plain sampling


@pytest.mark.parametrize(
    ("attention", "options"),
    [
        *(("kuramoto", {}), ("phase_sync", {}), ("phase_sync", {"forget": 0.8}), ("hybrid", {})),
        ("ssa", {}),
        *(("torus", {}), ("fsn", {})),
    ],
)
def test_the_R_of_the_gate_is_that_of_the_layer(
    attention: str, options: dict, make_model: Any, roughen: Any
) -> None:
    layer = roughen(make_model(attention, **options)).blocks[1].attn
    x_BTD, cache = torch.randn(2, 9, 16), LayerCache()
    with torch.no_grad():
        layer(x_BTD, cache=cache)
        path = layer.trajectory(x_BTD, return_path=True)
        # What pulled the newest token in the last step is what a memory of prefixes holds.
        step = -1 if attention in ("kuramoto", "hybrid", "ssa") else -2
        R = layer.order_parameter(path.path[step])[:, -1]
    found = [part.order_parameter() for part in cache.parts()]
    (gate,) = (R_RH for R_RH in found if R_RH is not None)
    expected = R.mean(-1) if layer.coupled_axis == "prefix" else R
    torch.testing.assert_close(gate, expected, atol=1e-5, rtol=0)


def test_a_gate_on_r_without_integration_is_refused_by_name(make_model: Any) -> None:
    model = make_model("phase_sync", steps=0)
    slip = PhaseSlip(heads=[(0, 0)], angle=0.3, target="phases", gate=RGate(0.5))
    with pytest.raises(ConfigError):
        decode(model, torch.ones(1, 4).long(), max_new_tokens=3, seeds=[1], intervention=slip)
