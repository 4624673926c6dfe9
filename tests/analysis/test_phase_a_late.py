"""Phase A to epoch 25: planted collapses and differences are found by the registered rules."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from text_boxes import measured

from phasegpt.analysis import phase_a_late
from phasegpt.analysis.phase_a_late import SOFTMAX, WINNER, WINNER_K0, course, page
from phasegpt.analysis.studies import write

STEPS, EPOCHS = 245, 25


def record(arm: str, seed: int, ppl: list[float], **more: Any) -> dict[str, Any]:
    """A run with a validation perplexity for every epoch; with phases, R falls by 0.01 in each."""
    points = [[STEPS * (i + 1), value] for i, value in enumerate(ppl)]
    curves = {"val/ppl": points}
    if "softmax" not in arm and "learned" not in arm:
        for layer, base in ((1, 0.5), (2, 0.6)):
            falling = [[step, base - 0.01 * i] for i, (step, _) in enumerate(points)]
            curves[f"phase/val/R_end/layer{layer}"] = falling
            curves[f"phase/val/dR/layer{layer}"] = [[step, 0.1] for step, _ in points]
    mechanism = next((m for m in ("as_coded", "phase_sync") if arm.startswith(m)), "kuramoto")
    config = {
        "name": arm,
        "attention": {"name": "softmax" if "phase/val/dR/layer1" not in curves else mechanism},
        "trainer": {"val_check_interval": STEPS},
    }
    return {
        **{"status": "ok", "seed": seed, "step": points[-1][0], "config": config},
        **{"best": {"val/ppl": min(ppl)}, "final": {"val/ppl": ppl[-1]}, "curves": curves},
        "leaky": arm.startswith("as_coded"),
        **more,
    }


def falling(end: float) -> list[float]:
    return [end + 4 / (epoch + 1) for epoch in range(EPOCHS - 1)] + [end]


def rising(end: float, by: float) -> list[float]:
    """Best at epoch 21, and in the last one a loss that is `by` times the best."""
    best = falling(end)[:-5] + [end] * 5
    return [*best[:-1], math.exp(by * math.log(end))]


def five(end: float) -> list[float]:
    return [end + 0.01 * d for d in (0, 3, -2, 1, -1)]


def arms(**ends: list[float]) -> dict[str, list[dict[str, Any]]]:
    names = {"softmax": SOFTMAX, "winner": WINNER, "k0": WINNER_K0, "k2": "phase_a_late-k2"}
    return {
        names[arm]: [record(names[arm], seed, falling(v)) for seed, v in enumerate(values, 1)]
        for arm, values in ends.items()
    }


def test_a_run_by_epoch_has_the_mean_of_its_layers():
    found = course(record(WINNER, 1, falling(4.0)))
    assert list(found.loss) == list(range(1, EPOCHS + 1))
    assert found.loss[EPOCHS] == pytest.approx(math.log(4.0)) and found.best == EPOCHS
    assert found.R[1] == pytest.approx(0.55) and found.R[EPOCHS] == pytest.approx(0.31)
    assert found.dR[10] == pytest.approx(0.1)
    assert found.since == pytest.approx(math.log(4.0 / (4.0 + 4 / 20)))


@pytest.mark.parametrize(
    ("own", "softmax", "word"),
    [
        (1.04, 1.00, False),  # not above 1.05
        (1.06, 1.00, True),
        (1.06, 1.029, True),  # softmax rises less than half as far
        (1.06, 1.04, False),  # softmax rises too
        (1.06, None, None),  # nobody knows
    ],
)
def test_a_collapse_is_a_rise_that_softmax_does_not_share(own, softmax, word):
    run = course(record(WINNER, 1, rising(4.0, own)))
    beside = None if softmax is None else course(record(SOFTMAX, 1, rising(4.0, softmax)))
    assert phase_a_late.collapsed(run, beside) is word


def test_a_loss_that_was_not_finite_is_a_collapse():
    run = course(record(WINNER, 1, falling(4.0)[:21], status="collapsed"))
    assert phase_a_late.collapsed(run, None) is True


def test_both_answers_are_those_of_the_records():
    found = arms(softmax=five(4.6), winner=five(4.5), k0=[4.6, 4.62, 4.59, 4.62, 4.58], k2=[4.7])
    text = page(found)
    assert "**None of 16 runs collapsed.**" in text
    own, off = ([r["best"]["val/ppl"] for r in found[arm]] for arm in (WINNER, WINNER_K0))
    p = stats.ttest_rel(own, off).pvalue
    assert f"p = {p:.3f}" in text and "n = 5" in text
    assert "**The winner is better than itself without coupling**" in text
    assert "- kuramoto, K = 2: 1 of 3 runs." in text and "softmax + RoPE: " not in text
    found["phase_a_late-k2"] = [record("phase_a_late-k2", 1, rising(4.7, 1.1))]
    assert "**1 of 16 runs collapsed: kuramoto, K = 2, seed 1.**" in page(found)


def test_equal_arms_are_not_called_different():
    text = page(arms(winner=five(4.5), k0=[4.51, 4.50, 4.50, 4.50, 4.49]))
    assert "not seen to differ" in text


def test_partial_records_claim_nothing():
    short = {SOFTMAX: [record(SOFTMAX, 1, falling(4.0)[:6])]}
    text = page(short)
    assert "nothing is said of a collapse" in text and "nothing is said of coupling" in text
    few = page(arms(winner=five(4.5)[:3], k0=five(4.6)[:3]))
    assert "Too few pairs for a verdict on coupling: 3 of 5" in few


def test_the_files_of_the_study_are_written_with_the_others(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    every = arms(softmax=five(4.6)[:2], winner=five(4.5)[:2], k0=five(4.55)[:2], k2=[4.7])
    for arm in ("phase_sync-phase_a_late-k2", "as_coded-phase_a_late-k2", "phase_a_late-learned"):
        every[arm] = [record(arm, 1, falling(5.0))]
    for arm, runs in every.items():
        for content in runs:
            file = tmp_path / "runs" / f"{arm}-seed{content['seed']}.json"
            file.write_text(json.dumps(content))
    (tmp_path / "without_future").mkdir()
    score = tmp_path / "without_future" / "as_coded-phase_a_late-k2-seed1.json"
    score.write_text('{"perplexity": 9.5}')
    with measured() as found:
        written = {path.name for path in write(tmp_path)}
    assert {"epochs.md", "epochs.csv", "epochs.png", "table.md"} <= written
    assert found["epochs.png"] == []
    text = (tmp_path / "epochs.md").read_text()
    assert "as_coded, K = 2 without later characters: 9.500." in text
    with open(tmp_path / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 * EPOCHS and rows[0]["epoch"] == "1"
