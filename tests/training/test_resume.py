"""A run that was cut anywhere and resumed is bit-identical to one that was not."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import NOISY, NOISY_STEPS, assert_identical, crash_at, outcome
from processes import Forked, python, run

import phasegpt
from phasegpt.core.errors import CheckpointError
from phasegpt.training import run_folder
from phasegpt.training.lit import LitGPT
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_record

TRAIN = ("-m", "phasegpt.train")


def config(*extra, text):
    return phasegpt.compose([*NOISY, *text, *extra])


def command(folder, *extra, text):
    return python(*TRAIN, *NOISY, *text, f"hydra.run.dir={folder}", *extra)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    """Uninterrupted runs by (workers, accumulation), made once each."""
    made = {}

    def get(workers: int, accumulation: int) -> Path:
        key = (workers, accumulation)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            fit(config(*options(workers, accumulation), text=text), made[key])
        return made[key]

    return get


def options(workers: int, accumulation: int) -> list[str]:
    return [f"data.num_workers={workers}", f"trainer.accumulate_grad_batches={accumulation}"]


def test_data_workers_do_not_change_the_result(whole):
    assert_identical(whole(0, 1), whole(2, 1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("crash", [5, 7, 10])
def test_crash_and_resume_is_bit_identical(tmp_path, whole, text, workers, accumulation, crash):
    """Crash in the middle of a step's micro-batches; 7 lies right after a checkpoint at 6."""
    extra = options(workers, accumulation)
    with crash_at((crash - 1) * accumulation + accumulation // 2):
        fit(config(*extra, text=text), tmp_path)
    assert read_record(tmp_path)["status"] == "failed"
    fit(config(*extra, "resume=true", text=text), tmp_path)
    assert_identical(whole(workers, accumulation), tmp_path)
    assert read_record(tmp_path)["status"] == "ok"


def test_crash_during_a_validation_at_a_checkpoint_step_validates_once(
    tmp_path, monkeypatch, whole, text
):
    """Step 12 is both; the checkpoint must stand after the validation or not at all."""
    real, calls = LitGPT.on_validation_epoch_end, []

    def fails(self):
        calls.append(self.global_step)
        if self.global_step == NOISY_STEPS:
            raise RuntimeError("crash")
        return real(self)

    monkeypatch.setattr(LitGPT, "on_validation_epoch_end", fails)
    with pytest.raises(RuntimeError, match="crash"):
        fit(config(text=text), tmp_path)
    monkeypatch.setattr(LitGPT, "on_validation_epoch_end", real)
    fit(config("resume=true", text=text), tmp_path)
    assert_identical(whole(0, 1), tmp_path)


def test_resume_at_a_step_validated_and_saved_does_not_validate_again(
    tmp_path, monkeypatch, whole, text
):
    real, steps = LitGPT.on_validation_epoch_end, []

    def counts(self):
        steps.append(self.global_step)
        return real(self)

    monkeypatch.setattr(LitGPT, "on_validation_epoch_end", counts)
    with crash_at(8):
        fit(config("callbacks.checkpoint.every_n_train_steps=4", text=text), tmp_path)
    fit(config("callbacks.checkpoint.every_n_train_steps=4", "resume=true", text=text), tmp_path)
    assert steps == [4, 8, 12]
    assert_identical(whole(0, 1), tmp_path)


#: Enough steps for a signal at any moment of them; the last ones are never reached by that run.
LONG = [
    *("trainer.max_steps=60", "trainer.val_check_interval=15", "data.num_workers=2"),
    *("callbacks.checkpoint.every_n_train_steps=4", "trainer.log_every_n_steps=7"),
]


def slow_and_endless() -> None:
    """In the process of a training: steps take a while, and step 50 is not left alive."""
    real = LitGPT.on_train_batch_end

    def waits(self, *given):
        real(self, *given)
        time.sleep(0.02 if self.global_step < 50 else 600)

    LitGPT.on_train_batch_end = waits


def wait_for_step(folder: Path, step: int, process: Forked) -> None:
    while (read_record(folder).get("step") or 0) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole_long(tmp_path_factory, text) -> Path:
    folder = tmp_path_factory.mktemp("long")
    fit(config(*LONG, text=text), folder)
    return folder


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_resume_is_bit_identical(tmp_path, text, whole_long, signum):
    process = Forked(
        command(tmp_path, *LONG, text=text),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        before=slow_and_endless,
    )
    wait_for_step(tmp_path, 8, process)
    if signum == signal.SIGKILL:
        os.kill(process.pid, signum)
        process.wait()
    os.killpg(process.pid, signum)  # the data workers too
    _, errors = process.communicate()
    record = read_record(tmp_path)
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL and record["status"] == "running"
    else:
        assert process.returncode == 128 + signum, errors
        assert record["status"] == "interrupted"
        assert "Traceback" not in errors and "resume=true" in errors
    assert 8 <= record["step"] <= 50
    done = run(command(tmp_path, *LONG, "resume=true", text=text))
    assert done.returncode == 0, done.stderr
    first, second = outcome(whole_long), outcome(tmp_path)
    assert first[0] == second[0] == 60
    assert all(torch.equal(v, second[1][k]) for k, v in first[1].items())
    assert first[3] == second[3]


def test_a_finished_run_is_left_unchanged(whole, text):
    folder = whole(0, 1)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}
    done = run(command(folder, "resume=true", text=text))
    assert done.returncode == 0 and "finished" in done.stderr
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}
    before.pop(folder / ".lock"), after.pop(folder / ".lock")
    assert before == after


