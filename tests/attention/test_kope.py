"""`kope`: its equations, its off control, and the published code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive.kope import kope as naive
from torch import Tensor
from torch.nn import functional as F

from phasegpt.attention import kope
from phasegpt.attention._functional import rotary_angles
from phasegpt.model.gpt import GPT

PUBLIC = Path(__file__).parents[1] / "fixtures" / "public" / "kope.npz"
F64 = torch.float64
OFF = {"coupling": 0.0, "mix": False, "rotate_values": False}


def chain(model: GPT, x: Tensor, theta: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """y of layer 0, the phases of layer 1 as (c, s), its y, without norms and MLPs between.

    theta: phases to begin with, RoPE's if None."""
    pulled = None if theta is None else torch.cat((theta, 0 * theta, 0 * theta), -1)
    first = model.blocks[0].attn(x, carry=pulled)
    assert model.link is not None and first.carry is not None
    carry = model.link(x + first.y, first.carry)
    second = model.blocks[1].attn(x + first.y, carry=carry, return_phase=True)
    return first.y, features(second.phase.theta), second.y


def features(theta: Tensor) -> Tensor:
    return torch.cat((theta.cos(), theta.sin()), -1)


# --- the equations ---------------------------------------------------------------------------


@torch.no_grad()
def test_layers_and_coupling_are_those_of_a_naive_implementation(
    make_model: Callable, roughen: Callable
) -> None:
    model = roughen(make_model("kope", n_embd=8, coupling=0.4, learn_coupling=True, dtype=F64))
    x = torch.randn(2, 6, 8, dtype=F64)
    for found, expected in zip(chain(model, x), naive(model, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_without_the_mask_it_is_the_published_code(
    make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs turns pairs of neighbours, ours those half a head apart: another order of channels."""

    def everywhere(q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    monkeypatch.setattr(kope, "causal_attention", everywhere)
    with np.load(PUBLIC) as file:
        public = {k: torch.from_numpy(file[k]) for k in file.files if k != "commit"}
        assert "0eade3cebc76978d2944f3ebb9f50f57f1b7ee53" in str(file["commit"])
    H, (N, D) = 2, (4, 16)
    model = make_model("kope", dtype=F64)
    order = torch.arange(D).view(H, N, 2).transpose(1, 2).flatten()
    three = torch.cat([order + part * D for part in range(3)])
    for block, name in zip(model.blocks, ("first", "second"), strict=True):
        attn: Any = block.attn
        attn.c_attn.weight.copy_(public[f"{name}.qkv.weight"][three])
        attn.c_attn.bias.copy_(public[f"{name}.qkv.bias"][three])
        attn.c_proj.weight.copy_(public[f"{name}.proj.weight"][:, order])
        attn.c_proj.bias.copy_(public[f"{name}.proj.bias"])
        attn.mixing.copy_(public[f"{name}.kope_mix_coef"])
    link: Any = model.link
    for kind in ("weight", "bias"):
        both = [public[f"coupling.{part}_proj.{kind}"] for part in "qk"]
        getattr(link.c_attn, kind).copy_(torch.cat(both))
    link.scale.copy_(public["coupling.qk_scale"][0, :, 0])
    model.blocks[1].attn.oscillators.coupling.fill_(float(public["gamma"]))
    theta = torch.atan2(public["sin0"], public["cos0"]).transpose(1, 2)
    z = torch.cat((public["cos1"], public["sin1"]), -1).transpose(1, 2)
    found = chain(model, public["x"], theta)
    for mine, theirs in zip(found, (public["y1"], z, public["y2"]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_step_of_the_source_turns_by_arctan_of_gamma_times_the_force(
    make_model: Callable, roughen: Callable
) -> None:
    model = roughen(make_model("kope", coupling=0.7, dtype=F64))
    x, theta = torch.randn(1, 9, 16, dtype=F64), 6.3 * torch.rand(1, 9, 2, 4, dtype=F64)
    carry = model.link(x, theta)
    c, s, (P_c, P_s) = theta.cos(), theta.sin(), carry[..., 4:].chunk(2, -1)
    along = P_c * c + P_s * s
    c, s = c + 0.7 * (P_c - along * c), s + 0.7 * (P_s - along * s)
    length = (c.square() + s.square()).sqrt()
    attn = model.blocks[1].attn
    attn.oscillators.coupling.fill_(0.7)
    found = attn(x, carry=carry, return_phase=True).phase.theta
    expected = torch.cat((c / length, s / length), -1)
    torch.testing.assert_close(features(found), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, 0], theta[:, 0], rtol=0, atol=1e-15)  # alone


@torch.no_grad()
def test_one_angle_more_in_every_phase_changes_nothing(
    make_model: Callable, roughen: Callable
) -> None:
    model = roughen(make_model("kope", dtype=F64))
    x, theta = torch.randn(2, 9, 16, dtype=F64), torch.rand(2, 9, 2, 4, dtype=F64)
    first, z, second = chain(model, x, theta)
    moved = chain(model, x, theta + 0.8)
    torch.testing.assert_close((first, second), (moved[0], moved[2]), rtol=0, atol=1e-12)
    assert (z - moved[1]).abs().min() > 1e-3


# --- the off control -------------------------------------------------------------------------


@torch.no_grad()
def test_off_the_whole_model_is_rope_softmax(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    words = {"n_layer": 3, "positions": "rope", "dtype": F64}
    model = roughen(make_model("kope", **words, **OFF))
    softmax = make_model("softmax", **words)
    own = model.state_dict()
    softmax.load_state_dict({name: own[name] for name in softmax.state_dict()})
    idx = text_ids(2, 30)
    torch.testing.assert_close(model(idx).logits, softmax(idx).logits, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("coupling", [0.0, 0.2])
def test_without_coupling_every_layer_has_ropes_angles(
    coupling: float, make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model = roughen(make_model("kope", n_layer=3, coupling=coupling, dtype=F64))
    found = model(text_ids(2, 20), return_phase=True).phase
    angles = rotary_angles(0, 20, 4, torch.device("cpu"))[:, None].expand(2, 20, 2, 4)
    apart = [(phase.theta - angles).sin().abs().max().item() for phase in found.values()]
    assert apart[0] < 1e-12 and len(apart) == 3
    assert max(apart[1:]) < 1e-12 if coupling == 0 else min(apart[1:]) > 1e-3
