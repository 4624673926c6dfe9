"""The HTML reports stand alone and work in a real browser, at desktop and phone width."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from boards import BASE, records, shifted, write
from browser import browser, faults, needs_browser
from helpers import TEXT, make_run, run_config, text_data

from phasegpt.analysis.leaderboard.board import board
from phasegpt.analysis.leaderboard.view import view
from phasegpt.analysis.report import flat, leaderboard_page, pack, sweep_page
from phasegpt.analysis.study import read_records
from phasegpt.analysis.study_view import write_study
from phasegpt.core import figures
from phasegpt.interpret import InterpretConfig, interpret

__all__ = ["browser"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: Any) -> Path:
    """Reports of two runs and of both together: kuramoto in two layers, phase_sync in one."""
    folder = tmp_path_factory.mktemp("report")
    data = text_data(folder, TEXT)
    arms = {
        "0": ["attention.layers=[0,1]", "attention.coupling=3"],
        "1": ["attention=phase_sync"],
    }
    for name, overrides in arms.items():
        run = make_run(folder / "sweep" / name, *overrides, *data)
        record = {"config": run_config(*overrides, *data).to_dict(), "best": {"val/ppl": 5.0}}
        (run / "run.json").write_text(json.dumps(record))
        rows = ["step,train/loss,val/loss,phase/R/layer1,phase/R/mean", "1,3.0,,0.3,0.3"]
        (run / "metrics.csv").write_text("\n".join([*rows, "10,2.5,2.6,0.4,0.4", ""]))
    settings = {"split": "train", "tokens": 96, "context": 24, "figures": False}
    interpret(InterpretConfig(checkpoint=str(folder / "sweep"), **settings))
    return folder / "sweep"


def page(folder: Path) -> Path:
    return folder / "interpretation" / "report.html"


class Reader(HTMLParser):
    """The addresses that a page names, its ids, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.data = ""
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        self.addresses += [values[k] for k in ("src", "href") if k in values]
        self.ids += [values["id"]] if "id" in values else []
        self.inside = values.get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def test_a_page_names_no_other_file_and_has_fixed_ids(sweep: Path) -> None:
    for folder in (sweep / "0", sweep / "1", sweep):
        text = page(folder).read_text(encoding="utf-8")
        found = Reader(text)
        assert found.addresses == ["data:,"]
        assert len(set(found.ids)) == len(found.ids)
        assert not [name for name in found.ids if re.search(r"[0-9a-f]{8}", name)]
        assert json.loads(found.data)["version"]
        assert "plotly.js v" in text
        assert figures.colour("kuramoto") in text  # of the house style


def test_what_a_text_says_cannot_end_the_data(sweep: Path, tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    row = {"name": hostile, "values": {}, "source": None}
    text = sweep_page(hostile, [row])
    assert hostile not in text
    assert json.loads(Reader(text).data)["runs"][0]["name"] == hostile


def test_the_page_of_a_sweep_names_the_settings_that_differ(sweep: Path) -> None:
    data = json.loads(Reader(page(sweep).read_text(encoding="utf-8")).data)
    expected = {"name", "attention.coupling", "attention.layers", "attention.name"}
    assert set(data["changed"]) == expected
    assert [run["link"] for run in data["runs"]] == [
        "../0/interpretation/report.html",
        "../1/interpretation/report.html",
    ]
    assert [len(run["layers"]) for run in data["runs"]] == [2, 1]
    assert flat({"a": {"b": 1}, "c": [2]}) == {"a.b": 1, "c": [2]}


def look(browser: Any, file: Path, width: int) -> None:
    """Open a page at a width; it must be whole, quiet, and no wider than the window."""
    assert faults(browser, file, width) == []


def text_of(browser: Any, name: str) -> str:
    return browser.execute_script(f"return document.getElementById('{name}').textContent")


def put(browser: Any, name: str, value: int | str, event: str = "change") -> None:
    """Choose `value` in the control `name`."""
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event(arguments[2]));",
        *(name, value, event),
    )


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_run_can_be_clicked_through(sweep: Path, browser: Any, width: int) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    look(browser, page(sweep / "0"), width)
    drawn = browser.find_elements(By.CSS_SELECTOR, ".js-plotly-plot .main-svg")
    assert len(drawn) > 20
    statistics = json.loads((sweep / "0" / "interpretation" / "statistics.json").read_text())
    assert f"R {statistics['layers'][0]['R']['mean']:.3f}" in text_of(browser, "layers")
    assert text_of(browser, "step-label") == "10 of 10, time 1.00"

    # Hover a token, then pin another and walk on with the keyboard.
    tokens = browser.find_elements(By.CSS_SELECTOR, "#tokens span")
    assert len(tokens) == 24
    box = browser.find_element(By.ID, "tokens")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    ActionChains(browser).move_to_element(tokens[3]).perform()
    assert text_of(browser, "token-info").startswith("token 4")
    tokens[6].click()
    box.send_keys(Keys.ARROW_RIGHT)
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    assert text_of(browser, "token-info").startswith("token 8")

    # The slider moves phases and R of that token; layer, head and colour change what is shown.
    def shown() -> list[str]:
        return [
            text_of(browser, "token-info"),
            browser.execute_script(
                "return JSON.stringify(document.getElementById('portrait').data)"
            ),
        ]

    last = shown()
    put(browser, "step", 0, "input")
    assert text_of(browser, "step-label") == "0 of 10, time 0.00"
    first = shown()
    assert all(a != b for a, b in zip(first, last, strict=True))
    put(browser, "head", 1)
    assert "head 1" in text_of(browser, "statistics")
    assert shown() != first
    browser.find_elements(By.CSS_SELECTOR, "#layers .layer")[1].click()
    assert "layer 1" in text_of(browser, "statistics")
    put(browser, "layer", 0)
    assert "layer 0" in text_of(browser, "statistics")
    put(browser, "colour", "loss")
    assert "nats" in text_of(browser, "ramp-high")
    for summary in browser.find_elements(By.TAG_NAME, "summary"):
        browser.execute_script("arguments[0].click()", summary)
    assert "val/ppl" in text_of(browser, "record")
    assert [entry["message"] for entry in browser.get_log("browser")] == []


