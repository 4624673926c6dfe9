"""What steers synchronization inside a layer: gradients of a penalty on R, disorder, noise."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from phasegpt.attention import build
from phasegpt.attention._oscillators import Oscillators
from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.randomness import keyed_generator
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.phase import order_parameter
from phasegpt.phase.steering import NoiseKey, coherence, coherence_regularizer, draw_perturbation

F64 = torch.float64
STEMS = sorted(path.stem for path in (CONF_DIR / "attention").glob("*.yaml"))
OPTIONS = {stem: plain(compose([f"attention={stem}"]))["attention"] for stem in STEMS}
#: Mechanisms of oscillators, and a variant of one.
PHASED = {
    **{stem: {} for stem in STEMS if "omega_spread" in OPTIONS[stem]},
    "phase_sync, forgetting": {"forget": 0.9},
}
LEAKY = "ignore:.*sees the future"
every_phased = pytest.mark.parametrize("case", PHASED)


def model_of(case: str, dtype: torch.dtype = F64, **options: object) -> GPT:
    """A GPT whose layer 1 is the mechanism, small, at its YAML's defaults but for `options`."""
    small = {"num_oscillators": 5, "steps": 4}
    attention = {**OPTIONS[case.split(",")[0]], **small, **PHASED[case], **options}
    name = attention.pop("name")
    attention.pop("layers")
    config = GPTConfig(
        **{"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 64, "vocab_size": 65},
        **{"dropout": 0.0, "attention": name, "attention_layers": (1,)},
        attention_options=attention,
    )
    return GPT(config, seed=0).to(dtype)


def oscillators(model: GPT) -> Oscillators:
    (found,) = (m for m in model.modules() if isinstance(m, Oscillators))
    return found


# --- through all, through the coupling -------------------------------------------------------


def penalty_gradients(
    model: GPT, idx: Tensor, through: str, axis: str = "oscillators"
) -> dict[str, Tensor | None]:
    """Gradient of a center penalty by the parameter's name, None where no path leads."""
    return_phase = "coupling" if through == "coupling" else True
    theta = model(idx, return_phase=return_phase).phase[1].theta
    penalty = coherence_regularizer(coherence(theta, axis), target=0.2, weight=1.0, mode="center")
    names, values = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(penalty, values, allow_unused=True), strict=True))


def ending(gradients: dict[str, Tensor | None], name: str) -> Tensor | None:
    (found,) = (g for n, g in gradients.items() if n.endswith(f"oscillators.{name}"))
    return found


@pytest.mark.filterwarnings(LEAKY)
@every_phased
def test_through_all_the_penalty_reaches_W_b_omega_and_K(
    case: str, text_ids: Callable, roughen: Callable
) -> None:
    gradients = penalty_gradients(roughen(model_of(case)), text_ids(2, 40), "all")
    for name in ("phase.weight", "phase.bias", "omega", "coupling"):
        assert ending(gradients, name).norm() > 1e-6, name


@pytest.mark.filterwarnings(LEAKY)
@every_phased
@pytest.mark.parametrize("axis", ["oscillators", "prefix"])
def test_through_coupling_the_penalty_reaches_K_and_W_alone(
    case: str, axis: str, text_ids: Callable, roughen: Callable
) -> None:
    model = roughen(model_of(case))
    gradients = penalty_gradients(model, text_ids(2, 40), "coupling", axis)
    assert ending(gradients, "phase.bias") is None  # exactly nothing: there is no path
    assert ending(gradients, "omega") is None
    assert ending(gradients, "coupling").norm() > 1e-6
    assert ending(gradients, "phase.weight").norm() > 1e-6
    if "forgetting" in case and axis == "prefix":
        assert gradients["transformer.h.1.attn.forget_logit"].norm() > 1e-6


@every_phased
@pytest.mark.filterwarnings(LEAKY)
def test_through_coupling_what_all_tokens_share_is_not_moved(
    case: str, text_ids: Callable, roughen: Callable
) -> None:
    """An offset that reaches theta(0) by way of the layer's input: ln_1.bias is one."""
    model, idx = roughen(model_of(case)), text_ids(2, 40)
    shared, own = "transformer.h.1.ln_1.bias", "transformer.h.1.ln_1.weight"
    everything = penalty_gradients(model, idx, "all")
    blocked = penalty_gradients(model, idx, "coupling")
    assert everything[shared].norm() > 1e-5
    assert blocked[shared].norm() < 1e-14
    assert blocked[own].norm() > 1e-5


