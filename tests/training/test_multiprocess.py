"""Several processes train what one process trains; the first one alone writes, and all resume."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch

import phasegpt
from phasegpt.core.errors import Collapsed, ConfigError, Interrupted
from phasegpt.model import checkpoint
from phasegpt.training import multiprocess
from phasegpt.training.lit import LitGPT
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics, read_phases, read_record

TINY = [
    *("attention.layers=[1]", "attention.num_oscillators=8"),
    *("attention.noise_sigma=0.3", "attention.frequency_jitter=0.3"),
    *("regularizer=ceiling", "regularizer.schedule=adaptive", "regularizer.target=0.2"),
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16"),
    *("model.dropout=0.0", "data=text", "data.batch_size=6", "trainer=cpu"),
    *("trainer.max_steps=5", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"),
    *("callbacks.phase_monitor.every_n_steps=1", "callbacks.sample_text.max_new_tokens=5"),
    *("callbacks.collapse_guard.action=report", "trainer.precision=64-true"),
]
TWO = ["trainer.devices=2", "data.batch_size=3"]


def run(folder: Path, text: list[str], *extra: str) -> dict:
    return fit(phasegpt.compose([*TINY, *text, *extra]), folder)


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """The other ranks are forked, see processes; the commands that they run are the same."""
    with pytest.MonkeyPatch.context() as patch:
        start = SimpleNamespace(Popen=processes.Forked, PIPE=subprocess.PIPE)
        patch.setattr(multiprocess, "subprocess", start)
        yield


@pytest.fixture(scope="module")
def one(tmp_path_factory, text) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run(folder, text)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory, text) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocess, "subprocess", subprocess)  # started afresh, as a user's are
        run(folder, text, *TWO)
    return folder


def test_two_processes_log_what_one_logs_at_the_same_global_batch(one, two):
    a, b = (read_metrics(folder / "metrics.csv") for folder in (one, two))
    assert [row["step"] for row in b] == [1, 2, 3, 4, 5]
    for single, both in zip(a, b, strict=True):
        for row in (single, both):
            row.pop("perf/tokens_per_s")
        assert both == pytest.approx(single, abs=1e-6)
    assert {"train/loss", "val/loss", "reg/coherence", "reg/lambda", "phase/dR/layer1"} <= set(b[3])


def test_run_json_and_phases_are_those_of_one_process(one, two):
    a, b = read_record(one), read_record(two)
    assert b["status"] == "ok" and b["step"] == 5 and a["tokens"] == b["tokens"]
    assert a["best"] == pytest.approx(b["best"], abs=1e-6)
    assert a["config_hash"] != b["config_hash"]
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    left, right = read_phases(one), read_phases(two)
    assert left["step"].tolist() == right["step"].tolist() == [2, 4, 5]


def test_two_processes_train_a_coupling_that_all_layers_share(tmp_path, text):
    """Its weights are used twice in a step, and computed again in the backward pass."""
    own = ("attention.layers", "attention.num", "attention.noise", "attention.freq")
    words = [word for word in TINY if not word.startswith((*own, "regularizer."))]
    words += ["attention=kope", "attention.layers=all", "model.n_layer=3", "trainer.max_steps=2"]
    words += ["model.activation_checkpointing=true", "attention.learn_coupling=true"]
    for name, more in (("one", []), ("two", TWO)):
        fit(phasegpt.compose([*words, *text, *more]), tmp_path / name)
    a, b = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert [row["train/loss"] for row in b] == pytest.approx([row["train/loss"] for row in a])
    a, b = (checkpoint.read(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("one", "two"))
    assert any("link" in name for name in a["state_dict"])
    torch.testing.assert_close(b["state_dict"], a["state_dict"])


def test_two_processes_resume_with_dropout_to_the_same_bytes(tmp_path, text):
    words = [*TWO, "model.dropout=0.2", "trainer.precision=32-true"]
    run(tmp_path / "whole", text, *words)
    real = LitGPT.on_train_batch_end

    def stops(self, outputs, batch, batch_idx):
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, outputs, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "on_train_batch_end", stops)
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", text, *words)
    assert read_record(tmp_path / "cut")["status"] == "interrupted"
    assert read_record(tmp_path / "cut")["step"] == 2
    run(tmp_path / "cut", text, *words, "resume=true")
    a, b = (checkpoint.read(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("whole", "cut"))
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
    a, b = (read_metrics(tmp_path / n / "metrics.csv") for n in ("whole", "cut"))
    assert [row["train/loss"] for row in a] == [row["train/loss"] for row in b]


@pytest.fixture
def begun(monkeypatch) -> list:
    """The processes of other ranks, as they are started."""
    found = []
    popen = multiprocess.subprocess.Popen

    def remembers(*words, **more):
        process = popen(*words, **more)
        if "phasegpt.training.multiprocess" in words[0]:
            found.append(process)
        return process

    monkeypatch.setattr(multiprocess.subprocess, "Popen", remembers)
    return found


def test_a_collapse_ends_all_processes_and_leaves_none_behind(tmp_path, text, begun):
    with pytest.raises(Collapsed):
        diverges = ["optimizer.lr=1000", "optimizer.weight_decay=1000", "trainer.precision=32-true"]
        run(tmp_path, text, *TWO, *diverges, "trainer.max_steps=50")
    assert read_record(tmp_path)["status"] == "collapsed"
    assert not torch.distributed.is_initialized()
    (other,) = begun
    assert other.returncode is not None


def test_a_rank_that_fails_before_it_is_ready_fails_the_run(tmp_path, text, monkeypatch):
    real = multiprocess.json.dump
    monkeypatch.setattr(
        multiprocess.json, "dump", lambda task, file: real({**task, "folder": 0}, file)
    )
    with pytest.raises(RuntimeError, match="rank 1 failed with status 1"):
        run(tmp_path, text, *TWO)
    assert read_record(tmp_path)["status"] == "failed"


def test_a_rank_that_is_killed_while_it_trains_fails_the_run(tmp_path, text, monkeypatch, begun):
    def kills(self, batch, batch_idx):
        begun[0].kill()

    monkeypatch.setattr(LitGPT, "on_train_batch_start", kills, raising=False)
    with pytest.raises(RuntimeError, match=r"(?i)connection|peer"):
        run(tmp_path, text, *TWO)
    assert read_record(tmp_path)["status"] == "failed"


def test_a_single_process_keeps_the_hash_it_had_before_there_was_a_choice():
    cfg = phasegpt.training.config.plain(phasegpt.compose())
    assert cfg["trainer"].pop("devices") == 1
    parsed = phasegpt.training.config.RunConfig.parse(cfg)
    assert "devices" in parsed.to_dict()["trainer"]
    with pytest.raises(ConfigError, match=r"trainer.devices=0"):
        phasegpt.training.config.RunConfig.parse(
            {**cfg, "trainer": {**cfg["trainer"], "devices": 0}}
        )
