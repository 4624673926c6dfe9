"""One table of metric names: what runs log, what the page says, what older runs are read as."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from phasegpt.analysis.study import phase_value, read_records
from phasegpt.training import metric_names, wandb_dashboard
from phasegpt.training.metric_names import LOGGED, MEASURES, RENAMED, any_version, today
from phasegpt.training.run_folder import read_metrics, read_phases, read_record

BEFORE = ROOT / "tests" / "fixtures" / "before_the_house"


def known(name: str) -> bool:
    """Whether a name stands in the table."""
    if name == "step" or name in LOGGED or name == "phase/val/budget/sum":
        return True
    general = re.sub(r"head\d+", "headH", re.sub(r"layer\d+", "layerN", name))
    measured = re.fullmatch(r"phase/(val/)?(\w+)/layerN", general)
    return general in LOGGED or bool(measured and measured[2] in MEASURES)


def test_the_page_of_metrics_is_made_from_the_table() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text()
    assert written == metric_names.page(), "python -m phasegpt.training.metric_names > that page"


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("val", ["", "val/"])
def test_every_earlier_name_is_read_as_todays_and_shown_beside_it(old: str, val: str) -> None:
    def one(name: str, layer: str = "layer3") -> str:
        return name.replace("[val/]", val).replace("layerN", layer)

    new = RENAMED[old]
    assert today(one(old)) == one(new) and today(one(new)) == one(new)
    assert known(one(new))
    for name in (one(old), one(new)):
        assert re.search(any_version(one(new, "layerN")), name)


def test_names_that_only_look_like_earlier_ones_are_left_alone() -> None:
    for name in ("phase/R/layer1/head0", "phase/dR/layer1", "val/ppl", "x/R/layer1/mean", "step"):
        assert today(name) == name


@pytest.mark.parametrize("name", ["kuramoto", "phase_sync", "as_coded"])
def test_a_run_folder_of_an_earlier_version_has_the_names_of_today(name: str) -> None:
    text = (BEFORE / name / "metrics.csv").read_text()
    raw = dict(zip(*(line.split(",") for line in text.splitlines()[:2]), strict=True))
    first = read_metrics(BEFORE / name / "metrics.csv")[0]
    assert first == {today(k): float(v) for k, v in raw.items() if v}
    assert all(map(known, {k for row in read_metrics(BEFORE / name / "metrics.csv") for k in row}))
    assert all(map(known, read_record(BEFORE / name).get("final", {})))


def test_the_arrays_of_an_earlier_version_have_the_names_of_today() -> None:
    (file,) = (BEFORE / "kuramoto" / "phase").glob("*.npz")
    found = read_phases(BEFORE / "kuramoto")
    with np.load(file) as raw:
        assert len(raw.files) == len(found) - 1
        np.testing.assert_array_equal(found["layer1/R_end"][0], raw["layer1/R/end"])
        np.testing.assert_array_equal(found["layer1/daido_2"][0], raw["layer1/daido/m2"])
    arrays = {"R_HS", "R_HT", "frequency_HN", "theta0_HK", "theta_HK"}
    assert set(found) == {"step", *(f"layer1/{name}" for name in (*MEASURES, *arrays))}


def test_committed_records_are_read_by_the_names_of_today() -> None:
    study = ROOT / "results" / "phase_b"
    file = sorted((study / "runs").glob("*soft*.json"))[0]
    raw, record = json.loads(file.read_text()), read_records(study)[file.stem]
    assert "phase/R/final" in raw["final"] and "phase/R/final" not in record["final"]
    (old,) = (v for k, v in raw["final"].items() if re.fullmatch(r"phase/val/R/layer\d+/end", k))
    assert phase_value(record, "R_end") == old
    assert all(map(known, {**record["final"], **record["curves"]}))


def test_every_chart_of_the_dashboard_shows_a_metric_of_the_table() -> None:
    names = [*LOGGED, *(f"phase/val/{m}/layerN" for m in MEASURES)]
    names = [n.replace("layerN", "layer7").replace("headH", "head0") for n in names]
    for charts in wandb_dashboard._CHARTS.values():
        for title, shown in charts.items():
            if isinstance(shown, str):
                assert any(re.search(shown, name) for name in names), title
            else:
                assert set(shown) <= set(names), title


def test_the_module_of_names_writes_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    runpy.run_path(str(Path(metric_names.__file__)), run_name="__main__")
    assert capsys.readouterr().out == metric_names.page()
