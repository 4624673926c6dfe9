"""The pages of results/ say what the records say."""

import csv
import re

import pytest
from helpers import ROOT

ROW = re.compile(r"\| (\w+) \| ([\w.-]+) \| (\d+) \| ([\d.]+) \[([\d.]+) to ([\d.]+)\] \|")
EXPECTED = ROW.findall((ROOT / "REPRODUCIBILITY.md").read_text())


@pytest.mark.parametrize("row", EXPECTED, ids=lambda row: "/".join(row[:2]))
def test_expected_numbers_are_those_of_the_tables(row):
    study, arm, *numbers = row
    with open(ROOT / "results" / study / "table.csv", newline="") as file:
        (found,) = (r for r in csv.DictReader(file) if r["arm"] == arm)
    there = [float(found[name]) for name in ("n", "mean", "low", "high")]
    assert [float(number) for number in numbers] == pytest.approx(there, abs=0.00056)


def test_every_study_has_a_page_and_stands_in_the_overview():
    overview = (ROOT / "results" / "README.md").read_text()
    studies = [p.name for p in (ROOT / "results").iterdir() if p.is_dir()]
    assert len(EXPECTED) >= 8 and studies
    for study in studies:
        assert (ROOT / "results" / study / "README.md").is_file(), study
        assert f"({study}/README.md)" in overview, study
