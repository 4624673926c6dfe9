"""What a run records and reads: names, secrets, metrics, phases, the bytes of what was scored."""

import contextlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from helpers import TWO_STEPS, command

from phasegpt.core.composition import compose
from phasegpt.core.errors import CheckpointError, ConfigError, DataError
from phasegpt.data.corpus import prepare
from phasegpt.model import checkpoint, loading
from phasegpt.training.config import run_config
from phasegpt.training.datamodule import DataModule
from phasegpt.training.lit import LitGPT
from phasegpt.training.metrics_csv import MetricsCSV
from phasegpt.training.run import fit
from phasegpt.training.run_folder import provenance, read_metrics, read_phases, read_record


def test_a_task_is_validated_at_all_its_loads_where_none_are_named() -> None:
    run = run_config(compose(["data=copying_small", "model=nano", "model.block_size=258"]))
    data = DataModule(prepare(run.data), run.data, block_size=258, seed=1, total_batches=2)
    assert {int(batch["load"]) for batch in data.val_dataloader()} == {8, 16, 32, 64, 96, 128}


def test_bits_per_byte_divides_by_the_bytes_of_what_was_scored(text: list[str]) -> None:
    run = run_config(compose([*TWO_STEPS, *text, "data.tokenizer=byte"]))
    corpus = prepare(run.data)
    lit = LitGPT(run.to_dict(), corpus.tokenizer.state(), corpus.tokenizer.vocab_size)
    data = DataModule(corpus, run.data, block_size=16, seed=1, total_batches=2)
    found = []
    for limit in (2, 1.0):
        trainer = pl.Trainer(
            accelerator="cpu",
            limit_val_batches=limit,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.validate(lit, datamodule=data, verbose=False)
        found.append(lit.validation)
        # A token is a byte here, so the two measures are one.
        assert lit.validation["val/bpb"] == pytest.approx(lit.validation["val/loss"] / math.log(2))
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["../../evil", "a/b", "n" * 300, ".x"])
def test_a_run_cannot_be_named_out_of_its_folder(
    name: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    with pytest.raises(ConfigError, match="names no folder"):
        compose([*TWO_STEPS, f"name={name}"])
    plain = run_config(compose(TWO_STEPS)).to_dict()
    with pytest.raises(ConfigError, match="names no folder"):
        fit({**plain, "name": name}, tmp_path / "run")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    with pytest.raises(SystemExit):
        command(monkeypatch, "train", *TWO_STEPS, f"name={name}")
    assert "names no folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]


def test_a_secret_given_as_an_override_is_not_recorded(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "hydra.job.env_set.WANDB_API_KEY=hunter2", "seed=1"])
    record = provenance(run_config(compose(TWO_STEPS)))
    assert "hunter2" not in repr(record)
    assert record["command"].endswith("WANDB_API_KEY=*** seed=1")


@pytest.mark.parametrize(
    "content",
    [
        b"step,train/loss\n1,caf\xe9\n",
        b"step,train/loss\n1,word\n",
        b"step,train/loss\n1,2,3\n",
        b"step,train/loss,train/lr\n1,5.5\n2,5.25,0.1\n",
        b"step,train/loss\nnan,2\n",
        b"step,train/loss\n,2\n",
        b"train/loss\n2\n",
        b"step,train/loss\n1,\0\n",
        b"\x1f\x8b\x08\n",
        b'step,train/loss\n"1\n' + b"x" * 200_000 + b"\n",
    ],
)
def test_a_broken_table_of_metrics_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.csv") as error:
        read_metrics(tmp_path / "metrics.csv")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "content", ['{"config": 3}', '{"status": []}', '{"data": "x"}', "[]", "3", "{", '{"step": "1"}']
)
def test_a_broken_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        read_record(tmp_path)


def test_a_full_disk_under_the_metrics_is_one_line(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full to write to")
    table = MetricsCSV(tmp_path / "metrics.csv")
    table.log_metrics({"a": 1.0}, step=1)
    table.write()
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    table.log_metrics({"a": 2.0}, step=2)
    with pytest.raises(OSError, match=r"metrics\.csv.*No space left on device; make room"):
        table.write()


def test_a_folder_that_is_not_there_has_no_phases_to_read(tmp_path) -> None:
    assert read_phases(tmp_path) == {}
    with pytest.raises(CheckpointError, match="nowhere does not exist; give the folder of a run"):
        read_phases(tmp_path / "nowhere")


def test_phases_that_are_not_whole_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "phase"
    folder.mkdir()
    np.savez_compressed(folder / "step-00000001.npz", **{"layer1/R_HS": np.zeros((2, 3))})
    whole = (folder / "step-00000001.npz").read_bytes()
    path = folder / "step-00000002.npz"
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    objects = (tmp_path / "objects.npy").read_bytes()
    for wrong in (whole[:50], b"", b"x" * 99, objects):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"step-00000002\.npz"):
            read_phases(tmp_path)
    for place in range(0, len(whole), 5):  # what a flip does not reach is as it was
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with contextlib.suppress(DataError):
            assert not read_phases(tmp_path)["layer1/R_HS"].any()
    np.savez_compressed(path, **{"layer1/R_HS": np.zeros((2, 4))})
    with pytest.raises(DataError, match="does not hold the arrays of step-00000001"):
        read_phases(tmp_path)
    path.rename(folder / "step-2 (copy).npz")
    assert read_phases(tmp_path)["step"].tolist() == [1]


def test_a_run_copied_without_links_goes_on(text: list[str], tmp_path: Path) -> None:
    words = [*TWO_STEPS, *text, "callbacks.checkpoint.every_n_train_steps=1"]
    record = fit(compose(words), tmp_path)
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "checkpoints" / name).unlink()
    assert loading.load_run(tmp_path, "last").path.name == "step-00000002.ckpt"
    assert record["data"]["fingerprint"] == loading.load_run(tmp_path).data_fingerprint
    broken = checkpoint.read(tmp_path / "checkpoints" / "step-00000002.ckpt")
    del broken["loops"]
    checkpoint.save(broken, tmp_path / "checkpoints" / "step-00000002.ckpt")
    (tmp_path / "run.json").write_text(
        (tmp_path / "run.json").read_text().replace('"status": "ok"', '"status": "failed"')
    )
    with pytest.raises(CheckpointError, match="its loops is missing or no dict"):
        fit(compose([*words, "resume=true"]), tmp_path)