@every_phased
@pytest.mark.filterwarnings(LEAKY)
def test_the_gradient_through_coupling_is_that_of_centered_theta_0(
    case: str, roughen: Callable
) -> None:
    model = roughen(model_of(case))
    osc = oscillators(model)
    x = torch.randn(2, 7, 16, dtype=F64, requires_grad=True)
    pull = torch.randn(2, 7, 2, 5, dtype=F64)
    free, blocked = (
        torch.autograd.grad((osc.initial_phases(x, only) * pull).sum(), osc.phase.weight)[0]
        for only in (False, True)
    )
    centred = (pull - pull.mean(1, keepdim=True)).flatten(2)
    torch.testing.assert_close(blocked, torch.einsum("btc,btd->cd", centred, x))
    torch.testing.assert_close(free, torch.einsum("btc,btd->cd", pull.flatten(2), x))


@every_phased
@pytest.mark.filterwarnings(LEAKY)
def test_phases_through_coupling_are_bit_identical_and_change_no_logit(
    case: str, text_ids: Callable, roughen: Callable
) -> None:
    noise = {} if "coded" in case else {"noise_sigma": 0.3, "frequency_jitter": 0.2}
    model = roughen(model_of(case, torch.float32, omega_spread=0.5, **noise))
    idx = text_ids(2, 40)
    drawn = model.draw_perturbations(NoiseKey(seed=1, step=2, sample_B=(3, 4)), 40)
    a, b = (model(idx, perturbations=drawn, return_phase=how) for how in (True, "coupling"))
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.phase[1].theta, b.phase[1].theta)
    torch.testing.assert_close(a.phase[1].R, b.phase[1].R)


@every_phased
@pytest.mark.filterwarnings(LEAKY)
@pytest.mark.parametrize("how", ["compiled", "recomputed"])
def test_the_gradient_is_the_same_compiled_and_recomputed(
    case: str, how: str, text_ids: Callable
) -> None:
    torch._dynamo.reset()
    model, idx = model_of(case, steps=2), text_ids(2, 8)
    expected = penalty_gradients(model, idx, "coupling")
    if how == "compiled":
        model.compile(fullgraph=True, backend="aot_eager")
    else:
        object.__setattr__(model.config, "activation_checkpointing", True)
    found = penalty_gradients(model.train(), idx, "coupling")
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None or found[name].eq(0).all(), name
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


@every_phased
@pytest.mark.filterwarnings(LEAKY)
def test_the_R_of_a_layer_is_its_order_parameter_over_its_axis(
    case: str, text_ids: Callable
) -> None:
    model = model_of(case)
    attn, phase = model.blocks[1].attn, model(text_ids(2, 40), return_phase=True).phase[1]
    assert torch.equal(attn.order_parameter(phase.theta), phase.R)
    assert attn.first_token(40) == (31 if attn.coupled_axis == "prefix" else 0)
    if "forget" not in case:
        counted = phase.R[:, attn.first_token(40) :]
        torch.testing.assert_close(coherence(phase.theta, attn.coupled_axis), counted)


# --- frequency disorder ----------------------------------------------------------------------


@every_phased
@pytest.mark.filterwarnings(LEAKY)
def test_no_disorder_is_bit_identical_to_a_layer_that_knows_none(case: str) -> None:
    off, on = model_of(case), model_of(case, omega_spread=0.7)
    extra = on.state_dict().keys() - off.state_dict().keys()
    (name,) = extra
    assert name.endswith("oscillators.disorder")
    assert "disorder" not in dict(on.named_parameters())
    for key, value in off.state_dict().items():  # no random number was taken from another's
        assert torch.equal(value, on.state_dict()[key]), key
    assert torch.equal(oscillators(off).frequencies(), oscillators(off).omega)


def test_disorder_is_gaussian_quantiles_shuffled_per_head_by_the_seed() -> None:
    def disorder(seed: int, layer: int = 0, spread: float = 0.5) -> Tensor:
        options = {"omega_spread": spread, "num_oscillators": 8}
        config = GPTConfig(
            **{"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 8, "vocab_size": 65},
            attention="kuramoto", attention_layers=(0, 1), attention_options=options,
        )  # fmt: skip
        return GPT(config, seed=seed).blocks[layer].attn.oscillators.disorder

    found = disorder(1)
    points = (torch.arange(8, dtype=F64) + 0.5) / 8
    expected = 0.5 * math.sqrt(2) * torch.erfinv(2 * points - 1)
    for row in found:
        torch.testing.assert_close(row.sort().values, expected.float())
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found, disorder(1))
    torch.testing.assert_close(2 * found, disorder(1, spread=1.0))
    assert not torch.equal(found, disorder(2))
    assert not torch.equal(found, disorder(1, layer=1))


