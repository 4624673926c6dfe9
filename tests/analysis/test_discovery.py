"""The page of results/discovery_fsn is what its script makes of the committed records."""

import importlib.util
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT, script

FOLDER = ROOT / "results" / "discovery_fsn"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    path = ROOT / "scripts" / "page_discovery_fsn.py"
    spec = importlib.util.spec_from_file_location("page_discovery_fsn", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_records(page: ModuleType) -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == page.text(FOLDER)


def test_every_arm_has_a_name_and_the_command_makes_it(page: ModuleType) -> None:
    arms = page.runs(FOLDER / "arms")
    assert page.MORE.keys() <= arms.keys() <= page.ARMS.keys()
    assert all(name in page.command() for name in page.MORE)


def test_a_difference_has_its_exact_p_from_five_pairs_on(page: ModuleType) -> None:
    mine, theirs = dict(enumerate([0.9, 0.8, 0.7, 0.9, 0.8])), dict.fromkeys(range(5), 0.1)
    assert page.told(mine, theirs) == ("+0.720 [+0.616, +0.824]", "0.062")
    assert page.told(theirs, mine)[1] == "0.062"  # of 32 sign patterns the one and its opposite
    assert page.told({0: 0.9, 1: 0.8}, theirs) == ("+0.750", "")


@pytest.mark.parametrize("name", ["intervene_on_task.py", "copy_freely.py"])
def test_a_run_of_a_text_is_refused(
    name: str, run: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as ended:
        script(monkeypatch, name, run, "--out", tmp_path / "x.json")
    assert ended.value.code == 2 and str(run) in capsys.readouterr().err
