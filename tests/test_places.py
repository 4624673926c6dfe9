"""What a command is given to write to or read from, and may not: one line, before the work."""

import os
from pathlib import Path
from typing import Any

import pytest
from helpers import TWO_STEPS, command

import phasegpt
from phasegpt.cli import guarded, literal
from phasegpt.core.composition import check_run_dir, compose
from phasegpt.core.errors import CheckpointError, ConfigError, DataError
from phasegpt.model import checkpoint
from phasegpt.training.run_folder import read_record

PLACES = ("resume", "hydra.run.dir")


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, os.strerror(13), "/secret/best.ckpt")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("FILE", "Not a directory"),
        ("FILE/below", "Not a directory"),
        ("${nope}", "there is no nope"),
        ("null", "hydra.run.dir=null must be a folder"),
    ],
)
def test_a_run_folder_that_cannot_be_is_told_before_hydra_makes_it(
    place: str, says: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "file").write_text("x")
    word = f"hydra.run.dir={place.replace('FILE', str(tmp_path / 'file'))}"
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "train", *TWO_STEPS, word)
    assert end.value.code == ConfigError.exit_code
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1


def test_where_runs_cannot_be_made_is_told_too(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    check_run_dir(["seed=1"])
    (tmp_path / "runs").write_text("x")
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir: cannot write"):
        check_run_dir(["seed=1"])
    check_run_dir(["seed=1", "--cfg", "job"])  # which makes none
    check_run_dir(["seed=1", f"hydra.run.dir={tmp_path}/other/${{name}}"])
    assert sorted(os.listdir(tmp_path)) == ["runs"]


@pytest.mark.parametrize("place", ["/a=b", "/a#b", "/a b", "[a]", "a,b", "x\\y"])
def test_a_path_means_itself_whatever_is_in_its_name(place: str) -> None:
    words = literal([f"resume={place}", f"init_from={place}"], paths=("resume", "init_from"))
    cfg = compose(words)
    assert cfg.resume == cfg.init_from == place


def test_what_is_no_path_keeps_hydras_meaning() -> None:
    words = ["resume=true", "resume=false", "resume='a=b'", "resume=", "hydra.run.dir=${name}"]
    assert literal(words, paths=PLACES) == words
    assert compose(literal(["resume=true"], paths=PLACES)).resume is True


def test_a_place_that_the_machine_refuses_is_one_line(capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        guarded(refuse)
    assert end.value.code == 2
    line = "PermissionError: Permission denied: /secret/best.ckpt; mend its rights, or choose "
    assert capsys.readouterr().err == f"{line}another place\n"
    with pytest.raises(OSError, match="no name"):  # a fault of ours, not of a place
        guarded(lambda: (_ for _ in ()).throw(OSError("no name")))


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(checkpoint, "best", refuse)
    with pytest.raises(DataError, match=f"cannot read {tmp_path}: Permission denied"):
        phasegpt.load(tmp_path)
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*run\.json: Permission denied"):
        read_record(tmp_path)
