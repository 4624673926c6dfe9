"""The reproduction of subject-verb agreement: its task, its model, its runs and its page."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch.nn import functional as F


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def agreement(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script("reproduce_agreement")
    monkeypatch.setattr(module, "SETTINGS", {**module.SETTINGS, "sentences": 256,
                                             "validation": 64, "dropout": 0.0})  # fmt: skip
    return module


def test_the_sentences_have_the_published_ceiling(agreement: Any) -> None:
    held = agreement.sentences(4000, 1)
    assert held.ceiling()["all"] == pytest.approx(97.76, abs=0.005)
    assert held.ceiling()["hard"] == pytest.approx(97.66, abs=0.005)
    assert held.accuracy(held.agrees_n) == {"all": 100.0, "simple": 100.0, "hard": 100.0}
    assert held.ids_nT.max().item() + 1 == agreement.words()[-1] == 169


@pytest.mark.parametrize(
    ("arm", "parameters"), [("softmax", 13_953), ("fixed_query", 14_053), ("free_anchors", 14_053)]
)
def test_the_reader_has_the_published_number_of_parameters(
    arm: str, parameters: int, agreement: Any
) -> None:
    assert sum(p.numel() for p in agreement.AgreementReader(arm).parameters()) == parameters


def test_on_the_circle_both_oscillator_arms_are_the_published_formula(agreement: Any) -> None:
    attend, free = agreement.FixedQuery(32, 2), agreement.FreeAnchors(32, 2)
    attend.anchors.data = F.normalize(attend.anchors.data.double(), dim=-1)
    q, k = torch.randn(3, 1, 32, dtype=torch.float64), torch.randn(3, 9, 32, dtype=torch.float64)
    seen = torch.ones(3, 1, 9, dtype=torch.bool)
    seen[0, :, 6:] = False
    anchors = attend.anchors[0, :9]
    pull = F.softplus(q @ k.transpose(1, 2) / 32**0.5) * seen
    kernel = 1 + F.normalize(pull @ anchors, dim=-1) @ anchors.T
    expected = kernel / kernel.sum(-1, keepdim=True)
    torch.testing.assert_close(attend.weights(q, k, seen), expected, atol=1e-12, rtol=0)
    free.anchors.data = attend.anchors.data
    torch.testing.assert_close(free.weights(q, k, seen), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("arm", ["softmax", "fixed_query"])
def test_seeds_side_by_side_are_what_each_is_by_itself(arm: str, agreement: Any) -> None:
    together = agreement.train(arm, [3, 5], epochs=2)
    for seed in (3, 5):
        alone = agreement.train(arm, [seed], epochs=2)[seed]
        assert together[seed]["curve"] == alone["curve"]
        if arm == "fixed_query":
            assert together[seed]["anchor_lengths"] == pytest.approx(alone["anchor_lengths"])


def test_the_page_says_what_the_records_say(agreement: Any, tmp_path: Path) -> None:
    record = {
        "settings": agreement.SETTINGS, "ceiling": {"all": 97.76, "hard": 97.66}, "steps": 12_500,
        "parameters": 1, "anchor_lengths": [0.5, 1.5, 2.5],
        "environment": {"git": {"sha": "f" * 40}},
    }  # fmt: skip
    (tmp_path / "arms").mkdir()
    found = {"free_anchors": [97.7, 97.9], "fixed_query": [97.8, 98], "softmax": [70.0, 95.0]}
    for arm, values in found.items():
        for seed, value in enumerate(values):
            accuracy = {"all": value, "simple": value, "hard": value}
            own = {"arm": arm, "seed": seed, "accuracy": accuracy, "curve": [accuracy] * 20}
            (tmp_path / "arms" / f"{arm}-{seed}.json").write_text(json.dumps(record | own))
    text = script("page_agreement").page(tmp_path)
    assert (
        "as published: 2 of 2 runs learned it and 0 failed, mean 97.80%. Published: 5 of 5" in text
    )
    assert "- softmax: 0 of 2 runs learned it and 1 failed, mean 82.50%. Published: 0 of 5" in text
    assert "| softmax, published | 5 | 92.19 | 7.80 |" in text