def test_disorder_is_added_to_omega_and_does_not_learn(text_ids: Callable) -> None:
    model, idx = model_of("kuramoto", omega_spread=0.7), text_ids(2, 20)
    twin, osc = model_of("kuramoto"), oscillators(model)
    with torch.no_grad():
        oscillators(twin).omega.add_(osc.disorder)
    assert torch.equal(model(idx).logits, twin(idx).logits)
    assert not osc.disorder.requires_grad


def test_with_disorder_locking_begins_at_K_c(make_model: Callable, text_ids: Callable) -> None:
    """K_c = omega_spread sqrt(8/pi) for N -> infinity; S dt = 40 is long enough to see it."""
    model = make_model(
        *("kuramoto",), n_layer=1, num_oscillators=128, omega_spread=1.0, omega_std=0.0, steps=400
    )  # fmt: skip
    R, K_c = {}, math.sqrt(8 / math.pi)
    with torch.no_grad():
        for ratio in (0.0, 0.8, 1.2, 2.0):
            oscillators(model).coupling.fill_(ratio * K_c)
            R[ratio] = model(text_ids(2, 12), return_phase=True).phase[0].R.mean().item()
    assert R[0.0] == pytest.approx(0.078, abs=0.02)  # sqrt(pi / 4N)
    assert R[0.8] == pytest.approx(0.08, abs=0.03)
    assert R[1.2] == pytest.approx(0.65, abs=0.05)
    assert R[2.0] == pytest.approx(0.94, abs=0.02)


def test_disorder_turns_a_channel_of_phase_sync_as_a_whole_and_moves_no_R(
    text_ids: Callable,
) -> None:
    idx, R = text_ids(2, 40), {}
    for spread in (0.0, 1.0):
        out = model_of("phase_sync", omega_spread=spread)(idx, return_phase=True)
        R[spread] = out.phase[1].R
    torch.testing.assert_close(R[0.0], R[1.0], rtol=0, atol=1e-12)


# --- noise -----------------------------------------------------------------------------------

#: (noise_sigma, frequency_jitter): how the mean R of 8 x 128 tokens of English changes at init,
#: over four draws.
MEASURED = {
    **{(0.03, 0.02): (-0.0017, 3e-4), (0.0, 0.02): (0.0, 1e-4)},
    **{(0.1, 0.0): (-0.018, 3e-3), (0.3, 0.0): (-0.14, 0.01)},
}


@pytest.mark.parametrize("attention", ["kuramoto", "phase_sync"])
def test_noise_of_the_default_size_hardly_moves_R_ten_times_it_does(
    attention: str, make_model: Callable, text_ids: Callable
) -> None:
    def mean_R(noise_sigma: float, frequency_jitter: float) -> float:
        model = make_model(
            attention, n_layer=1, n_embd=128, n_head=4, block_size=128,
            noise_sigma=noise_sigma, frequency_jitter=frequency_jitter,
        )  # fmt: skip
        R = []
        for step in range(4):
            drawn = model.draw_perturbations(NoiseKey(0, step, tuple(range(8))), 128)
            with torch.no_grad():
                out = model(text_ids(8, 128), perturbations=drawn, return_phase=True)
            R.append(out.phase[0].R.mean().item())
        return sum(R) / len(R)

    still = mean_R(0.0, 0.0)
    assert still == pytest.approx(0.48, abs=0.02)
    for (sigma, jitter), (change, tolerance) in MEASURED.items():
        assert mean_R(sigma, jitter) - still == pytest.approx(change, abs=tolerance)


def test_gradcheck_with_disorder(roughen: Callable) -> None:
    config = GPTConfig(n_embd=4, n_head=2)
    layer = build("kuramoto", config, {"num_oscillators": 3, "steps": 3, "omega_spread": 0.5}, 0)
    roughen(layer.double(), 0.7)
    x = torch.randn(1, 4, 4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: order_parameter(layer.integrate(x)), (x,))


def test_one_generator_draws_what_one_for_each_sample_drew(monkeypatch) -> None:
    device, shape = torch.device("cpu"), {"steps": 3, "time": 5, "heads": 2, "oscillators": 7}
    key = NoiseKey(seed=3, step=8, sample_B=(4, 11, 2**40))

    def anew(kind: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        rows = []
        for sample in key.sample_B:
            generator = keyed_generator(kind, key.seed, key.step, 1, sample)
            rows.append(torch.randn(shape, generator=generator))
        return torch.stack(rows) * scale

    expected = anew("noise", (3, 5, 2, 7), 0.3).transpose(0, 1), anew("jitter", (2, 7), 0.2)
    made, real = [], torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda *given: made.append(real(*given)) or made[-1])
    found = draw_perturbation(key, 1, **shape, noise_sigma=0.3, frequency_jitter=0.2, device=device)
    assert len(made) == 1
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
