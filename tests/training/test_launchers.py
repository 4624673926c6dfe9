"""Every launcher really trains jobs, and a search goes on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import processes
import pytest
import torch
from helpers import TWO_STEPS, play

from phasegpt import compose
from phasegpt.model import checkpoint
from phasegpt.training.jobs import jobs
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_record


@pytest.fixture
def text(tmp_path) -> list[str]:
    return play(tmp_path)


def multirun(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = processes.python("-m", "phasegpt.train", "-m", *words)
    return processes.run(command, cwd=folder)


# submitit also trains the job that is requeued below.
@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit", marks=pytest.mark.slow)])
def test_a_launcher_trains_its_jobs_and_one_that_fails_stops_no_other(tmp_path, text, launcher):
    words = [f"+launcher={launcher}", f"hydra.sweep.dir={tmp_path / 'sweep'}", *TWO_STEPS, *text]
    done = multirun(tmp_path, *words, "seed=3", "attention.layers=[7],[1]")
    assert done.returncode == 1, done.stderr
    assert "2 jobs: 1 done, 1 failed" in done.stderr
    (job,) = [job for job in jobs(tmp_path / "sweep") if job.status == "ok"]
    assert job.step == 2
    assert read_record(tmp_path / "sweep" / job.name)["seed"] == 3


def test_a_job_that_is_requeued_goes_on_from_its_last_checkpoint(tmp_path, text):
    """What Slurm sends before a job's time is over ends it; submitit starts the same job again."""
    short = {"trainer.max_steps=2", "trainer.val_check_interval=2"}
    words = [word for word in TWO_STEPS if word not in short] + text
    words += ["trainer.max_steps=200", "trainer.val_check_interval=50"]
    words += ["callbacks.checkpoint.every_n_train_steps=20"]
    sweep = tmp_path / "sweep"
    given = ["-m", "+launcher=submitit", f"hydra.sweep.dir={sweep}", "hydra.sweep.subdir=job"]
    command = processes.python("-m", "phasegpt.train", *given, *words)
    launched = processes.Forked(command, cwd=tmp_path, stderr=subprocess.PIPE)
    saved = sweep / "job" / "checkpoints" / "last.ckpt"
    while not saved.exists():
        assert launched.poll() is None, launched.communicate()
        time.sleep(0.05)
    os.kill(process_id("submitit.core._submit", str(sweep)), signal.SIGUSR2)
    told = launched.communicate()
    assert launched.returncode == 0, told
    told = "".join(file.read_text() for file in sweep.rglob("*_log.*"))
    assert "Requeued job" in told and "going on with" in told
    record = read_record(sweep / "job")
    assert record["status"] == "ok" and record["step"] == 200
    fit(compose(words), tmp_path / "whole")
    whole = checkpoint.read(tmp_path / "whole" / "checkpoints" / "last.ckpt")["state_dict"]
    for name, value in checkpoint.read(saved)["state_dict"].items():
        assert torch.equal(value, whole[name]), name


def process_id(*words: str) -> int:
    """The process whose command line has all of these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_text()
        except OSError:
            continue  # it ended
        if all(word in line for word in words):
            found.append(int(folder.name))
    (only,) = found
    return only


def test_a_search_keeps_its_study_and_goes_on_when_started_again(tmp_path, text):
    words = ["+sweep=optuna", "hydra.sweeper.n_trials=2", "model=nano", *TWO_STEPS, *text]
    words.remove("attention.num_oscillators=4")
    for trials in (2, 4):
        done = multirun(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert f"{trials} jobs: {trials} done" in done.stderr
    import optuna

    storage = f"sqlite:///{tmp_path / 'runs' / 'optuna.db'}"
    study = optuna.load_study(study_name="phasegpt", storage=storage)
    best = [read_record(file.parent)["best"]["val/ppl"] for file in tmp_path.rglob("run.json")]
    assert sorted(trial.value for trial in study.trials) == pytest.approx(sorted(best))
    assert study.best_value == pytest.approx(min(best))