PICTURES = ("forest", "curves", "phases", "histograms", "spread", "attention", "leaky")


@pytest.fixture(scope="module")
def study(tmp_path_factory: Any) -> Path:
    """A study with everything on its page: two seeds, phases, a leaky arm, an attention record."""
    folder = tmp_path_factory.mktemp("study") / "tiny"
    (folder / "runs").mkdir(parents=True)
    attention = {"name": "kuramoto", "readout": "bias", "coupling": 1.0, "steps": 10, "dt": 0.1}
    arms: dict[str, dict[str, Any]] = {
        "softmax": {"attention": {"name": "softmax"}},
        "k0": {"attention": attention | {"coupling": 0.0}},
        "k1": {"attention": attention},
        "leak": {"attention": attention | {"name": "as_coded"}},
    }
    for i, (arm, config) in enumerate(arms.items()):
        for seed in (1, 2):
            ppl = 5.0 + 0.1 * i + 0.3 * seed
            record = {
                **{"seed": seed, "step": 20, "config": config, "leaky": arm == "leak"},
                "best": {"val/ppl": ppl},
                "curves": {
                    "val/ppl": [[10, ppl + 1], [20, ppl]],
                    "train/loss": [[s, 2.0 + 0.1 * (s % 3)] for s in range(1, 21)],
                },
            }
            if arm != "softmax":
                record["final"] = {"phase/val/R_end/layer1": 0.4, "phase/val/dR/layer1": 0.1}
                record["curves"]["phase/R/layer1"] = [[1, 0.5], [20, 0.4]]
                record["R_histogram"] = {"layer1": [0] * 20 + [3, 5] + [0] * 28}
            (folder / "runs" / f"{arm}-seed{seed}.json").write_text(json.dumps(record))
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4, "per": "sequence"}
    measure = dict.fromkeys(("baseline", "phase", "difference"), estimate)
    maps = dict.fromkeys(("baseline", "phase"), pack(torch.eye(4)[None], step=1 / 255, bits=8))
    layer = {"layer": 1, "phase": True, "maps": maps, "entropy": measure, "distance": measure}
    comparison = {
        **{"baseline": {"name": "softmax-seed1"}, "phase": {"name": "k1-seed1"}},
        **{"source": "split val", "sequences": 4, "context": 4, "layers": [layer]},
        "units": {"entropy": "entropy", "distance": "tokens"},
    }
    (folder / "attention.json").write_text(json.dumps(comparison))
    written = {path.name for path in write_study(folder)}
    assert {f"{name}.png" for name in PICTURES} <= written
    return folder


