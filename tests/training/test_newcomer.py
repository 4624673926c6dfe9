"""What a newcomer meets: header, progress, next commands, names of jobs, launchers, suggestions."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, SIX_STEPS, TWO_STEPS
from omegaconf import OmegaConf

import phasegpt
from phasegpt.core.sections import nearest
from phasegpt.training import planning, sweep_resources, sweeps
from phasegpt.training.run import fit
from phasegpt.training.run_folder import RunFolder


def test_a_run_says_what_it_will_do_what_it_does_and_what_comes_next(tmp_path, text, capsys):
    words = [word for word in SIX_STEPS if word != "callbacks.progress_bar=false"]
    fit(phasegpt.compose([*words, *text, "callbacks.sample_text.max_new_tokens=0"]), tmp_path)
    out, err = capsys.readouterr()
    head = err[: err.index("step 1/6")]
    assert "2 x 16, kuramoto in layers [1]" in head and "6 steps of 64 tokens" in head
    assert f"folder: {tmp_path}" in head and re.search(r"device: CPU, \d+ thread", head)
    assert "OMP_WAIT_POLICY" in head and "oscillators: " in head and "time: about" in head
    steps = [line for line in err.splitlines() if re.match(r"step \d/6 loss", line)]
    assert len(steps) == 6 and len({line.split()[3] for line in steps}) > 1  # no value repeated
    assert all(re.search(r"R 0\.\d+ [\d,]+ tokens/s, \d+ s left", line) for line in steps[:-1])
    assert "left" not in steps[-1]
    assert re.search(r"dR -?[\d.e-]+ \(standard error", out)
    for command in ("evaluate", "generate", "interpret"):
        assert f"python -m phasegpt.{command} checkpoint={tmp_path}" in out
    assert f"evaluate checkpoint={tmp_path} split=val\n" in out  # its text has no test split


def test_a_run_without_phases_is_not_sent_to_what_looks_at_them(tmp_path, text, capsys):
    words = [word for word in TWO_STEPS if not word.startswith(("attention", "regularizer"))]
    words += ["attention=softmax", "callbacks.sample_text.max_new_tokens=0"]
    fit(phasegpt.compose([*words, *text]), tmp_path)
    out = capsys.readouterr().out
    assert f"generate checkpoint={tmp_path}" in out and "interpret" not in out


def test_a_long_silence_is_broken_by_a_line(monkeypatch, capsys):
    from phasegpt.training.callbacks import Progress

    progress = Progress(SimpleNamespace(latest={}), 10_000)
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    trainer = SimpleNamespace(global_step=0, world_size=1, accumulate_grad_batches=1)
    progress.on_train_start(trainer, None)
    batch = {"idx": torch.zeros(2, 8)}
    for step in range(1, 4):
        trainer.global_step = step
        progress.on_train_batch_end(trainer, None, {"nll": torch.tensor(1.5), "R": {}}, batch, step)
    assert capsys.readouterr().err.splitlines() == [
        "step 2/10000 loss 1.500 1 tokens/s, 55.5 hours left"
    ]


@pytest.fixture
def plan(tmp_path):
    """plan(words): the names of the jobs of a multirun, of which none is trained."""

    def names(*words: str) -> list[str]:
        return [job["name"] for job in planned(tmp_path, *words)]

    return names


def planned(folder: Path, *words: str) -> list[dict]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from phasegpt.core.composition import CONF_DIR

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        given = [f"hydra.sweep.dir={folder}", *TWO_STEPS, *words]
        config = hydra.compose_config(
            "config", given, RunMode.MULTIRUN, with_log_configuration=False
        )
        (stage,) = planning.stages(config)
        return [job.entry for job in stage()]


def test_jobs_are_named_by_what_varies_and_by_nothing_else(plan):
    assert plan("seed=1,2", "attention.coupling=0.5,1.0") == [
        f"{number}-kuramoto-text-attention.coupling-{K}-seed-{seed}"
        for number, (seed, K) in enumerate([(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)])
    ]
    assert plan("seed=3") == ["0-kuramoto-text"]
    assert plan("+sweep=seeds", "name=a")[0] == "a-seed1"  # a sweep's own names stay
    long = "x" * 50
    assert plan(f"data.path={long},{long}y") == ["0-kuramoto-text", "1-kuramoto-text"]
    assert plan("data.path=a/b,a/c") == ["0-kuramoto-text", "1-kuramoto-text"]


@pytest.mark.parametrize("here", [0, 4])
@pytest.mark.parametrize("accelerator", ["auto", "cpu", "cuda"])
def test_launchers_reserve_the_gpus_that_jobs_train_on(monkeypatch, here, accelerator):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)

    def reserved(target: str, launcher: dict, **own) -> dict:
        config = OmegaConf.create(
            {
                "trainer": {"accelerator": accelerator, "devices": 1},
                "hydra": {"launcher": {"_target_": target, **launcher}},
            }
        )
        sweep_resources.reserve_gpus(config)
        return config.hydra.launcher

    local = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
    cpu = accelerator == "cpu"
    assert reserved(local, {"gpus_per_node": None}).gpus_per_node == (None if cpu else here)
    assert reserved(local, {"gpus_per_node": 2}).gpus_per_node == 2
    slurm = local.replace("Local", "Slurm")  # there may be no GPU where jobs are submitted
    assert reserved(slurm, {"gpus_per_node": None}).gpus_per_node == (None if cpu else 1)
    assert reserved(slurm, {"gpus_per_node": 2}).gpus_per_node == 2
    for own in (
        {"gres": "gpu:a100:1"},
        {"gpus_per_task": 1},
        {"additional_parameters": {"gpus": 1}},
    ):
        assert reserved(slurm, {"gpus_per_node": None, **own}).gpus_per_node is None


def test_a_launcher_whose_jobs_are_silent_is_watched(tmp_path, monkeypatch, capsys):
    import threading

    monkeypatch.setattr(sweeps, "_LOOK_EVERY_S", 0.01)
    (tmp_path / "sweep.json").write_text(
        json.dumps({"jobs": [{"name": "a", "config_hash": "h", "error": None}]})
    )
    ended = threading.Event()
    watch = threading.Thread(target=sweeps._watch, args=(tmp_path, ended))
    watch.start()
    seen = ""
    for status, says in ((None, "1 missing"), ("ok", "1 done")):
        if status:
            folder = RunFolder(tmp_path / "a")
            folder.update(status=status, config_hash="h")
            folder.close()
        while says not in seen:
            assert watch.is_alive()
            time.sleep(0.01)
            seen += capsys.readouterr().err
    ended.set()
    watch.join()
    assert seen.count("1 done") == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("optimizer.name", None),
        ("optimizer.momentum", None),
        ("attention.couplng", "attention.coupling"),
        ("optimiser.lr", "optimizer.lr"),
        ("trainer.max_step", "trainer.max_steps"),
    ],
)
def test_a_key_is_suggested_only_where_it_is_close(given, meant):
    known = ["optimizer.eps", "optimizer.lr", "logger.name", "attention.coupling"]
    assert nearest(given, [*known, "trainer.max_steps", "name"]) == meant


@pytest.mark.parametrize("word", ["trainer.accelerator=mps", "trainer.accelerator=tpu"])
def test_an_accelerator_that_nothing_here_uses_is_refused_by_name(word):
    with pytest.raises(phasegpt.core.errors.ConfigError, match="choose from: auto, cpu, cuda"):
        phasegpt.build(phasegpt.compose([word]))


def policy(code: str, **env: str) -> str:
    own = {
        k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))
    }
    code += "; import os; print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    words = {"capture_output": True, "text": True, "check": True, "env": own | env}
    return subprocess.run([sys.executable, "-c", code], **words).stdout.strip()


def test_threads_wait_asleep_unless_the_user_set_something_of_openmp():
    assert policy("import phasegpt") == "passive 2000"
    assert policy("import phasegpt", OMP_NUM_THREADS="2") == "None None"
    assert policy("import phasegpt", MKL_NUM_THREADS="2") == "None None"
    assert policy("import phasegpt", OMP_WAIT_POLICY="active") == "active None"
    assert policy("import sys; sys.modules['torch'] = sys; import phasegpt") == "None None"


def test_make_train_installs_no_more_than_training_needs():
    words = ["make", "-n", "-C", str(ROOT), "VENV=/nowhere/venv"]
    told = subprocess.run([*words, "train"], capture_output=True, text=True, check=True).stdout
    assert "-e .\n" in told and "dev" not in told and "pip install -q" in told
    told = subprocess.run([*words, "test"], capture_output=True, text=True, check=True).stdout
    assert '".[dev]"' in told
