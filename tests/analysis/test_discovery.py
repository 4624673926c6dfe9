"""A page of results/discovery_* is what its script makes of the committed records."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT, script

from phasegpt.analysis.discovery import runs, told

FOLDERS = sorted((ROOT / "results").glob("discovery_*"))
every_page = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


def page(folder: Path) -> ModuleType:
    path = ROOT / "scripts" / f"page_{folder.name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@every_page
def test_the_page_is_that_of_the_records(folder: Path) -> None:
    assert (folder / "README.md").read_text(encoding="utf-8") == page(folder).text(folder)


@every_page
def test_every_arm_has_a_name_and_the_command_makes_it(folder: Path) -> None:
    made = page(folder)
    arms = runs(folder / "arms", made.TASK)
    assert made.MORE.keys() <= arms.keys() <= made.ARMS.keys()
    assert all(name in made.command() for name in made.MORE)


def test_a_difference_has_its_exact_p_from_five_pairs_on() -> None:
    mine, theirs = dict(enumerate([0.9, 0.8, 0.7, 0.9, 0.8])), dict.fromkeys(range(5), 0.1)
    assert told(mine, theirs) == ("+0.720 [+0.616, +0.824]", "0.062")
    assert told(theirs, mine)[1] == "0.062"  # of 32 sign patterns the one and its opposite
    assert told({0: 0.9, 1: 0.8}, theirs) == ("+0.750", "")


@pytest.mark.parametrize("name", ["intervene_on_task.py", "copy_freely.py"])
def test_a_run_of_a_text_is_refused(
    name: str, run: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as ended:
        script(monkeypatch, name, run, "--out", tmp_path / "x.json")
    assert ended.value.code == 2 and str(run) in capsys.readouterr().err
