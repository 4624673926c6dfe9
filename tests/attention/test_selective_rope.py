"""`selective_rope`: its equations, RoPE as its off control, and the state of its sums."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from phasegpt.attention._functional import rotary_angles
from phasegpt.attention.selective_rope import SelectiveRope
from phasegpt.core.errors import ConfigError
from phasegpt.model.gpt import GPT
from phasegpt.samplers import PhaseSlip, decode

F64 = torch.float64


def naive(attn: SelectiveRope, x_TD: Tensor) -> Tensor:
    """y of one row in loops over tokens, heads and pairs, in complex numbers."""
    (T, D), H = x_TD.shape, attn.n_head
    E, P = D // H, D // H // 2
    u = torch.zeros(T, H * P, dtype=F64)
    for t in range(T):
        unit = torch.cat([part / part.square().sum().sqrt() for part in x_TD[t].split(E)])
        u[t] = attn.up.weight @ (attn.down.weight @ unit)
    theta = torch.zeros(T, H, P, dtype=F64)
    for h in range(H):
        for k in range(P):
            total = 0.0
            for t in range(T):
                for j in range(4):
                    if t - j >= 0:
                        total += attn.kernel[h * P + k, 3 - j] * u[t - j, h * P + k]
                drift = t if attn.options.drift else 0
                theta[t, h, k] = attn.rope_theta ** (-k / P) * (drift + total)
    y = torch.zeros(T, D, dtype=F64)
    qkv = [(attn.c_attn.weight @ x_TD[t] + attn.c_attn.bias).split(D) for t in range(T)]
    for h in range(H):
        part = slice(h * E, (h + 1) * E)
        turned = []
        for t in range(T):
            turn = torch.polar(torch.ones(P, dtype=F64), theta[t, h])
            turned.append([torch.complex(z[part][:P], z[part][P:]) * turn for z in qkv[t][:2]])
        for t in range(T):
            logits = [(turned[t][0] * turned[s][1].conj()).real.sum() / E**0.5
                      for s in range(t + 1)]  # fmt: skip
            weights = torch.stack(logits).softmax(0)
            y[t, part] = sum(w * qkv[s][2][part] for s, w in enumerate(weights))
    return y @ attn.c_proj.weight.T + attn.c_proj.bias


@torch.no_grad()
@pytest.mark.parametrize("drift", [True, False])
def test_the_layer_is_that_of_a_naive_implementation(
    drift: bool, make_model: Callable, roughen: Callable
) -> None:
    model = roughen(make_model("selective_rope", n_embd=8, rank=3, drift=drift, dtype=F64))
    x = torch.randn(2, 9, 8, dtype=F64)
    expected = torch.stack([naive(model.blocks[1].attn, row) for row in x])
    torch.testing.assert_close(model.blocks[1].attn(x).y, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_constant_increments_are_rope(make_model: Callable, roughen: Callable) -> None:
    """At rank 0 bit for bit; and where every token adds as much, RoPE of another speed."""
    words = {"positions": "rope", "n_layer": 1}
    off, rope = make_model("selective_rope", rank=0, **words), make_model("softmax", **words)
    roughen(off)
    rope.load_state_dict(off.state_dict())
    idx = torch.arange(40).view(2, 20)
    assert torch.equal(off(idx).logits, rope(idx).logits)
    attn = make_model("selective_rope", drift=False, dtype=F64).blocks[0].attn
    attn.kernel.zero_()
    attn.kernel[:, -1] = 1.0
    x = torch.randn(16, dtype=F64).expand(1, 20, 16)
    u = attn._projected(x)[0, 0].view(2, 4)
    nu = rotary_angles(1, 1, 4, torch.device("cpu"))[0]
    count = torch.arange(1, 21, dtype=F64)[:, None]
    expected = torch.stack([count * u_P * nu for u_P in u])
    torch.testing.assert_close(attn.angles(x)[0], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_increments_begin_with_the_size_that_was_asked_for(make_model: Callable) -> None:
    model = make_model("selective_rope", n_embd=256, n_head=4, increment_std=0.3, n_layer=1)
    attn, x = model.blocks[0].attn, torch.randn(64, 4, 256)
    theta = attn.angles(x) - rotary_angles(0, 4, 32, torch.device("cpu"))
    nu = rotary_angles(1, 1, 32, torch.device("cpu"))[0]
    increment = (theta[:, :, 3] - theta[:, :, 2]) / nu  # where all four taps are in
    assert increment.std().item() == pytest.approx(0.3, rel=0.15)


@torch.no_grad()
def test_the_memory_is_keys_values_and_2_D_numbers(make_model: Callable) -> None:
    model = make_model("selective_rope", n_layer=1)
    cache = model.new_cache()
    model(torch.zeros(1, 10, dtype=torch.long), cache=cache)
    (part,) = cache.parts(0)
    assert part.keys.numel() + part.values.numel() == 10 * 2 * 16
    assert sum(x.numel() for x in part.state) == 2 * 16
    with pytest.raises(ConfigError, match="running sums cannot be cropped"):
        cache.crop(5)


def test_values_slip_and_phases_are_refused_by_name(
    make_model: Callable, roughen: Callable, text_ids: Callable
) -> None:
    model: GPT = roughen(make_model("selective_rope"))
    plain = decode(model, text_ids(2, 8), max_new_tokens=6, seeds=[1, 2])
    slip = PhaseSlip([(0, 1), (1, 0)], angle=0.7, anchor=1.0)
    out = decode(model, text_ids(2, 8), max_new_tokens=6, seeds=[1, 2], intervention=slip)
    assert torch.equal(out, plain)  # the slipped path leaves the memory clean
    assert all(float(step.kl.min()) > 0 for step in slip.trace)
    for heads in ([(0, 0)], "auto"):
        slip = PhaseSlip(heads, target="phases", angle=0.7)
        with pytest.raises(ConfigError, match=r"keeps no phases|needs a model with oscillators"):
            decode(model, text_ids(1, 8), max_new_tokens=2, seeds=[1], intervention=slip)


def test_wrong_shapes_and_idle_options_are_refused(make_model: Callable) -> None:
    with pytest.raises(ConfigError, match="even head width"):
        make_model("selective_rope", n_embd=6)
    options = SelectiveRope.Config(rank=0, increment_std=0.5)
    with pytest.raises(ConfigError, match=r"increment_std=0\.5 does nothing while attention\.rank"):
        options.check_idle()
