"""The interpret command: its files, what they say, and its answers to bad input."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TEXT, command, make_run, run_config, text_data

from phasegpt.core.errors import CheckpointError, ConfigError, DataError, OutputError
from phasegpt.data.config import DataConfig
from phasegpt.data.corpus import prepare
from phasegpt.interpret import InterpretConfig, interpret, runs_of, table
from phasegpt.interpretation.synchronization import measure
from phasegpt.interpretation.views import view
from phasegpt.model import checkpoint, loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("interpret")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run with a record and metrics, as training leaves them."""
    overrides = ["attention.coupling=2", *text_data(folder, TEXT)]
    made = make_run(folder / "run", *overrides)
    config = run_config(*overrides).to_dict()
    record = {"config": config, "status": "ok", "best": {"val/ppl": 5.0}, "seed": 42}
    (made / "run.json").write_text(json.dumps(record))
    lines = ["step,train/loss,val/loss,phase/R/layer1,phase/R/mean", "1,3.0,,0.3,0.3"]
    (made / "metrics.csv").write_text("\n".join([*lines, "10,2.5,2.6,0.4,0.4", ""]))
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_the_same_command_writes_the_same_bytes_beside_the_run(
    run: Path, monkeypatch: Any, capsys: Any
) -> None:
    arguments = [f"checkpoint={run}", "split=validation", "tokens=64", "context=16"]
    command(monkeypatch, "interpret", *arguments)
    first = content(run / "interpretation")
    pictures = {f"figures/layer1-{p}" for p in ("order", "portraits", "plv", "attention")}
    assert set(first) == {
        *("report.html", "statistics.json"),
        *(p + kind for p in pictures for kind in (".png", ".svg")),
    }
    shutil.rmtree(run / "interpretation")
    command(monkeypatch, "interpret", *arguments)
    assert content(run / "interpretation") == first
    out = capsys.readouterr().out
    assert "3 x 16 tokens of split val of text" in out
    assert "layer 1 (kuramoto): " in out
    assert "K x 0.5" in out
    assert "report.html" in out


def test_the_json_says_what_was_measured_and_how(run: Path, tmp_path: Path) -> None:
    settings = InterpretConfig(
        checkpoint=str(run), tokens=64, context=16, figures=False, output=str(tmp_path / "out")
    )
    result = interpret(settings)
    written = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert written == {k: v for k, v in result.items() if k not in ("output", "figures")}
    assert set(written) == {
        *("checkpoint", "sha256", "source", "training_text", "unit"),
        *("sequences", "context", "tokens"),
        *("loss", "status", "layers", "interventions"),
    }
    assert (written["sequences"], written["context"], written["unit"]) == (3, 16, "character")
    assert written["checkpoint"] == os.path.relpath(run / "checkpoints" / "step-00000010.ckpt")
    (layer,) = written["layers"]
    common = {"R", "R_uncoupled", "dR", "ppc", "status", "reason"}
    assert set(layer) == common | {
        *("layer", "attention", "mechanism", "oscillators", "steps", "dt", "R_is_over"),
        *("from_token", "rule", "null", "heads"),
    }
    assert len(layer["heads"]) == 2
    assert set(layer["heads"][0]) == common | {
        *("head", "participation", "offsets", "coupling", "budget"),
        *("plv_clusters", "plv_effective", "R_over_steps", "R_over_steps_uncoupled"),
        *("daido", "daido_uncoupled", "loss_correlation", "attention"),
    }
    assert layer["status"] in ("healthy", "over-synchronized", "under-synchronized")
    assert [effect["name"] for effect in written["interventions"]] == [
        *("K x 0", "K x 0.5", "K x 1", "K x 2"),
        *("scrambled across tokens", "scrambled across oscillators"),
        *("S = 0", "S = 5", "S = 10", "S = 20", "coherence not read out"),
    ]
    for effect in written["interventions"]:
        assert set(effect) == {"name", "kind", "value", "loss", "change"}
        assert set(effect["change"]) == {"mean", "low", "high", "n", "per"}
        assert effect["change"]["n"] == 3
    assert table(result).count("\n") > 10