def test_a_run_is_never_written_over(whole, text):
    done = run(command(whole(0, 1), text=text))
    assert done.returncode == 2 and "already holds a run" in done.stderr


@pytest.fixture
def cut(tmp_path, text) -> Path:
    """A run that stopped before step 6."""
    with crash_at(5):
        fit(config(text=text), tmp_path / "cut")
    return tmp_path / "cut"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fit_writes_over_no_unfinished_run(cut, text):
    before = files(cut)
    with pytest.raises(CheckpointError, match=r"already holds a run; .* or resume=true"):
        fit(config(text=text), cut)
    assert files(cut) == before


@pytest.mark.parametrize("named", ["", "checkpoints/last.ckpt"])
def test_resume_by_the_name_of_another_run_is_refused(tmp_path, cut, text, named):
    other = tmp_path / "other"
    shutil.copytree(cut, other, symlinks=True)
    before = files(cut)
    for folder in (cut, tmp_path / "new"):
        with pytest.raises(CheckpointError, match=r"is not of the run in .* resume=true"):
            fit(config(f"resume={other / named}", text=text), folder)
    assert files(cut) == before and not (tmp_path / "new").exists()


def test_resume_of_another_configuration_names_the_difference(whole, text):
    with pytest.raises(CheckpointError, match=r"optimizer.lr was 0.0003 and is 0.01"):
        fit(config("resume=true", "optimizer.lr=0.01", text=text), whole(0, 1))


def test_what_changes_no_number_is_not_blamed_beside_a_real_difference(whole, text):
    with pytest.raises(CheckpointError, match=r"configuration: optimizer.lr was .* 0.01\. Start"):
        fit(
            config("resume=true", "optimizer.lr=0.01", "data.num_workers=2", text=text),
            whole(0, 1),
        )


def test_resume_without_a_checkpoint_starts_at_step_0_and_says_so(tmp_path, whole, text):
    done = run(command(tmp_path / "new", "resume=true", text=text))
    assert done.returncode == 0 and "starting at step 0" in done.stderr
    assert_identical(whole(0, 1), tmp_path / "new")


def test_resume_true_finds_the_newest_unfinished_run_of_its_config(tmp_path, text):
    for name in ("older", "newer"):
        with crash_at(4):
            fit(config(text=text), tmp_path / name)
    record = read_record(tmp_path / "older")
    (tmp_path / "older" / "run.json").write_text(json.dumps({**record, "started": "2020-01-01"}))
    runs = tmp_path / "runs" / "kuramoto-text"
    (runs / "damaged").mkdir(parents=True)
    (runs / "damaged" / "run.json").write_text('{"config_hash": "')
    for name in ("older", "newer"):
        (tmp_path / name).rename(runs / name)
    done = run(python(*TRAIN, *NOISY, *text, "resume=true"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr and "damaged" in done.stderr
    assert read_record(runs / "newer")["status"] == "ok"
    assert read_record(runs / "older")["status"] == "failed"
    assert sorted(p.name for p in runs.iterdir()) == ["damaged", "newer", "older"]


def test_a_start_with_other_code_or_hardware_is_recorded(tmp_path, text, monkeypatch):
    with crash_at(4):
        fit(config(text=text), tmp_path / "run")
    first = read_record(tmp_path / "run")
    here = run_folder.environment()
    other = {**here, "hardware": {**here["hardware"], "cpu": "another"}}
    monkeypatch.setattr("phasegpt.training.run.environment", lambda: other)
    for stop in (7, 9):
        with crash_at(stop):
            fit(config("resume=true", text=text), tmp_path / "run")
    found = read_record(tmp_path / "run")
    (start,) = found["resumed"]  # the third start is like the second
    assert start["hardware"] == other["hardware"] and start["git"] == here["git"]
    assert found["hardware"] == first["hardware"] and found["started"] == first["started"]


@pytest.mark.parametrize("what", ["folder", "an earlier checkpoint"])
def test_resume_path_names_a_run_or_one_of_its_checkpoints(tmp_path, whole, text, what):
    folder = tmp_path / "cut"
    with crash_at(9):
        fit(config(text=text), folder)
    kept = sorted(p.name for p in (folder / "checkpoints").glob("step-*.ckpt"))
    assert kept == ["step-00000008.ckpt", "step-00000009.ckpt"]
    partial = folder / "checkpoints" / ".step-00000012.ckpt.1.tmp"
    partial.write_bytes(b"a kill -9 in the middle of a save")
    path = folder if what == "folder" else folder / "checkpoints" / kept[0]
    done = run(python(*TRAIN, *NOISY, *text, f"resume={path}"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_identical(whole(0, 1), folder)
    runs = list((tmp_path / "runs").rglob("*")) if (tmp_path / "runs").exists() else []
    assert not partial.exists()
    assert not any(p.is_file() for p in runs)  # Hydra's own folder was not used
