"""calibrate_heads predicts the measured KL of every head; target_kl is met."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import PhaseSlip, calibrate_heads, phase_slip, target_kl
from phasegpt.samplers.target_kl import measured_kl, own_text

SMALL = 0.03  # rad


def model_of(kind: str, hf: Callable, make_model: Any, roughen: Any) -> Any:
    if kind in ("gpt2", "llama"):
        return hf(kind)
    return roughen(make_model(kind, n_layer=3, n_head=4, n_embd=32, block_size=64), 0.15)


def ranks(x: torch.Tensor) -> torch.Tensor:
    return x.argsort().argsort().double()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "softmax", "kuramoto"])
def test_scores_agree_with_the_measured_kl_of_every_head(
    kind: str, hf: Callable, make_model: Any, roughen: Any
) -> None:
    model = model_of(kind, hf, make_model, roughen)
    ids = own_text(model, rows=6)
    scores = calibrate_heads(model, ids).scores
    measured = torch.tensor(
        [
            [measured_kl(model, ids, PhaseSlip([(layer, head)], angle=SMALL, gate=None))
             for head in range(scores.shape[1])]
            for layer in range(scores.shape[0])
        ]
    ) / SMALL**2  # fmt: skip
    both = torch.stack((ranks(scores.flatten()), ranks(measured.flatten())))
    assert torch.corrcoef(both)[0, 1] >= 0.9
    ratio = scores / measured
    assert ratio.min() > 1 / 2
    assert ratio.max() < 2


@pytest.mark.parametrize("kind", ["gpt2", "llama", "kuramoto", "hybrid"])
@pytest.mark.parametrize("target_kl", [1e-4, 1e-3, 0.02])
def test_the_realised_kl_is_within_a_factor_of_two_of_the_target(
    kind: str, target_kl: float, hf: Callable, make_model: Any, roughen: Any
) -> None:
    model = model_of(kind, hf, make_model, roughen)
    slip = PhaseSlip(target_kl=target_kl)
    heads, angle = slip.fit(model)
    torch.manual_seed(5)
    from phasegpt.samplers import decode

    other = decode(model, torch.full((6, 1), 7), max_new_tokens=63, seeds=range(100, 106))
    realised = measured_kl(model, other, PhaseSlip(heads, angle=angle, gate=None))
    assert target_kl / 2 < realised < target_kl * 2


@pytest.mark.parametrize("target_kl", [1e-3, 0.02])
def test_the_angle_of_slipped_phases_is_found_too(
    target_kl: float, make_model: Any, roughen: Any
) -> None:
    model = roughen(make_model("kuramoto", n_layer=2))
    slip = PhaseSlip(target="phases", target_kl=target_kl)
    heads, angle = slip.fit(model)
    ids = own_text(model)
    kl = measured_kl(model, ids, PhaseSlip(heads, angle=angle, target="phases", gate=None))
    assert target_kl / 1.1 <= kl <= target_kl * 1.1


def test_a_target_out_of_reach_is_told(hf: Callable) -> None:
    with pytest.warns(UserWarning, match="target_kl=100"):
        PhaseSlip([(3, 0)], target_kl=100).fit(hf("gpt2"))


def test_a_target_that_no_measurement_meets_is_said_and_the_nearest_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[float, float] = {}

    def leap(model: Any, ids: Any, slip: float) -> float:
        seen[slip] = 0.019 / 1.2 if slip < 0.5 else 1.0
        return seen[slip]

    monkeypatch.setattr(target_kl, "measured_kl", leap)
    with pytest.warns(UserWarning, match=r"target_kl=0\.02 was not met .* 0\.0158 nats at"):
        angle = target_kl.angle_for(None, torch.ones(1, 2).long(), 0.02, lambda a: a, None)
    assert len(seen) == 8 and seen[angle] < 0.02


def test_angles_that_are_given_need_no_text_of_the_model(
    make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phase_slip, "own_text", None)
    heads, angle = PhaseSlip(target="phases", angle=0.3).fit(make_model("kuramoto"))
    assert heads == [(layer, head) for layer in (0, 1) for head in (0, 1)] and angle == 0.3


def test_scores_are_deterministic_and_leave_everything_alone(hf: Callable) -> None:
    model = hf("llama")
    ids = own_text(model)
    state = torch.get_rng_state()
    first = calibrate_heads(model, ids).scores
    torch.rand(10)
    assert torch.equal(first, calibrate_heads(model, ids).scores)
    torch.set_rng_state(state)
    assert all(p.grad is None for p in model.parameters())
    model.train()
    assert torch.equal(first, calibrate_heads(model, ids).scores)
    assert all(m.training for m in model.modules())
    model.eval()


def test_eager_attention_has_the_same_scores(hf: Callable) -> None:
    model = hf("llama")
    ids = own_text(model)
    expected = calibrate_heads(model, ids).scores
    model.set_attn_implementation("eager")
    try:
        torch.testing.assert_close(calibrate_heads(model, ids).scores, expected)
        assert model.config._attn_implementation == "eager"
    finally:
        model.set_attn_implementation("sdpa")


def test_a_wider_window_moves_more(hf: Callable) -> None:
    ids = own_text(hf("gpt2"))
    few, many = (calibrate_heads(hf("gpt2"), ids, window=w).scores for w in (1, 12))
    assert (few < many).all()


def test_layers_without_values_have_no_score_and_are_not_chosen(
    make_model: Any, roughen: Any
) -> None:
    model = roughen(make_model("phase_sync", layers=(1,), n_layer=3))
    scores = calibrate_heads(model, own_text(model))
    assert scores.scores[1].isnan().all()
    assert {layer for layer, _ in scores.top(9, layers=3)} == {0, 2}
    only = calibrate_heads(make_model("kuramoto", n_layer=2), torch.ones(1, 8).long())
    assert only.scores.isfinite().all()


def test_the_table_is_printed_and_written(hf: Callable, tmp_path: Path) -> None:
    scores = calibrate_heads(hf("gpt2"), own_text(hf("gpt2")))
    lines = str(scores).splitlines()
    assert len(lines) == 2 + 4
    assert all(line.count("*") == 1 for line in lines[2:])
    scores.save(tmp_path / "heads.csv")
    rows = list(csv.DictReader((tmp_path / "heads.csv").open()))
    assert len(rows) == 16
    assert float(rows[5]["kl_per_squared_radian"]) == pytest.approx(
        float(scores.scores[1, 1]), rel=1e-4
    )
    with pytest.raises(ConfigError, match="cannot write"):
        scores.save(tmp_path / "no" / "heads.csv")


@pytest.mark.parametrize(
    ("ids", "says"),
    [(torch.ones(1, 3).long(), "at least 4"), (torch.ones(1, 65).long(), "attends to 64")],
)
def test_a_text_that_cannot_be_used_is_named(ids: torch.Tensor, says: str, hf: Callable) -> None:
    with pytest.raises(ConfigError, match=says):
        calibrate_heads(hf("gpt2"), ids)


def test_a_model_with_values_below_alone_is_searched_there(make_model: Any, roughen: Any) -> None:
    model = roughen(make_model("phase_sync", layers=(2, 3), n_layer=4))
    assert {layer for layer, _ in PhaseSlip(target_kl=1e-3).fit(model)[0]} <= {0, 1}
    for heads in ([(3, 0)], [(0, 0), (3, 0)]):
        with pytest.raises(ConfigError, match="layer 3 keeps no values"):
            PhaseSlip(heads).fit(model)
    assert "nan*" not in str(calibrate_heads(model, own_text(model)))
