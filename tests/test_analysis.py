"""A study's table and picture follow from its records alone."""

import json
import re
import shlex
from pathlib import Path

import pytest

from phasegpt.analysis import collect, draw, draw_phases, load_records, summarise, write_table
from phasegpt.build import run_config
from phasegpt.config import compose

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted(p.parent for p in (ROOT / "results").glob("*/runs"))


def ledger(study: Path, arm: str, ppl: list[float]) -> None:
    (study / "runs").mkdir(parents=True, exist_ok=True)
    for seed, value in enumerate(ppl, start=1):
        record = {
            "seed": seed,
            "step": 10,
            "best": {"val/ppl": value},
            "final": {"phase/R/final": 0.5},
            "parameters": {"non_embedding": 7},
            "curves": {"val/ppl": [[5, value + 1], [10, value]], "phase/R/layer2/mean": [[5, 0.4]]},
        }
        (study / "runs" / f"{arm}-seed{seed}.json").write_text(json.dumps(record))


def test_mean_sd_and_t_interval_of_known_numbers(tmp_path):
    ledger(tmp_path, "b", [4.0, 5.0, 6.0])
    ledger(tmp_path, "a", [3.0])
    first, second = summarise(tmp_path)
    assert (first["arm"], first["n"], first["sd"], first["low"]) == ("a", 1, None, None)
    assert second["mean"] == 5.0 and second["sd"] == 1.0
    half = 4.302652729911275 / 3**0.5  # Student's t at 0.975 with 2 degrees of freedom
    assert second["low"] == pytest.approx(5 - half) and second["high"] == pytest.approx(5 + half)


def test_differences_to_softmax_are_paired_by_seed(tmp_path):
    ledger(tmp_path, "softmax", [4.0, 8.0, 6.0])
    ledger(tmp_path, "other", [3.0, 7.0, 5.0])  # always one less, whatever the seed does
    ledger(tmp_path, "partial", [3.0, 7.0, 5.0, 9.0])  # a seed without its partner: no difference
    rows = {row["arm"]: row for row in summarise(tmp_path)}
    other = rows["other"]
    assert (other["difference"], other["difference_low"], other["difference_high"]) == (-1, -1, -1)
    assert rows["softmax"]["difference"] is None and rows["partial"]["difference"] is None


def test_table_and_picture_are_byte_identical_when_nothing_changed(tmp_path):
    ledger(tmp_path, "a", [3.0, 4.0])
    table, picture = write_table(tmp_path).read_bytes(), draw(tmp_path).read_bytes()
    assert write_table(tmp_path).read_bytes() == table
    assert draw(tmp_path).read_bytes() == picture


def test_phases_of_the_last_validation_are_averaged_over_layers_and_seeds(tmp_path):
    ledger(tmp_path, "softmax", [4.0, 5.0])
    ledger(tmp_path, "kuramoto", [3.0, 4.0])
    assert draw_phases(tmp_path) is None
    for seed, dR in ((1, 0.1), (2, 0.3)):
        path = tmp_path / "runs" / f"kuramoto-seed{seed}.json"
        record = json.loads(path.read_text())
        for layer, more in ((1, 0.0), (2, 0.2)):
            record["final"] |= {f"phase/val/dR/layer{layer}": dR + more}
            record["final"] |= {f"phase/val/R/layer{layer}/end": 0.5}
        path.write_text(json.dumps(record))
    kuramoto, softmax = summarise(tmp_path)
    half = 12.706204736432095 * 0.1  # Student's t, 1 degree of freedom; sd 0.2/sqrt 2, n = 2
    assert kuramoto["dR"] == pytest.approx(0.3)
    assert kuramoto["dR_low"] == pytest.approx(0.3 - half)
    assert softmax["dR"] is None and kuramoto["ppc"] is None
    picture = draw_phases(tmp_path).read_bytes()
    assert draw_phases(tmp_path).read_bytes() == picture


def test_unfinished_runs_are_not_collected(tmp_path):
    for name, status in (("a-seed1", "ok"), ("a-seed2", "running")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps({"status": status}))
    written = collect(tmp_path / "runs", tmp_path / "study")
    assert [p.name for p in written] == ["a-seed1.json"]


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.name)
def test_committed_tables_follow_from_the_committed_records(study, tmp_path):
    (tmp_path / "runs").symlink_to(study / "runs")
    assert write_table(tmp_path).read_bytes() == (study / "table.csv").read_bytes()


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.name)
def test_arms_of_a_committed_study_differ_only_in_the_treatment(study):
    """Same data, steps, seeds and code; the attention and the positions are the treatment."""
    arms = load_records(study)
    assert len({tuple(r["seed"] for r in records) for records in arms.values()}) == 1
    kept = set()
    for record in (r for records in arms.values() for r in records):
        config = record["config"]
        model = {k: v for k, v in config["model"].items() if k != "positions"}
        same = [model, config["data"], config["optimizer"], config["trainer"]]
        same += [record["data"]["fingerprint"], record["git"]["sha"], record["leaky"]]
        kept.add(json.dumps(same, sort_keys=True))
        assert record["git"]["dirty"] is False
    assert len(kept) == 1


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^python -m phasegpt\.train ([^#\n]*[^#\n ])", text, re.MULTILINE)


@pytest.mark.parametrize(
    "page", ["README.md", "results/first_light/README.md", "results/synchronization/README.md"]
)
def test_the_training_commands_of_a_page_compose(page):
    found = [c for c in commands(page) if c != "--help"]
    assert len(found) >= 4
    for command in found:
        words = [w for w in shlex.split(command) if not w.startswith(("-", "hydra."))]
        words = [w if "[" in w else w.split(",")[0] for w in words]  # a sweep's first job
        words = [w.replace("glob(*)", "baseline") for w in words]
        run_config(compose(words))
