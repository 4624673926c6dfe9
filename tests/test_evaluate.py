"""The evaluate command is deterministic, says what it did, and answers bad input shortly."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import TEXT, command, make_run, text_data

from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.data.config import DataConfig
from phasegpt.data.corpus import Corpus, prepare
from phasegpt.data.synthetic import EVAL_CHARACTERS
from phasegpt.evaluate import EvaluateConfig, evaluate, table
from phasegpt.model import checkpoint
from phasegpt.model.scoring import score


@pytest.fixture(scope="module")
def corpus(run: Path) -> Corpus:
    loaded = checkpoint.load_run(run)
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
    model = checkpoint.load(best)
    expected = score(model, corpus, "val", context=16, stride=4, batch_size=16)
    assert result == {
        "checkpoint": os.path.relpath(best),
        "sha256": checkpoint.load_run(best).sha256,
        "leaky": False,
        "corpus": "text",
        "data_fingerprint": corpus.fingerprint,
        "split": "val",
        "unit": "character",
        "context": 16,
        "stride": 4,
        "batch_size": 16,
        "device": "cpu",
        "tokens_scored": len(corpus.split("val")) - 1,
        "bytes_scored": len(corpus.split("val")) - 1,
        "words": expected.words,
        "nats": expected.nats,
        "loss": expected.loss,
        "perplexity": expected.ppl,
        "bits_per_byte": expected.bits_per_byte,
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
    folder = checkpoint.export(run, tmp_path / "shared")
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
    run = make_run(tmp_path / "run", "attention=phase_sync", "attention.as_coded=true", *data)
    result = evaluate(EvaluateConfig(checkpoint=str(run), split="val"))
    assert result["leaky"] is True
    assert "LEAKY" in table(result)


def test_a_changed_text_is_not_scored_with_the_wrong_tokens(run: Path, tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(TEXT + "0123456789")
    settings = {"checkpoint": str(run), "split": "val"}
    moved = evaluate(EvaluateConfig(**settings, data_path=str(tmp_path / "same.txt")))
    assert moved == evaluate(EvaluateConfig(**settings))
    with pytest.raises(ConfigError, match="tokens that the model was trained with"):
        evaluate(EvaluateConfig(**settings, data_path=str(tmp_path / "other.txt")))


def test_an_exported_folder_without_a_record_is_refused_clearly(run: Path, tmp_path: Path) -> None:
    folder = checkpoint.export(run, tmp_path / "shared")
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
