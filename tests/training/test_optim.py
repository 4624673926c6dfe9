"""What decays, what learns faster, and the learning rate of every step."""

import math

import pytest
import torch

from phasegpt.training.optim import build_optimizer, parameter_groups, schedule
from phasegpt.training.optimizer_config import AdamWConfig, ScheduleFreeConfig


def settings(**values):
    return AdamWConfig(**{"lr": 1e-3, "warmup_steps": 10, **values})


def group_of(model, config) -> dict[str, dict]:
    """The group of every parameter, by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: group for group in parameter_groups(model, config) for p in group["params"]
    }


@pytest.mark.parametrize("attention", ["softmax", "kuramoto", "phase_sync", "hybrid"])
def test_matrices_decay_vectors_do_not_oscillators_never(make_model, attention):
    model = make_model(attention, layers=(1,))
    groups = group_of(model, settings())
    assert groups.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        oscillator = "oscillators" in name or name.endswith((".beta", ".blend"))
        decays = parameter.dim() >= 2 and not oscillator
        assert groups[name]["weight_decay"] == (0.1 if decays else 0.0), name
        factor = 10.0 if name.endswith(".beta") else 1.0
        assert groups[name]["lr"] == pytest.approx(1e-3 * factor), name


def test_the_oscillator_factor_reaches_oscillators_alone(make_model):
    groups = group_of(make_model("kuramoto"), settings(oscillator_lr_factor=0.5))
    assert groups["transformer.h.0.attn.oscillators.omega"]["lr"] == pytest.approx(5e-4)
    assert groups["transformer.h.0.attn.beta"]["lr"] == pytest.approx(5e-3)
    assert groups["transformer.h.0.attn.c_attn.weight"]["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_the_logged_learning_rate_is_that_of_plain_parameters(make_model, factor):
    optimizer = build_optimizer(make_model("kuramoto"), settings(oscillator_lr_factor=factor))
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_warm_up_rises_linearly_and_cosine_falls_to_min_lr():
    factor = schedule(settings(min_lr=1e-4), max_steps=110)
    assert [factor(k) for k in range(10)] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert factor(10) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factor(110) == pytest.approx(0.1) == factor(500)
    falling = [factor(k) for k in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_linear_falls_evenly_to_min_lr():
    factor = schedule(settings(schedule="linear", min_lr=1e-4), max_steps=110)
    assert [factor(k) for k in (9, 10, 60, 85)] == pytest.approx([1.0, 1.0, 0.55, 0.325])
    assert factor(110) == pytest.approx(0.1) == factor(500)


@pytest.mark.parametrize(("given", "start"), [(None, 80), (50, 50), (95, 10)])
def test_wsd_stays_and_falls_at_last(given, start):
    """A fifth of 100 steps, the steps given, or what the warm-up leaves of them."""
    factor = schedule(settings(schedule="wsd", decay_steps=given, min_lr=1e-4), max_steps=100)
    assert [factor(k) for k in range(9, start + 1)] == [1.0] * (start - 8)
    half = (start + 100) // 2
    assert factor(half) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1) == factor(500)


def test_inverse_sqrt_goes_on_from_the_warm_up():
    factor = schedule(settings(schedule="inverse_sqrt"), max_steps=100)
    assert [factor(k) for k in (4, 9, 39, 89, 999)] == pytest.approx([0.5, 1, 0.5, 1 / 3, 0.1])
    without = schedule(settings(schedule="inverse_sqrt", warmup_steps=0), max_steps=100)
    assert [without(k) for k in (0, 3, 99)] == pytest.approx([1.0, 0.5, 0.1])


def test_schedule_free_keeps_its_rate_after_the_warm_up():
    factor = schedule(ScheduleFreeConfig(lr=1e-3, warmup_steps=4), max_steps=10)
    assert [factor(k) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_constant_schedule_stays_and_no_warm_up_starts_full():
    factor = schedule(settings(schedule="constant", warmup_steps=0), max_steps=5)
    assert [factor(k) for k in range(8)] == [1.0] * 8


def test_the_optimizer_state_loads_without_code(make_model, tmp_path):
    model = make_model("kuramoto")
    optimizer = build_optimizer(model, settings())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(settings(), 10))
    torch.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "state")
    torch.load(tmp_path / "state", weights_only=True)
