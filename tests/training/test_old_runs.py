"""Runs, checkpoints and exports made before the folders existed load, resume and score the same."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

import phasegpt
from phasegpt.evaluate import EvaluateConfig, evaluate
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.metric_names import today
from phasegpt.training.run_folder import read_metrics

BEFORE = ROOT / "tests" / "fixtures" / "before_the_house"
pytestmark = pytest.mark.filterwarnings("ignore:.*sees the future")
EXPECTED: dict[str, Any] = json.loads((BEFORE / "expected.json").read_text())
NAMES = ("kuramoto", "phase_sync", "as_coded")
#: R of a forgetting prefix had no weights in the metrics, and offsets and participation had the
#: rotary drift; see docs/renamed.md.
MENDED = re.compile(r"phase/(val/)?(R|R_start|R_end|dR|dR_se|daido_\d|offsets|participation)/.*")
CLOSE = 1e-5  # relative: float32 rounds differently on other machines


def words(name: str) -> list[str]:
    """The overrides of a fixture as one would write them now."""
    old = EXPECTED[name]["words"]
    if "attention.as_coded=true" not in old:
        return old
    left = [word for word in old if not word.startswith(("attention.as_coded=", "attention="))]
    return [*left, "attention=as_coded"]


def close(value: Any) -> Any:
    return pytest.approx(value, rel=CLOSE, abs=1e-7)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", NAMES)
def test_an_old_configuration_keeps_its_hash(name: str) -> None:
    expected = EXPECTED[name]
    assert run_config(phasegpt.compose(words(name))).hash == expected["config_hash"]
    record = json.loads((BEFORE / name / "run.json").read_text())
    assert run_config(record["config"]).hash == expected["config_hash"]


def test_the_hashes_of_committed_records_recompute() -> None:
    files = ROOT.glob("results/*/runs/*.json")
    records = {f.relative_to(ROOT / "results"): json.loads(f.read_text()) for f in sorted(files)}
    # Parsed, not as a new run's: they name a wandb group beside logger=csv, which is refused now.
    wrong = [
        path
        for path, record in records.items()
        if RunConfig.parse(record["config"]).hash != record["config_hash"]
    ]
    # The first study's were written before there were a collapse guard, schedules of the
    # regularizer and a choice of its axis: their hash is over fewer keys than any of today's.
    assert len(wrong) == 18 and {path.parts[0] for path in wrong} == {"first_light"}
    assert not any("collapse_guard" in records[path]["config"]["callbacks"] for path in wrong)
    switches = [r["config"]["attention"].get("as_coded") for r in records.values()]
    assert switches.count(True) and switches.count(False)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_resumes_to_the_numbers_of_an_uncut_one(name: str, tmp_path: Path) -> None:
    folder, expected = tmp_path / "run", EXPECTED[name]
    shutil.copytree(BEFORE / name, folder, symlinks=True)
    record = phasegpt.fit(phasegpt.compose([*words(name), "resume=true"]), folder)
    assert record["best"] == close(expected["best"])
    rows = [
        {k: v for k, v in row.items() if not k.startswith("perf/")}
        for row in read_metrics(folder / "metrics.csv")
    ]
    cut = 6  # the step of the last checkpoint
    for row, old in zip(rows, expected["metrics"], strict=True):
        found = {today(k): float(v) for k, v in old.items()}
        assert row.keys() == found.keys()
        if row["step"] > cut and "train/lr" in row:  # was that of the next step
            found["train/lr"] = row["train/lr"]
        if name == "phase_sync" and row["step"] > cut:
            for key in filter(MENDED.fullmatch, found):
                found[key] = row[key]
        assert row == close(found)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_export_scores_the_same(name: str, tmp_path: Path) -> None:
    shutil.copytree(BEFORE / f"{name}_export", tmp_path / "export")
    found = evaluate(EvaluateConfig(checkpoint=str(tmp_path / "export"), split="test"))
    expected = EXPECTED[name]["evaluate"]
    assert {key: found[key] for key in expected} == close(expected)
