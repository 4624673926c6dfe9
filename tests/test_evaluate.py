"""The evaluate command is deterministic, says what it did, and answers bad input shortly."""

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import TEXT, command, make_run, text_data

from phasegpt.cli import training_corpus
from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import write_json
from phasegpt.data.config import DataConfig
from phasegpt.data.corpus import Corpus, prepare
from phasegpt.data.synthetic import EVAL_CHARACTERS
from phasegpt.evaluate import EvaluateConfig, evaluate, not_in_the_way, table
from phasegpt.model import checkpoint, loading
from phasegpt.model.scoring import score


@pytest.fixture(scope="module")
def corpus(run: Path) -> Corpus:
    loaded = loading.load_run(run)
    assert loaded.config is not None
    return prepare(DataConfig.parse(loaded.config["data"]))


def test_the_same_command_writes_the_same_bytes_beside_the_run(
    run: Path, monkeypatch: Any, capsys: Any
) -> None:
    arguments = [f"checkpoint={run}", "split=val"]
    command(monkeypatch, "evaluate", *arguments)
    first = (run / "evaluation-val.json").read_bytes()
    command(monkeypatch, "evaluate", *arguments)
    assert (run / "evaluation-val.json").read_bytes() == first
    out = capsys.readouterr().out
    assert "exp(loss), per character" in out
    assert "context 32, stride 32" in out
    assert f"written to {os.path.relpath(run / 'evaluation-val.json')}" in out


def test_the_json_says_what_was_measured_and_how(run: Path, corpus: Corpus) -> None:
    options: dict[str, Any] = {"split": "val", "context": 16, "stride": 4, "device": "cpu"}
    settings = EvaluateConfig(checkpoint=str(run), **options)
    result = evaluate(settings)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    best = run / "checkpoints" / "step-00000010.ckpt"
    model = loading.load(best)
    expected = score(model, corpus, "val", context=16, stride=4, batch_size=16)
    assert result == {
        "checkpoint": os.path.relpath(best),
        "sha256": loading.load_run(best).sha256,
        "leaky": False,
        "corpus": "text",
        "data_fingerprint": corpus.fingerprint,
        "training_text": None,
        "split": "val",
        "unit": "character",
        "context": 16,
        "stride": 4,
        "batch_size": 16,
        "device": "cpu",
        "tokens_scored": len(corpus.split("val")) - 1,
        "bytes_scored": len(corpus.split("val")) - 1,
        "words": expected.words,
        "finite": True,
        "nats": expected.nats,
        "loss": expected.loss,
        "perplexity": expected.ppl,
        "bits_per_byte": expected.bits_per_byte,
        "bits_per_byte_from_64": None,  # of a context of 16
        "word_perplexity": expected.word_ppl,
        "floor": None,
    }


def test_last_best_a_file_and_an_exported_folder_can_be_evaluated(
    run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def loss(target: Path, which: Any = "best") -> float:
        return evaluate(EvaluateConfig(checkpoint=str(target), which=which, split="val"))["loss"]

    best, last = loss(run), loss(run, "last")
    assert best != last
    assert loss(run / "checkpoints" / "last.ckpt") == last
    folder = loading.export(run, tmp_path / "shared")
    assert loss(folder) == best
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, "evaluate", f"checkpoint={folder}", "split=val")
    assert json.loads((tmp_path / "evaluation-val.json").read_text())["checkpoint"] == "shared"


def test_the_embedded_corpus_is_reported_with_its_floor(
    tmp_path: Path, tmp_path_factory: Any
) -> None:
    cache = tmp_path_factory.getbasetemp() / "synthetic-cache"
    data = ["data=synthetic", "data.characters=10000", f"data.cache_dir={cache}"]
    run = make_run(tmp_path / "run", *data, "model.n_layer=1", "attention.layers=[]")
    result = evaluate(EvaluateConfig(checkpoint=str(run), split="val", batch_size=64))
    assert result["tokens_scored"] + 1 >= EVAL_CHARACTERS["val"]
    floor = result["floor"]
    assert floor["loss"] == pytest.approx(floor["nats"] / result["tokens_scored"])
    assert 1 < floor["perplexity"] < result["perplexity"]
    assert result["nats"] > floor["nats"]


