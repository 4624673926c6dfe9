"""Every launcher really trains jobs, and a search goes on."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import processes
import pytest
import torch
from helpers import TWO_STEPS, play
from omegaconf import OmegaConf

from phasegpt import compose
from phasegpt.core.errors import ConfigError
from phasegpt.model import checkpoint
from phasegpt.training import sweep_resources
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


# Step 12 ends when a file is there, so that a signal always comes before the last step.
WAITS = """
import time
from pathlib import Path
from pytorch_lightning.callbacks import Callback

class Waits(Callback):
    def __init__(self, file):
        self.file = Path(file)

    def on_train_batch_end(self, trainer, *given):
        while trainer.global_step == 12 and not self.file.exists():
            time.sleep(0.01)
"""


def test_a_job_that_is_requeued_goes_on_from_its_last_checkpoint(tmp_path, text):
    """What Slurm sends before a job's time is over ends it; submitit starts the same job again."""
    short = {"trainer.max_steps=2", "trainer.val_check_interval=2"}
    words = [word for word in TWO_STEPS if word not in short] + text
    words += ["trainer.max_steps=40", "trainer.val_check_interval=20"]
    words += ["callbacks.checkpoint.every_n_train_steps=10"]
    (tmp_path / "waits.py").write_text(WAITS)
    waits = f"callbacks.extra=[{{_target_:waits.Waits,file:{tmp_path / 'go'}}}]"
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    sweep = tmp_path / "sweep"
    given = ["-m", "+launcher=submitit", f"hydra.sweep.dir={sweep}", "hydra.sweep.subdir=job"]
    command = processes.python("-m", "phasegpt.train", *given, *words, waits)
    launched = processes.Forked(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    saved = sweep / "job" / "checkpoints" / "last.ckpt"
    while not saved.exists():
        assert launched.poll() is None, launched.communicate()
        time.sleep(0.05)
    os.kill(process_id("submitit.core._submit", str(sweep)), signal.SIGUSR2)
    (tmp_path / "go").touch()
    told = launched.communicate()
    assert launched.returncode == 0, told
    told = "".join(file.read_text() for file in sweep.rglob("*_log.*"))
    assert "Requeued job" in told and "going on with" in told
    record = read_record(sweep / "job")
    assert record["status"] == "ok" and record["step"] == 40
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


def search(text: list[str], trials: int) -> list[str]:
    """A search for the coupling, of two steps each."""
    words = ["+sweep=optuna", f"hydra.sweeper.n_trials={trials}", "model=nano", *TWO_STEPS, *text]
    words.remove("attention.num_oscillators=4")
    return words


def check_trials(tmp_path: Path, number: int) -> None:
    """The study has so many trials, each once and with the value of its run."""
    import optuna

    storage = f"sqlite:///{tmp_path / 'runs' / 'optuna.db'}"
    study = optuna.load_study(study_name="phasegpt", storage=storage)
    assert [trial.number for trial in study.trials] == [*range(number)]
    records = [read_record(file.parent) for file in tmp_path.rglob("run.json")]
    runs = {r["config"]["attention"]["coupling"]: r["best"]["val/ppl"] for r in records}
    trials = {trial.params["attention.coupling"]: trial.value for trial in study.trials}
    assert len(trials) == len(records) == number
    assert trials == pytest.approx(runs)
    assert study.best_value == pytest.approx(min(runs.values()))


def test_a_search_keeps_its_study_and_goes_on_when_started_again(tmp_path, text):
    for trials in (1, 2):
        done = multirun(tmp_path, *search(text, 1))
        assert done.returncode == 0, done.stderr
        assert f"{trials} jobs: {trials} done" in done.stderr
    check_trials(tmp_path, 2)


def test_two_processes_at_once_make_one_study_and_lose_no_trial(tmp_path, text):
    command = processes.python("-m", "phasegpt.train", "-m", *search(text, 2))
    workers = [processes.Forked(command, cwd=tmp_path, stderr=subprocess.PIPE) for _ in range(2)]
    for worker in workers:
        _, told = worker.communicate()
        assert worker.returncode == 0, told
    check_trials(tmp_path, 4)


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("sqlite:////dev/null/x.db", r"storage=sqlite:////dev/null/x\.db cannot be opened \("),
        (
            "postgresql+psycopg2://me:secret@127.0.0.1:1/x",
            r"storage=postgresql\+psycopg2://\.\.\.@",
        ),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_its_password(
    storage: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_resources, "_TRIES", 1)
    target = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    sweeper = {"_target_": target, "storage": storage, "study_name": "x", "direction": "minimize"}
    with pytest.raises(ConfigError, match=says) as found:
        sweep_resources.open_study(OmegaConf.create({"hydra": {"sweeper": sweeper}}))
    assert "secret" not in str(found.value) and len(str(found.value).splitlines()) == 1


# --- GPUs ------------------------------------------------------------------------------------


def test_jobs_at_once_have_a_gpu_each_and_the_next_one_waits(tmp_path: Path, capfd) -> None:
    first, second = (sweep_resources.one_gpu(tmp_path, n, 2) for n in (0, 2))
    taken: list[int] = []

    def third() -> None:
        with sweep_resources.one_gpu(tmp_path, 3, 2) as gpu:
            taken.append(gpu)

    with first as a:
        with second as b:
            assert (a, b) == (0, 1)  # number 2 goes to 0, which is taken
            waiting = threading.Thread(target=third)
            waiting.start()
            time.sleep(0.2)
            assert taken == []
        waiting.join(10)
        assert taken == [1]
    assert "job 3 waits for a GPU: other jobs have all 2" in capfd.readouterr().err
    with sweep_resources.one_gpu(tmp_path, 5, 0) as gpu:  # on a CPU
        assert gpu == 5


# What the commands of Slurm do here: sbatch keeps the script, and starts nothing.
SBATCH = """#!/bin/sh
for last; do :; done
cp "$last" "$KEPT"
echo "no partition" >&2
exit 1
"""


def test_slurm_is_asked_for_an_array_with_a_gpu_a_job_and_a_warning(
    tmp_path: Path, text: list[str]
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        (tools / name).write_text(SBATCH)
        (tools / name).chmod(0o755)
    words = [w for w in TWO_STEPS if not w.startswith("trainer=")]
    words += ["+launcher=slurm", f"hydra.sweep.dir={tmp_path / 'sweep'}", "seed=1,2,3"]
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "KEPT": str(tmp_path / "script")}
    command = processes.python("-m", "phasegpt.train", "-m", *words, *text)
    done = processes.run(command, cwd=tmp_path, env=env)
    assert done.returncode != 0 and "no partition" in done.stderr
    script = (tmp_path / "script").read_text()
    for line in ("--array=0-2", "--gpus-per-node=1", "--signal=USR2@", "--time=240"):
        assert f"#SBATCH {line}" in script, script
    assert "--requeue" in script or "#SBATCH --open-mode=append" in script
