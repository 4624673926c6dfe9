"""results/ follows from its records: tables, figures, pages."""

import csv
import functools
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from phasegpt.analysis.leaderboard.view import is_leaderboard
from phasegpt.analysis.sampling import summarise, write_tables
from phasegpt.analysis.studies import write
from phasegpt.analysis.study import load_records
from phasegpt.analysis.tables import baseline_of
from phasegpt.analysis.temperature_study import write_table
from phasegpt.core.composition import CONF_DIR
from phasegpt.training.config import RunConfig

WITH_RUNS = sorted(p.parent for p in (ROOT / "results").glob("*/runs"))
BOARDS = [study for study in WITH_RUNS if is_leaderboard(study)]
STUDIES = [study for study in WITH_RUNS if study not in BOARDS]
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


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.name)
def test_committed_files_follow_from_the_committed_records(study, tmp_path):
    """Tables equal the committed ones; files of the smallest study, written twice, each other."""
    for name in ("runs", "attention.json", "without_future"):
        if (study / name).exists():
            (tmp_path / name).symlink_to(study / name)
    first = {path.name: path.read_bytes() for path in write(tmp_path)}
    if study.name == "first_light":
        assert first == {path.name: path.read_bytes() for path in write(tmp_path)}
    committed = {p.name for p in study.iterdir() if p.suffix in (".csv", ".md", ".tex", ".png")}
    strange = {"README.md", "details.md", "verdicts.md"}
    assert committed - strange == {name for name in first if name != "report.html"}
    for name, content in first.items():
        if name.endswith((".csv", ".md", ".tex")):
            assert content == (study / name).read_bytes(), name


def test_make_report_writes_every_page_that_a_script_makes_of_records():
    words = ["make", "-n", "-C", str(ROOT), "report"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    called = set(re.findall(r"scripts/(\w+\.py)", said))
    again = "--regenerate", "--page"
    pages = {path.name for path in (ROOT / "scripts").glob("*.py")
             if path.name.startswith("page_")
             or any(f'"{word}"' in path.read_text() for word in again)}  # fmt: skip
    assert len(pages) >= 5 and pages | {"analyze_results.py", "check_preregistration.py"} == called


def test_pages_and_tables_of_what_has_no_runs_follow_from_the_records(tmp_path):
    results = ROOT / "results"
    agreement, peers = (
        runpy.run_path(str(ROOT / "scripts" / name))
        for name in ("page_agreement.py", "bench_peers.py")
    )
    written = {
        "reproductions/agreement/README.md": agreement["page"](results / "reproductions/agreement"),
        "speed/README.md": peers["page"](peers["earlier"](results / "speed" / "speed.json")),
    }
    for study in (*results.glob("*temperature"), *results.glob("samplers/*/")):
        folder = tmp_path / study.relative_to(results)
        folder.mkdir(parents=True)
        (folder / "arms").symlink_to(study / "arms")
        if study.parent == results:
            write_table(folder)
        else:
            write_tables(folder, summarise(folder))
    tables = [path for path in tmp_path.rglob("table.*") if path.is_file()]
    assert len(tables) >= 4
    written |= {str(path.relative_to(tmp_path)): path.read_text() for path in tables}
    for name, text in written.items():
        assert text == (results / name).read_text(), name


@pytest.mark.parametrize("study", BOARDS, ids=lambda p: p.name)
def test_the_pages_of_a_committed_leaderboard_follow_from_its_records(study, tmp_path):
    folder = tmp_path / "results" / study.name
    folder.mkdir(parents=True)
    (folder / "runs").symlink_to(study / "runs")
    for beside in study.parent.glob("discovery_*"):  # which the first page links
        (folder.parent / beside.name).symlink_to(beside)
    written = {path.name: path.read_bytes() for path in write(folder)}
    committed = {p.name for p in study.iterdir() if p.suffix in (".md", ".png")}
    assert committed == {name for name in written if name != "report.html"}
    for name in (name for name in written if name.endswith(".md")):
        assert written[name] == (study / name).read_bytes(), name


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.name)
def test_arms_of_a_committed_study_differ_only_in_the_treatment(study):
    """Pairs have the same data, steps and seed; attention and positions are the treatment.

    A study may grow: arms and seeds that came later are of a later commit.
    """
    arms = load_records(study)
    late = study.name == "phase_a_late"  # registered with fewer seeds of some arms
    name = "phase_a_late-softmax" if late else baseline_of(arms)
    baseline = {r["seed"]: r for r in arms[name]}

    def same(found: dict[str, Any]) -> list[Any]:
        config = RunConfig.parse(found["config"]).to_dict()  # with what came later
        model = {k: v for k, v in config["model"].items() if k != "positions"}
        parts = [config[name] for name in ("data", "optimizer", "trainer")]
        return [model, *parts, found["data"]["fingerprint"]]

    for arm, records in arms.items():
        paired = [r for r in records if r["seed"] in baseline]
        assert len(paired) >= (1 if late else 3), arm
        for found in paired:
            assert same(found) == same(baseline[found["seed"]]), (arm, found["seed"])
        assert all(r["git"]["dirty"] is False for r in records), arm


def test_no_committed_record_names_a_place_of_a_machine():
    files = sorted((ROOT / "results").rglob("*.json"))
    assert len(files) > 100
    place = re.compile(r"(?<![\w.])/(home|work|root|tmp|mnt|Users)/")
    assert not [str(f.relative_to(ROOT)) for f in files if place.search(f.read_text())]


def test_the_studies_of_the_makefile_name_sweeps_that_exist():
    text = (ROOT / "Makefile").read_text()
    studies = dict(re.findall(r"^STUDY_(\w+) := (.+)$", text, re.MULTILINE))
    assert all(sweeps.split()[0] == name for name, sweeps in studies.items())
    named = [sweep for sweeps in studies.values() for sweep in sweeps.split()]
    sweeps = [p.stem for p in (CONF_DIR / "sweep").glob("phase_*.yaml")]
    assert sorted(named) == sorted([*sweeps, "leaderboard"])


_INTERVAL = re.compile(r"(-?[\d.]+)\s+\[([+-]?[\d.]+)(?:, | to )([+-]?[\d.]+)\]")


def _intervals(text: str) -> list[list[str]]:
    """Every "mean [low, high]" of a text."""
    return [[value.lstrip("+") for value in found] for found in _INTERVAL.findall(text)]


@functools.cache
def _told(folder: Path) -> list[list[float]]:
    """Numbers that stand together in a folder: an interval of a page, a row of a table."""
    pages = [path.read_text() for path in folder.rglob("*.md")]
    rows = [row for path in folder.glob("*.csv") for row in path.read_text().splitlines()]
    found = [[float(v) for v in told] for text in pages for told in _intervals(text)]
    return found + [[float(v) for v in re.findall(r"-?\d+\.\d+", row)] for row in rows]


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_intervals_of_a_claim_are_on_the_pages_it_links(page):
    """Rounded, in the Markdown or in one row of a CSV of the folders that a table's row links."""
    checked = 0
    for row in (ROOT / page).read_text().splitlines():
        links = re.findall(r"\]\(([\w/.-]+)/\w+\.md", row) if row.startswith("|") else []
        there = [told for link in links for told in _told((ROOT / page).parent / link)]
        for found in _intervals(row):
            near = [(float(v), 0.501 * 10.0 ** -len(v.partition(".")[2])) for v in found]
            assert any(
                all(any(abs(v - w) <= half for w in own) for v, half in near) for own in there
            ), f"{found} of {row}"
            checked += 1
    assert checked >= 10