@pytest.mark.filterwarnings("ignore:.*sees the future")
def test_a_model_that_sees_the_future_is_marked(tmp_path: Path) -> None:
    data = text_data(tmp_path, TEXT)
    run = make_run(tmp_path / "run", "attention=as_coded", *data)
    result = evaluate(EvaluateConfig(checkpoint=str(run), split="val"))
    assert result["leaky"] is True
    assert "LEAKY" in table(result)


def test_a_changed_text_is_not_scored_with_the_wrong_tokens(run: Path, tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(TEXT + "0123456789")
    cache = str(tmp_path / "cache")
    settings = {"checkpoint": str(run), "split": "val", "cache_dir": cache}
    moved = evaluate(EvaluateConfig(**settings, data_path=str(tmp_path / "same.txt")))
    assert moved == evaluate(EvaluateConfig(**settings))
    rarest = min(set(TEXT), key=TEXT.count)
    (tmp_path / "fewer.txt").write_text(TEXT.replace(rarest, ""))
    fewer = evaluate(EvaluateConfig(**settings, data_path=str(tmp_path / "fewer.txt")))
    assert fewer["training_text"] is not True and 1 < fewer["perplexity"] < math.inf
    with pytest.raises(DataError, match=r"'0' .* is not among the .* of the training"):
        evaluate(EvaluateConfig(**settings, data_path=str(tmp_path / "other.txt")))


def with_record(run: Path, folder: Path, fingerprint: str) -> Path:
    """A copy of a run whose run.json says what its text was."""
    copied = shutil.copytree(run, folder, symlinks=True)
    (copied / "run.json").write_text(json.dumps({"data": {"fingerprint": fingerprint}}))
    return copied


def test_another_text_than_that_of_the_training_is_scored_only_by_name(
    run: Path, corpus: Corpus, tmp_path: Path
) -> None:
    same = with_record(run, tmp_path / "same", corpus.fingerprint)
    result = evaluate(EvaluateConfig(checkpoint=str(same), split="val"))
    assert result["training_text"] is True
    assert "OTHER TEXT" not in table(result)
    changed = with_record(run, tmp_path / "changed", "0" * 16)
    settings: dict[str, Any] = {"checkpoint": str(changed), "split": "val"}
    with pytest.raises(DataError, match=r"is not the one .*trained with.* data_path=FILE"):
        evaluate(EvaluateConfig(**settings))
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    settings |= {"data_path": str(tmp_path / "other.txt"), "cache_dir": str(tmp_path / "cache")}
    result = evaluate(EvaluateConfig(**settings))
    assert result["training_text"] is False
    assert "OTHER TEXT" in table(result)


def test_the_cache_that_a_checkpoint_names_is_read_and_never_written(
    run: Path, corpus: Corpus, tmp_path: Path, monkeypatch: Any
) -> None:
    loaded = loading.load_run(run)
    assert loaded.config is not None
    foreign = tmp_path / "foreign"
    config = {**loaded.config, "data": {**loaded.config["data"], "cache_dir": str(foreign)}}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    got = training_corpus(loaded._replace(config=config), None, None)
    assert got.fingerprint == corpus.fingerprint
    assert not foreign.exists()
    assert list((tmp_path / "own" / "phasegpt" / "tokens").glob("*/meta.json"))


def test_a_model_that_is_not_finite_is_said(run: Path, tmp_path: Path) -> None:
    content = checkpoint.read(run / "checkpoints" / "best.ckpt")
    content["state_dict"]["model.transformer.wte.weight"][0, 0] = float("nan")
    checkpoint.save(content, tmp_path / "step-00000001.ckpt")
    result = evaluate(EvaluateConfig(checkpoint=str(tmp_path / "step-00000001.ckpt"), split="val"))
    assert result["finite"] is False and result["loss"] is None
    assert "NOT FINITE" in table(result)


def test_an_output_that_cannot_be_written_is_told_before_the_work(
    run: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(loading, "load_run", None)  # the work would fail
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "evaluate", f"checkpoint={run}", "split=val", "output=/proc/x.json")
    assert end.value.code == 2
    assert "output: cannot write '/proc/x.json'" in capsys.readouterr().err


def test_a_result_whose_file_cannot_be_written_after_all_is_shown(
    run: Path, monkeypatch: Any, capsys: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "evaluate", f"checkpoint={run}", "split=val")
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert "exp(loss), per character" in out
    assert "No space left on device; make room" in err and "evaluation-val.json" in err


@pytest.mark.parametrize("split", ["../../x", "a/b", "n" * 300])
def test_a_split_is_no_path(run: Path, monkeypatch: Any, capsys: Any, split: str) -> None:
    with pytest.raises(SystemExit):
        command(monkeypatch, "evaluate", f"checkpoint={run}", f"split={split}")
    assert "split=" in capsys.readouterr().err


def test_an_exported_folder_without_a_record_is_refused_clearly(run: Path, tmp_path: Path) -> None:
    folder = loading.export(run, tmp_path / "shared")
    (folder / "run.json").unlink()
    sums = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(s for s in sums if "run.json" not in s))
    with pytest.raises(CheckpointError, match=r"has no run\.json"):
        evaluate(EvaluateConfig(checkpoint=str(folder), split="val"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "checkpoint is not set"),
        (["checkpoint=RUN", "split=test"], "choose from: train, val"),
        (["checkpoint=RUN", "split=val", "context=33"], "context=33"),
        (["checkpoint=RUN", "split=val", "stride=33"], "stride=33"),
        (["checkpoint=RUN", "batch_size=0"], "batch_size=0"),
        (["checkpoint=RUN", "which=first"], "best, last"),
        (["checkpoint=nowhere"], "nowhere does not exist"),
        (["checkpoint=RUN", "splt=val"], "splt"),
        (["checkpoint=RUN", "split=val", "output=/dev/null/x.json"], "cannot write"),
    ],
)
def test_bad_input_gives_a_short_message_and_a_failure(
    run: Path, monkeypatch: Any, capsys: Any, arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "evaluate", *(a.replace("RUN", str(run)) for a in arguments))
    assert end.value.code not in (0, None)
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) <= 20
    assert "Traceback" not in err