def test_a_text_of_ones_own_is_one_sequence_or_windows_of_it(run: Path, tmp_path: Path) -> None:
    def measured(text: str, **words: Any) -> dict[str, Any]:
        settings = InterpretConfig(
            checkpoint=str(run),
            text=text,
            figures=False,
            interventions=False,
            output=str(tmp_path),
            **words,
        )
        return interpret(settings)

    short = measured("Shall I compare")
    assert (short["sequences"], short["context"]) == (1, 14)
    assert short["layers"][0]["dR"]["per"] == "token"
    assert "interventions" not in short
    long = measured(TEXT[:80])
    assert (long["sequences"], long["context"]) == (2, 32)
    windows = measured(TEXT[:80], context=10)
    assert (windows["sequences"], windows["context"]) == (7, 10)
    pairs = measured("Sh")  # one token and its target: shorter than any prefix that counts
    assert (pairs["sequences"], pairs["context"]) == (1, 1)
    assert pairs["layers"][0]["R"]["mean"] > 0


def test_an_exported_folder_needs_no_record_for_a_text(
    run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    exported = loading.export(run, tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    settings = {"checkpoint": "exported", "figures": False, "interventions": False}
    result = interpret(InterpretConfig(**settings, text="Shall I compare"))
    assert result["output"] == "interpretation"
    assert (tmp_path / "interpretation" / "report.html").is_file()
    (exported / "run.json").unlink()
    sums = (exported / "SHA256SUMS").read_text().splitlines(keepends=True)
    (exported / "SHA256SUMS").write_text("".join(s for s in sums if "run.json" not in s))
    interpret(InterpretConfig(**settings, text="Shall I compare"))
    with pytest.raises(CheckpointError, match=r"has no run\.json"):
        interpret(InterpretConfig(**settings, split="val"))


def test_a_sweep_has_its_own_page_with_baselines_and_what_failed(
    run: Path, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copytree(run, tmp_path / "10", symlinks=True, ignore=lambda *_: ["interpretation"])
    data = text_data(folder, TEXT)
    make_run(tmp_path / "2", "attention.layers=[]", *data)
    make_run(tmp_path / "x", *data)
    for file in (tmp_path / "x" / "checkpoints").glob("*.sha256"):
        file.unlink()
    assert [path.name for path in runs_of(tmp_path)] == ["2", "10", "x"]
    assert runs_of(run) == []
    settings = {"tokens": 32, "context": 16, "interventions": False, "figures": False}
    result = interpret(InterpretConfig(checkpoint=str(tmp_path), **settings))
    runs = result["runs"]
    assert list(runs) == ["2", "10", "x"]
    assert runs["2"]["reason"] == "no oscillators"
    assert runs["2"]["loss"]["n"] == 2
    assert len(runs["10"]["layers"]) == 1
    assert "sha256" in runs["x"]["reason"]
    assert (tmp_path / "10" / "interpretation" / "report.html").is_file()
    assert {p.name for p in (tmp_path / "interpretation").iterdir()} == {
        *("report.html", "statistics.json"),
    }
    assert "2: no oscillators" in table(result)
    shutil.rmtree(tmp_path / "10")
    shutil.rmtree(tmp_path / "2")
    with pytest.raises(CheckpointError, match="sha256"):
        interpret(InterpretConfig(checkpoint=str(tmp_path), **settings))


def test_the_view_shows_the_first_sequence(run: Path) -> None:
    loaded = loading.load_run(run)
    assert loaded.config is not None
    tokens = torch.from_numpy(
        prepare(DataConfig.parse(loaded.config["data"])).split("train")[:51].astype("int64")
    )
    measured = measure(loaded.model, tokens[:34].view(2, 17), effects=False)
    shown = view(measured, loaded.tokenizer)
    assert "".join(shown["tokens"]) == TEXT[:17]
    assert len(shown["loss"]) == 16
    (layer,) = shown["layers"]
    assert layer["theta"]["shape"] == [11, 16, 2, 4]
    assert layer["R"]["shape"] == [11, 16, 2]
    assert layer["attention"]["shape"] == [2, 16, 16]
    json.dumps(shown, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "checkpoint is not set"),
        (["checkpoint=nowhere"], "nowhere does not exist"),
        (["checkpoint=RUN", "text=Shall", "split=val"], "text and split are both set"),
        (["checkpoint=RUN", "split=test"], "choose from: train, val"),
        (["checkpoint=RUN", "text=S"], "needs 2"),
        (["checkpoint=RUN", "text=0123"], "0"),
        (["checkpoint=RUN", "context=33"], "context=33"),
        (["checkpoint=RUN", "layers=[0]"], "layer 0 has no oscillators"),
        (["checkpoint=RUN", "tokens=0"], "tokens=0"),
        (["checkpoint=RUN", "tokns=5"], "tokns"),
        (["checkpoint=SOFTMAX"], "no oscillators"),
        (["checkpoint=RUN", "tokens=16", "output=/dev/null/x"], "cannot write"),
    ],
)
def test_bad_input_gives_a_short_message_and_a_failure(
    run: Path, folder: Path, monkeypatch: Any, capsys: Any, arguments: list[str], says: str
) -> None:
    softmax = folder / "softmax"
    if not softmax.exists():
        make_run(softmax, "attention.layers=[]", *text_data(folder, TEXT))
    names = {"RUN": str(run), "SOFTMAX": str(softmax)}
    for name, path in names.items():
        arguments = [a.replace(name, path) for a in arguments]
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "interpret", *arguments)
    assert end.value.code not in (0, None)
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) <= 20
    assert "Traceback" not in err


