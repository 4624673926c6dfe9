"""Checkpoints are written beside training: a slow disk delays no step, a kill loses nothing."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers import NOISY, NOISY_STEPS, assert_identical, crash_at, outcome

import phasegpt
from phasegpt.core.errors import CheckpointError
from phasegpt.model import checkpoint
from phasegpt.training.checkpointing import Writer, copied
from phasegpt.training.lit import LitGPT
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_record


def config(*extra, text):
    return phasegpt.compose([*NOISY, *text, *extra])


def test_a_write_that_hangs_delays_no_step_and_the_next_save_waits(tmp_path, text, monkeypatch):
    """The first write ends when two more steps were trained: if they waited, it never would."""
    real_save, real_step = checkpoint.save, LitGPT.training_step
    went_on, waited = threading.Event(), []

    def slow(payload, path):
        if path.name == "step-00000003.ckpt":
            waited.append(went_on.wait(60))
        real_save(payload, path)

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            assert not (tmp_path / "checkpoints" / "step-00000003.ckpt").exists()
            went_on.set()
        return real_step(self, batch, batch_idx)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(LitGPT, "training_step", training_step)
    record = fit(config(text=text), tmp_path)
    assert waited == [True] and record["status"] == "ok"
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == NOISY_STEPS


def test_what_is_written_is_what_was_trained_when_the_save_was_due(tmp_path, text, monkeypatch):
    """Steps that are trained while a checkpoint is written do not reach into it."""
    real_save, real_step = checkpoint.save, LitGPT.training_step
    weights, released = {}, threading.Event()

    def late(payload, path):
        if path.name == "step-00000003.ckpt":
            assert released.wait(60)
        real_save(payload, path)

    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            weights.update({k: v.clone() for k, v in self.state_dict().items()})
        if batch_idx == 4:
            assert not torch.equal(self.model.lm_head.weight, weights["model.lm_head.weight"])
            released.set()
        return real_step(self, batch, batch_idx)

    monkeypatch.setattr(checkpoint, "save", late)
    monkeypatch.setattr(LitGPT, "training_step", training_step)
    real_remove = checkpoint.remove
    monkeypatch.setattr(
        checkpoint, "remove", lambda p: None if "00000003" in p.name else real_remove(p)
    )
    fit(config("trainer.val_check_interval=12", text=text), tmp_path)
    saved = checkpoint.read(tmp_path / "checkpoints" / "step-00000003.ckpt")["state_dict"]
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


KILLED_WHILE_WRITING = """
import os, signal, sys
from phasegpt.model import checkpoint
import phasegpt
from phasegpt.training.run import fit

real, when = os.replace, sys.argv[2]

def replace(source, target):
    if os.path.basename(target) == when:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    
os.replace = replace
fit(phasegpt.compose(sys.argv[3:]), sys.argv[1])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("whole")
    fit(config(text=text), folder)
    return folder


@pytest.mark.parametrize(
    "name", ["best.ckpt", pytest.param("step-00000008.ckpt", marks=pytest.mark.slow)]
)
def test_a_kill_inside_a_write_loses_nothing(tmp_path, text, whole, name):
    """best.ckpt is met first at step 4, before any checkpoint of that step is whole."""
    given = [sys.executable, "-c", KILLED_WHILE_WRITING, tmp_path, name, *NOISY, *text]
    done = subprocess.run(given, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_record(tmp_path)["status"] == "running"
    earlier = checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["global_step"]
    assert earlier == {"best.ckpt": 3}.get(name, 6)
    fit(config("resume=true", text=text), tmp_path)
    assert_identical(whole, tmp_path)
    best = [checkpoint.read(f / "checkpoints" / "best.ckpt") for f in (whole, tmp_path)]
    assert best[0]["global_step"] == best[1]["global_step"]
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))


def test_a_disk_that_is_full_ends_the_run_with_a_line_and_it_resumes(
    tmp_path, text, whole, monkeypatch
):
    real = os.fsync
    calls = []

    def full(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if "step-00000006" in calls[-1]:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*step-00000006.ckpt: No space"):
            fit(config(text=text), tmp_path)
    assert read_record(tmp_path)["status"] == "failed"
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))
    fit(config("resume=true", text=text), tmp_path)
    assert_identical(whole, tmp_path)


def test_the_best_checkpoint_has_no_optimizer_state_and_loads(whole):
    best = checkpoint.read(whole / "checkpoints" / "best.ckpt")
    assert "optimizer_states" not in best and "callbacks" not in best
    assert not (whole / "checkpoints" / "best.ckpt").is_symlink()
    model = phasegpt.load(whole)
    weight = best["state_dict"]["model.lm_head.weight"]
    assert torch.equal(model.lm_head.weight, weight)
    assert outcome(whole)[2]  # the newest step has it


def test_resume_from_weights_alone_is_refused(tmp_path, text):
    with crash_at(5):
        fit(config(text=text), tmp_path)
    best = tmp_path / "checkpoints" / "best.ckpt"
    with pytest.raises(CheckpointError, match="holds weights alone; resume from"):
        fit(config(f"resume={best}", text=text), tmp_path)


def test_a_copy_keeps_what_shares_memory_shared_and_is_not_changed_later():
    a = torch.arange(6.0)
    twin = copied({"a": a, "b": a[2:4], "c": [a.view(2, 3).T, ("x", 1)]})
    a.zero_()
    assert twin["b"].tolist() == [2, 3] and twin["c"][0][1].tolist() == [1, 4]
    assert twin["c"][1] == ("x", 1)
    twin["a"][2] = 7
    assert twin["b"][0] == 7 and twin["c"][0][2, 0] == 7


def test_an_error_of_the_writer_surfaces_once_at_the_next_call():
    def fails():
        raise CheckpointError("no space")

    writer = Writer()
    writer.start(fails)
    with pytest.raises(CheckpointError, match="no space"):
        writer.wait()
    writer.check()
    done = []
    writer.start(lambda: (time.sleep(0.01), done.append(1)))
    writer.start(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]