def test_a_failed_job_fails_its_multirun_after_the_other_jobs(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        words = ["-m", f"checkpoint={run}", "split=nowhere,val", "output=a.json"]
        command(monkeypatch, "evaluate", *words)
    assert end.value.code not in (0, None)
    assert json.loads((tmp_path / "a.json").read_text())["split"] == "val"
    err = capsys.readouterr().err
    assert "split=nowhere does not exist" in err
    assert len(err.splitlines()) <= 20
    assert "Traceback" not in err


def test_paths_are_taken_to_the_letter(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    odd = tmp_path / "lr=0.1,seed=2 (a) $x"
    shutil.copytree(run, odd, symlinks=True)
    words = ["split=val", f"output={tmp_path}/it's={{a}},b.json"]
    command(monkeypatch, "evaluate", f"checkpoint={odd}", *words)
    assert (tmp_path / "it's={a},b.json").is_file()


def test_another_measurement_does_not_take_the_place_of_the_first(
    run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    words = [f"checkpoint={tmp_path / 'run'}", "split=val"]
    for more in ([], ["stride=16"], [], ["stride=8"], ["stride=16"]):
        command(monkeypatch, "evaluate", *words, *more)
    found = {p.name: json.loads(p.read_text()) for p in (tmp_path / "run").glob("evaluation-*")}
    strides = {name: result["stride"] for name, result in found.items()}
    assert strides == {"evaluation-val.json": 32, "evaluation-val-2.json": 16,
                       "evaluation-val-3.json": 8}  # fmt: skip


def test_a_result_of_lm_eval_is_found_again(tmp_path: Path) -> None:
    path, result = tmp_path / "evaluation-tasks.json", {"sha256": "0", "tasks": ["a", "b"]}
    write_json(path, result)
    assert not_in_the_way(path, result) == path
    other = not_in_the_way(path, {**result, "tasks": ["a"]})
    assert other.name == "evaluation-tasks-2.json"


def test_a_terminal_that_lacks_letters_loses_no_result(
    run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(run, tmp_path / "Ж", symlinks=True)
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        monkeypatch.setattr("sys.stdout", out)
        command(monkeypatch, "evaluate", f"checkpoint={tmp_path / 'Ж'}", "split=val")
    assert (tmp_path / "Ж" / "evaluation-val.json").is_file()
    assert r"\u0416" in (tmp_path / "out").read_text()
