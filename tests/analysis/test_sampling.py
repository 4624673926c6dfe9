"""Tables and picture of a study of samplers follow from its records alone."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phasegpt.analysis.sampling import (
    PER_ARM,
    PER_SAMPLE,
    read_arms,
    regenerate,
    summarise,
    write_tables,
)
from phasegpt.analysis.sampling_figure import draw_frontier
from phasegpt.core.errors import DataError

N = 40


def record(
    place: int,
    name: str,
    role: str,
    diversity: float,
    judge: float,
    *,
    temperature: float | None = None,
    against: str | None = None,
    kl: float | None = None,
) -> dict[str, Any]:
    """Samples around the given means, with the luck of their row."""
    luck = np.random.default_rng(0).standard_normal(N)
    luck -= luck.mean()
    samples = {metric: [0.5] * N for metric in PER_SAMPLE}
    samples |= {"diversity": [diversity] * N, "judge": (judge + luck).tolist()}
    samples["diversity"] = (diversity + 0.001 * luck).tolist()
    return {
        "place": place,
        "arm": {"name": name, "role": role, "temperature": temperature, "against": against},
        "subject": {"name": "a model"},
        "protocol": {"prompts": ["a", "b"], "rounds": N // 2, "tokens": 9, "seed": 1},
        "samples": samples,
        "together": dict.fromkeys(PER_ARM, 0.25) | {"self_bleu": None},
        "effect": {} if kl is None else {"kl": kl, "weight": 0.2},
        "cost": {} if role == "human" else {"tokens_per_cpu_second": 100.0},
        "texts": [],
    }


@pytest.fixture
def study(tmp_path: Path) -> Path:
    records = [
        record(0, "human", "human", 0.9, 1.8),
        record(1, "greedy", "seed", 0.2, 1.4, temperature=0.0, against="control"),
        record(2, "control", "control", 0.6, 2.0, temperature=0.65),
        record(3, "temperature_0.5", "sweep", 0.5, 1.8, temperature=0.5),
        record(4, "temperature_1", "sweep", 0.7, 2.6, temperature=1.0),
        record(5, "slip", "slip", 0.55, 2.25, temperature=0.65, against="control", kl=0.011),
    ]
    write(tmp_path / "all" / "study", records)
    return tmp_path / "all" / "study"


def write(study: Path, records: list[dict[str, Any]]) -> None:
    (study / "arms").mkdir(parents=True, exist_ok=True)
    for found in records:
        (study / "arms" / f"{found['arm']['name']}.json").write_text(json.dumps(found))


def test_differences_are_paired_by_row(study: Path) -> None:
    rows = {row["arm"]: row for row in summarise(study)}
    assert list(rows) == ["human", "greedy", "control", "temperature_0.5", "temperature_1", "slip"]
    slip = rows["slip"]
    # The luck of the rows, of sd 1, is the same on both sides and leaves the difference exact.
    assert (slip["d_judge"], slip["d_judge_low"], slip["d_judge_high"]) == pytest.approx([0.25] * 3)
    assert slip["judge_sd"] > 0.5
    assert slip["d_ppl"] == 0
    assert rows["control"]["d_judge"] is None
    assert slip["kl"] == 0.011


def test_the_gap_is_to_the_sweep_at_equal_diversity_and_not_extrapolated(study: Path) -> None:
    rows = {row["arm"]: row for row in summarise(study)}
    slip, control = rows["slip"], rows["control"]
    assert slip["gap"] == pytest.approx(0.25)  # the sweep has 2.0 at 0.55
    assert slip["gap_low"] <= slip["gap"] <= slip["gap_high"]
    assert control["gap"] == pytest.approx(-0.2)
    assert rows["greedy"]["gap"] is None and rows["human"]["gap"] is None  # outside the sweep
    assert rows["temperature_1"]["gap"] is None


def test_tables_and_picture_are_byte_identical_when_nothing_changed(study: Path) -> None:
    files = regenerate(study)
    assert {file.name for file in files} == {"table.csv", "table.md", "frontier.png"}
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in regenerate(study.parent)] == before


def test_the_csv_has_every_number_and_the_page_the_ones_to_read(study: Path) -> None:
    table, page = write_tables(study, summarise(study))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["arm"] for row in rows] == list(read_arms(study))
    assert rows[0]["self_bleu"] == "" and rows[5]["gap"] == "0.25"
    text = page.read_text()
    assert "2 prompts x 20 rounds x 9 tokens" in text
    assert "| slip | control |" in text and "+0.250 [" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| ")}
    assert widths == {15, 8}


def test_a_study_without_a_sweep_has_no_gap_but_tables_and_a_picture(tmp_path: Path) -> None:
    write(tmp_path, [record(0, "control", "control", 0.6, 2.0)])
    rows = summarise(tmp_path)
    assert rows[0]["gap"] is None
    write_tables(tmp_path, rows)
    assert draw_frontier(tmp_path, rows).stat().st_size > 1000


def test_records_of_several_protocols_do_not_make_one_table(study: Path) -> None:
    other = record(9, "other", "slip", 0.5, 2.0)
    other["protocol"]["seed"] = 2
    write(study, [other])
    with pytest.raises(DataError, match="several models or protocols"):
        summarise(study)


def test_a_folder_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no arms/\*.json"):
        regenerate(tmp_path)