def test_the_text_that_was_looked_at_is_named_where_it_is_another(
    run: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(run, tmp_path / "changed", symlinks=True)
    record = json.loads((changed / "run.json").read_text())
    record["data"] = {"fingerprint": "0" * 16}
    (changed / "run.json").write_text(json.dumps(record))
    settings: dict[str, Any] = {"checkpoint": str(changed), "tokens": 64, "context": 16}
    settings |= {"figures": False, "interventions": False}
    with pytest.raises(DataError, match="is not the one that the model was trained with"):
        interpret(InterpretConfig(**settings))
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    settings |= {"data_path": str(tmp_path / "other.txt"), "cache_dir": str(tmp_path / "cache")}
    result = interpret(InterpretConfig(**settings))
    assert result["training_text"] is False
    assert "OTHER TEXT" in table(result)


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("phasegpt.interpretation.synchronization.measure", None)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output: cannot write .*statistics\.json"):
        interpret(InterpretConfig(checkpoint=str(run), tokens=64, output=str(tmp_path / "file")))


def test_a_result_whose_files_cannot_be_written_after_all_is_shown(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    settings: dict[str, Any] = {"tokens": 64, "context": 16, "interventions": False}
    with pytest.raises(OutputError, match="No space left on device"):
        interpret(InterpretConfig(checkpoint=str(run), output=str(tmp_path / "out"), **settings))
    assert "R over the" in capsys.readouterr().out


def test_a_model_that_is_not_finite_is_refused(run: Path, tmp_path: Path) -> None:
    content = checkpoint.read(run / "checkpoints" / "best.ckpt")
    content["state_dict"]["model.transformer.wte.weight"][0, 0] = float("nan")
    checkpoint.save(content, tmp_path / "step-00000001.ckpt")
    path = str(tmp_path / "step-00000001.ckpt")
    for vocabulary in (False, True):
        with pytest.raises(CheckpointError, match="is not finite"):
            interpret(InterpretConfig(checkpoint=path, tokens=64, vocabulary=vocabulary))
