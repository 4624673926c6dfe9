"""The flagship: its order parameter at init, its off controls, and a naive twin of the layer."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from phasegpt import ops
from phasegpt.attention import build
from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.core.errors import ConfigError
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.phase import null_order_parameter, order_parameter
from phasegpt.phase.steering import NoiseKey, Perturbation, coherence_regularizer

WIDTHS = {128: 4, 768: 12}  # model width: heads
F64 = torch.float64


def kuramoto(model: GPT, layer: int = 0) -> Kuramoto:
    attention = model.blocks[layer].attn
    assert isinstance(attention, Kuramoto)
    return attention


@pytest.mark.parametrize("name", ["kuramoto", "phase_sync"])
def test_steps_that_overshoot_are_said_and_others_round_alike(
    name: str, make_model: Callable, text_ids: Callable
) -> None:
    for K, dt, overshoots in ((19.0, 0.1, False), (100.0, 0.1, True), (1.0, 10.0, True)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = make_model(name, coupling=K, dt=dt)
        assert any("a step overshoots" in str(w.message) for w in said) == overshoots
        idx, cache = text_ids(2, 40), model.new_cache()
        with torch.no_grad():
            one = [model(idx[:, t : t + 1], cache=cache).logits for t in range(40)]
            error = (torch.cat(one, 1) - model(idx).logits).abs().max().item()
        assert overshoots or error < 1e-4


# --- the order parameter at init -------------------------------------------------------------

MEASURED = {0: 0.31, 0.5: 0.39, 0.75: 0.43, 1: 0.48, 2: 0.66, 4: 0.89}


@pytest.mark.parametrize("width", WIDTHS)
def test_R_at_init_on_real_text_rises_with_K_as_measured(
    width: int, make_model: Callable, text_ids: Callable
) -> None:
    model = make_model("kuramoto", n_layer=1, n_embd=width, n_head=WIDTHS[width])
    found, still = {}, []
    with torch.no_grad():
        for K in MEASURED:
            kuramoto(model).oscillators.coupling.fill_(K)
            phase = model(text_ids(4, 48), return_phase=True).phase[0]
            torch.testing.assert_close(phase.R, order_parameter(phase.theta))
            found[K] = phase.R.mean().item()
        x = torch.nn.functional.layer_norm(torch.randn(4, 48, width), (width,))
        theta = kuramoto(model).oscillators.initial_phases(x)
        still = [theta.std().item(), order_parameter(theta).mean().item()]
    assert found == pytest.approx(MEASURED, abs=0.04)
    assert still == pytest.approx([1.6, 0.31], abs=0.04)


@pytest.mark.parametrize(("width", "start"), [(768, 0.86), (128, 0.98)])
def test_under_gpt2_init_phases_start_oversynchronized(
    width: int, start: float, make_model: Callable, text_ids: Callable
) -> None:
    R = {}
    for K in (0, 1):
        model = make_model(
            *("kuramoto",), n_layer=1, n_embd=width, n_head=WIDTHS[width], theta_init="gpt2",
            coupling=K,
        )  # fmt: skip
        with torch.no_grad():
            R[K] = model(text_ids(4, 48), return_phase=True).phase[0].R.mean().item()
    assert R[0] == pytest.approx(start, abs=0.05)
    assert R[0] < R[1] < 1


def test_the_spread_of_the_coherence_bias_at_init_does_not_depend_on_N(
    make_model: Callable, text_ids: Callable
) -> None:
    spread = {}
    for N in (8, 32, 128):
        # K = 0: independent phases, whose mean cosine over N has a spread like 1/sqrt(N).
        model = make_model("kuramoto", n_layer=1, n_embd=128, num_oscillators=N, coupling=0.0)
        with torch.no_grad():
            theta = model(text_ids(2, 48), return_phase=True).phase[0].theta.transpose(1, 2)
            pairs = (theta.unsqueeze(3) - theta.unsqueeze(2)).cos().mean(-1)
            strange = text_ids(2, 48).unsqueeze(2) != text_ids(2, 48).unsqueeze(1)
            bias = kuramoto(model).beta.view(-1, 1, 1) * pairs
            spread[N] = bias.transpose(0, 1)[:, strange].std().item()
    assert kuramoto(model).beta.tolist() == pytest.approx([4 * math.sqrt(128 / 32)] * 2)
    assert max(spread.values()) / min(spread.values()) < 1.35, spread


# --- off controls ----------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, 1e-13)])
def test_beta_zero_is_the_softmax_model_of_the_same_seed(
    positions: str, dtype: torch.dtype, tolerance: float, make_model: Callable, text_ids: Callable
) -> None:
    words = {"seed": 5, "dtype": dtype, "positions": positions, "n_embd": 32}
    off = make_model("kuramoto", beta=0.0, **words)
    softmax, on = make_model("softmax", **words), make_model("kuramoto", **words)
    idx = text_ids(3, 40)
    torch.testing.assert_close(off(idx).logits, softmax(idx).logits, rtol=0, atol=tolerance)
    assert (on(idx).logits - softmax(idx).logits).abs().max() > 100 * tolerance


def test_gate_zero_is_the_softmax_model_of_the_same_seed(
    make_model: Callable, text_ids: Callable
) -> None:
    model, softmax = make_model("kuramoto", readout="gate", dtype=F64), make_model(dtype=F64)
    idx = text_ids(3, 40)
    assert (model(idx).logits - softmax(idx).logits).abs().max() > 1e-6
    with torch.no_grad():
        for layer in (0, 1):
            kuramoto(model, layer).gate.zero_()
    torch.testing.assert_close(model(idx).logits, softmax(idx).logits, rtol=0, atol=1e-13)


def test_models_of_one_seed_share_every_weight_that_both_have(make_model: Callable) -> None:
    a = make_model("softmax", seed=3).state_dict()
    for options in ({}, {"coupling": 2.0, "num_oscillators": 8}, {"readout": "both"}):
        b = make_model("kuramoto", seed=3, **options).state_dict()
        assert a.keys() < b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name


def test_K_zero_and_no_steps_give_identical_logits_under_the_bias_readout(
    make_model: Callable, text_ids: Callable, roughen: Callable
) -> None:
    # omega and constant offsets cancel in theta_t - theta_u, so K = 0 is a fair baseline.
    idx = text_ids(2, 40)
    logits = {}
    for name, options in {
        "K=0": {"coupling": 0.0, "learn_coupling": False},
        "S=0": {"steps": 0, "learn_coupling": False},
        "K=1": {"learn_coupling": False},
    }.items():
        model = make_model("kuramoto", dtype=F64, n_embd=32, **options)
        logits[name] = roughen(model)(idx).logits
    torch.testing.assert_close(logits["K=0"], logits["S=0"], rtol=0, atol=1e-12)
    assert (logits["K=1"] - logits["S=0"]).abs().max() > 1e-4


# --- the layer against a naive twin ----------------------------------------------------------


def layer_of(make_model: Callable, roughen: Callable, **words: object) -> Kuramoto:
    model = make_model("kuramoto", n_layer=1, n_embd=12, n_head=3, num_oscillators=5, **words)
    return roughen(kuramoto(model).double(), 0.5)


def naive(layer: Kuramoto, x: Tensor, rope: bool = False) -> tuple[Tensor, Tensor]:
    """Euler over pairs, explicit [T,T] logits and mask; returns y and theta."""
    o, osc = layer.options, layer.oscillators
    B, T, D = x.shape
    H, N = osc.omega.shape
    E = D // H
    theta = (x @ osc.phase.weight.T + osc.phase.bias).view(B, T, H, N)
    for _ in range(o.steps):
        force = torch.zeros_like(theta)
        for n in range(N):
            for m in range(N):
                force[..., n] += (theta[..., m] - theta[..., n] - o.lag).sin() / N
        theta = theta + o.dt * (osc.omega + osc.coupling.view(H, 1) * force)
    q, k, v = (x @ layer.c_attn.weight.T + layer.c_attn.bias).split(D, -1)
    y = torch.zeros(B, T, H, E, dtype=x.dtype)
    R = torch.exp(1j * theta).mean(-1).abs()
    for h in range(H):
        part = slice(h * E, (h + 1) * E)
        qh, kh = q[..., part], k[..., part]
        if rope:
            frequency = 10_000.0 ** (-torch.arange(E // 2, dtype=x.dtype) / (E // 2))
            turn = torch.exp(1j * torch.arange(T, dtype=x.dtype).view(T, 1) * frequency)
            qh, kh = (
                torch.view_as_real(torch.complex(z[..., : E // 2], z[..., E // 2 :]) * turn)
                for z in (qh.contiguous(), kh.contiguous())
            )
            qh, kh = qh.flatten(-2), kh.flatten(-2)
        logits = qh @ kh.transpose(1, 2) / math.sqrt(E)
        if layer.beta is not None:
            th = theta[:, :, h]
            logits = logits + layer.beta[h] * (th.unsqueeze(2) - th.unsqueeze(1)).cos().mean(-1)
        logits = logits.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        y[:, :, h] = logits.softmax(-1) @ v[..., part]
        if layer.gate is not None:
            gain = 1 + layer.gate[h] * (R[:, :, h] - null_order_parameter(N))
            y[:, :, h] = y[:, :, h] * gain.unsqueeze(-1)
    return y.flatten(2) @ layer.c_proj.weight.T + layer.c_proj.bias, theta


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("lag", [0.0, 0.6])
@pytest.mark.parametrize("readout", ["bias", "gate", "both"])
def test_the_layer_equals_a_naive_one_with_explicit_coherence(
    positions: str, lag: float, readout: str, make_model: Callable, roughen: Callable
) -> None:
    layer = layer_of(make_model, roughen, positions=positions, lag=lag, readout=readout, steps=4)
    x = torch.randn(2, 9, 12, dtype=F64)
    with torch.no_grad():
        out = layer(x, return_phase=True)
        y, theta = naive(layer, x, rope=positions == "rope")
    torch.testing.assert_close(out.phase.theta, theta, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.y, y, rtol=0, atol=1e-12)
    assert (layer.beta is None, layer.gate is None) == (readout == "gate", readout == "bias")


@pytest.mark.parametrize("integrator", ["euler", "heun", "rk4"])
def test_integrator_steps_dt_and_lag_reach_the_integration(
    integrator: str, make_model: Callable, roughen: Callable
) -> None:
    words = {"integrator": integrator, "lag": 0.4, "steps": 3, "dt": 0.35}
    layer = layer_of(make_model, roughen, **words)
    x = torch.randn(2, 5, 12, dtype=F64)
    osc = layer.oscillators
    expected = ops.kuramoto_rows(osc.initial_phases(x), osc.omega, osc.coupling, **words).theta
    assert torch.equal(layer.integrate(x), expected)
    for change in ({"lag": 0.0}, {"steps": 2}, {"dt": 0.1}):
        other = ops.kuramoto_rows(
            osc.initial_phases(x), osc.omega, osc.coupling, **(words | change)
        ).theta
        assert (other - expected).abs().max() > 1e-3


def test_integrators_agree_when_the_steps_are_fine(make_model: Callable, roughen: Callable) -> None:
    x = torch.randn(2, 5, 12, dtype=F64)
    ends = []
    for integrator in ("euler", "heun", "rk4"):
        words = {"integrator": integrator, "steps": 200, "dt": 0.005}
        ends.append(layer_of(make_model, roughen, **words).integrate(x))
    assert (ends[0] - ends[2]).abs().max() < 0.02
    assert (ends[1] - ends[2]).abs().max() < 1e-4


def test_the_noise_scale_of_one_step_is_added_once_per_step(
    make_model: Callable, roughen: Callable
) -> None:
    layer = layer_of(make_model, roughen, coupling=0.0, learn_coupling=False, steps=4)
    x = torch.randn(2, 5, 12, dtype=F64)
    noise, jitter = torch.randn(4, 2, 5, 3, 5, dtype=F64), torch.randn(2, 3, 5, dtype=F64)
    theta, omega = layer.oscillators.initial_phases(x), layer.oscillators.omega
    expected = theta + 4 * 0.1 * omega * (1 + jitter.unsqueeze(1)) + noise.sum(0)
    found = layer.integrate(x, Perturbation(noise, jitter))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_noise_drives_every_step_of_the_coupled_dynamics(
    make_model: Callable, roughen: Callable
) -> None:
    layer = layer_of(make_model, roughen, steps=4)
    x, osc = torch.randn(2, 5, 12, dtype=F64), layer.oscillators
    noise, jitter = torch.randn(4, 2, 5, 3, 5, dtype=F64), torch.randn(2, 3, 5, dtype=F64)
    theta = osc.initial_phases(x)
    for s in range(4):
        pairs = (theta.unsqueeze(-2) - theta.unsqueeze(-1)).sin().mean(-1)
        drift = osc.omega * (1 + jitter.unsqueeze(1)) + osc.coupling.unsqueeze(-1) * pairs
        theta = theta + 0.1 * drift + noise[s]
    found = layer.integrate(x, Perturbation(noise, jitter))
    torch.testing.assert_close(found, theta, rtol=0, atol=1e-12)


def test_jitter_is_one_number_per_sample_head_and_oscillator(make_model: Callable) -> None:
    model = make_model("kuramoto", layers=(1,), noise_sigma=0.03, frequency_jitter=0.02)
    drawn = model.draw_perturbations(NoiseKey(seed=0, step=0, sample_B=(4, 9)), 7)
    assert drawn.keys() == {1}
    assert drawn[1].noise_SBTHN.shape == (10, 2, 7, 2, 32)
    assert drawn[1].jitter_BHN.shape == (2, 2, 32)


@pytest.mark.parametrize("readout", ["gate", "both"])
def test_every_readout_decodes_with_the_cache(
    readout: str, make_model: Callable, text_ids: Callable, roughen: Callable
) -> None:
    words = {"positions": "rope", "lag": 0.4, "integrator": "heun", "steps": 3}
    model = roughen(make_model("kuramoto", readout=readout, dtype=F64, **words))
    idx, cache = text_ids(2, 20), model.new_cache()
    parts = [model(piece, cache=cache).logits for piece in idx.split([9, 1, 1, 7, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(idx).logits, rtol=0, atol=1e-11)


# --- what is learned -------------------------------------------------------------------------


def test_coupling_is_learned_or_fixed_and_has_its_lr_factors(
    make_model: Callable,
) -> None:
    learned = kuramoto(make_model("kuramoto", readout="both", coupling=0.7))
    fixed = kuramoto(make_model("kuramoto", readout="both", coupling=0.7, learn_coupling=False))
    assert learned.oscillators.coupling.tolist() == pytest.approx([0.7, 0.7])
    assert fixed.oscillators.coupling.tolist() == pytest.approx([0.7, 0.7])
    names = {n for n, _ in learned.named_parameters() if n.split(".")[0] not in NOT_OSCILLATORS}
    assert names == set(Kuramoto.lr_factors)
    assert names - {n for n, _ in fixed.named_parameters()} == {"oscillators.coupling"}
    assert Kuramoto.lr_factors["beta"] == 10


NOT_OSCILLATORS = ("c_attn", "c_proj")


def test_oscillators_are_initialised_as_documented_and_not_by_gpt2s_rule(
    make_model: Callable,
) -> None:
    model = make_model("kuramoto", n_embd=256, n_head=8, n_layer=1)
    osc = kuramoto(model).oscillators
    assert osc.phase.weight.std().item() == pytest.approx(1.6 / math.sqrt(256), rel=0.02)
    assert osc.phase.bias.eq(0).all()
    assert osc.omega.std().item() == pytest.approx(0.1, rel=0.15)
    assert osc.coupling.eq(1).all()
    assert kuramoto(model).beta.eq(4).all()
    gpt2 = make_model("kuramoto", n_embd=256, n_head=8, n_layer=1, theta_init="gpt2")
    assert kuramoto(gpt2).oscillators.phase.weight.std().item() == pytest.approx(0.02, rel=0.02)
    wide = make_model("kuramoto", n_embd=256, n_layer=1, theta_std=0.8, omega_std=0.5)
    assert kuramoto(wide).oscillators.phase.weight.std().item() == pytest.approx(0.05, rel=0.03)


def test_the_regularizer_penalizes_R_above_its_target_alone_and_lowers_it(
    make_model: Callable, text_ids: Callable
) -> None:
    model, idx = make_model("kuramoto", layers=(1,), coupling=3.0), text_ids(2, 20)

    def penalty(target: float) -> tuple[Tensor, Tensor]:
        phase = model(idx, return_phase=True).phase[1]
        return coherence_regularizer(phase.R, target=target, weight=0.01), phase.R

    loss, R = penalty(0.45)
    expected = 0.01 * (R - 0.45).clamp_min(0).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert penalty(1.0)[0].item() == 0
    loss.backward()
    with torch.no_grad():
        for parameter in kuramoto(model, 1).oscillators.parameters():
            assert parameter.grad.norm() > 0
            parameter -= 20 * parameter.grad
        assert penalty(0.45)[0] < loss
        assert penalty(0.45)[1].mean() < R.mean()
    with pytest.raises(ValueError, match=r"mode 'floor' is unknown; choose from: .*ceiling"):
        coherence_regularizer(torch.zeros(1, 1, 1), target=0.4, weight=1.0, mode="floor")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": -1}, r"attention.steps=-1 is out of range; it must be >= 0"),
        ({"num_oscillators": 0}, r"attention.num_oscillators=0 is out of range; it must be >= 1"),
        ({"dt": 0}, r"attention.dt=0.0 is out of range; it must be > 0"),
        ({"coupling": "strong"}, r"attention.coupling='strong' must be a number"),
        ({"integrator": "rk5"}, r"integrator='rk5' is not allowed \(did you mean rk4\?\)"),
        ({"readout": "none"}, r"readout='none' is not allowed.*choose from: bias, gate, both"),
        ({"couplng": 1.0}, r"attention.couplng is unknown; did you mean attention.coupling\?"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named_with_what_is_allowed(option: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("kuramoto", GPTConfig(n_embd=8, n_head=2), option, 0)