def test_the_page_of_a_study_names_no_other_file_and_has_fixed_ids(study: Path) -> None:
    found = Reader((study / "report.html").read_text(encoding="utf-8"))
    assert found.addresses == ["data:,"] and len(set(found.ids)) == len(found.ids)
    data = json.loads(found.data)
    causal, leaky = data["tables"]
    assert [row[0] for row in causal] == ["arm", "softmax", "kuramoto, K 0", "kuramoto, K 1"]
    assert [row[0] for row in leaky] == ["arm", "as_coded"]
    assert set(data["figures"]) == set(PICTURES)
    assert all(text.startswith("data:image/svg+xml;base64,") for text in data["figures"].values())
    assert set(data["sources"]) == {"table.csv", "table.md", "table.tex"}
    for name, text in data["sources"].items():
        assert text == (study / name).read_text()


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_study_shows_its_tables_figures_and_attention(
    study: Path, browser: Any, width: int
) -> None:
    from selenium.webdriver.common.by import By

    look(browser, study / "report.html", width)
    shown = browser.find_element(By.ID, "sources")
    assert [x.text for x in shown.find_elements(By.TAG_NAME, "summary")] == [
        *("table.csv", "table.md", "table.tex")
    ]
    pictures = browser.find_elements(By.CSS_SELECTOR, "section .figure img")
    assert len(pictures) == len(PICTURES)
    assert all(int(picture.get_attribute("naturalWidth")) > 300 for picture in pictures)
    assert "leak" not in text_of(browser, "table") and "leak" in text_of(browser, "leaky-table")


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_table_scrolls_in_its_own_box_and_sorts(study: Path, browser: Any, width: int) -> None:
    look(browser, study / "report.html", width)
    for name in ("table", "leaky-table"):
        box = f"document.getElementById('{name}').parentElement"
        assert browser.execute_script(f"return getComputedStyle({box}).overflowX") == "auto"
        assert browser.execute_script(f"return {box}.getBoundingClientRect().right") <= width

    def column(place: int) -> list[str]:
        rows = browser.execute_script(
            "return [...document.querySelectorAll('#table tbody tr')].map(r => "
            f"r.children[{place}].textContent)"
        )
        return rows

    heads = browser.execute_script(
        "return [...document.querySelectorAll('#table th')].map(h => h.textContent)"
    )
    budget = heads.index("K S dt")
    assert column(budget) == ["", "0", "1"]
    for expected in (["0", "1", ""], ["1", "0", ""]):  # what is empty stays last
        browser.execute_script(f"document.querySelectorAll('#table th button')[{budget}].click()")
        assert column(budget) == expected
    browser.execute_script("document.querySelector('#table th button').click()")
    assert column(0) == ["kuramoto, K 0", "kuramoto, K 1", "softmax"]


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_sweep_leads_to_its_runs(sweep: Path, browser: Any, width: int) -> None:
    from selenium.webdriver.common.by import By

    look(browser, page(sweep), width)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#runs tbody tr")) == 3
    browser.find_element(By.LINK_TEXT, "1").click()
    assert browser.current_url == page(sweep / "1").as_uri()
    assert "phase_sync in layer 1" in text_of(browser, "subtitle")
    assert "phase_sync has no attention map" in text_of(browser, "attention-note")
    assert [entry["message"] for entry in browser.get_log("browser")] == []


@pytest.fixture(scope="module")
def leaderboard(tmp_path_factory: Any) -> Path:
    """The page of two tasks and a picture; torus is best, its off control worst."""
    scores = {"softmax": BASE, "torus": shifted(0.1), "torus_off": BASE[::-1], "fsn": BASE}
    task = records("cycle_navigation", scores, first=11)
    scores |= {"softmax": [3.0, 3.1, 3.2], "torus": [2.0, 2.2, 2.1], "torus_off": [4.0, 4.1, 4.3]}
    scores |= {"fsn": [3.3, 3.2, 3.1]}
    folder = write(tmp_path_factory.mktemp("board"), task, records("shakespeare", scores))
    page = folder / "report.html"
    picture = folder / "scores.png"
    picture.write_bytes(base64.b64decode(PIXEL))
    found = board(read_records(folder))
    page.write_text(leaderboard_page(view(found, "tiny", [picture])), encoding="utf-8")
    return page


PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)


def test_the_page_of_a_leaderboard_names_no_other_file(leaderboard: Path) -> None:
    found = Reader(leaderboard.read_text(encoding="utf-8"))
    assert found.addresses == ["data:,"] and len(set(found.ids)) == len(found.ids)
    assert [c["key"] for c in json.loads(found.data)["columns"]] == [
        "cycle_navigation",
        "shakespeare",
    ]


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_leaderboard_is_sorted_by_a_click(leaderboard: Path, browser: Any, width: int) -> None:
    from selenium.webdriver.common.by import By

    look(browser, leaderboard, width)

    def arms() -> list[str]:
        cells = browser.find_elements(By.CSS_SELECTOR, "#table tbody td:first-child")
        return [cell.text for cell in cells]

    assert arms() == ["softmax + RoPE", "torus", "fsn"]
    for click, first in ((1, "torus"), (1, "softmax + RoPE"), (0, "fsn")):
        browser.find_elements(By.CSS_SELECTOR, "#table .sort")[click].click()
        assert arms()[0] == first
    browser.find_element(By.ID, "offs").click()
    assert "torus without its step" in arms()
    assert "0.604" in text_of(browser, "cells")
    put(browser, "task", "Shakespeare: screening")
    assert "0.604" not in text_of(browser, "cells") and "candidate" in text_of(browser, "cells")
    assert browser.find_element(By.CSS_SELECTOR, "#scores img").get_property("naturalWidth") == 1
    assert [entry["message"] for entry in browser.get_log("browser")] == []
