"""Trainings in several processes: torchrun in this process, with what it starts forked.

The fixtures are offered by training/conftest.py; see processes.
"""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest
import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from torch.distributed.run import main as run_main

import phasegpt
from phasegpt.model import checkpoint
from phasegpt.training.lit import LitGPT
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics

TINY = [
    *("attention.layers=[1]", "attention.num_oscillators=8"),
    *("attention.noise_sigma=0.3", "attention.frequency_jitter=0.3"),
    *("regularizer=ceiling", "regularizer.schedule=adaptive", "regularizer.target=0.2"),
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16"),
    *("model.dropout=0.0", "data=text", "data.batch_size=6", "trainer=cpu"),
    *("trainer.max_steps=5", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"),
    *("callbacks.phase_monitor.every_n_steps=1", "callbacks.sample_text.max_new_tokens=5"),
    *("callbacks.checkpoint.every_n_train_steps=2", "callbacks.collapse_guard.action=report"),
    "trainer.precision=64-true",
]
HALF = "data.batch_size=3"
TWO = ["trainer.devices=2", HALF]


def run(folder: Path, text: list[str], *extra: str) -> dict:
    return fit(phasegpt.compose([*TINY, *text, *extra]), folder)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        # torchrun sets variables of its own process too.
        for name in ("OMP_NUM_THREADS", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
            patch.setenv(name, os.environ.get(name, "1"))
        yield patch


@pytest.fixture
def begun(monkeypatch) -> Callable[..., list[processes.Forked]]:
    """`begun(before)`: the processes that are started from now on, each after `before` in it."""

    def starts(before: Callable[[], object] | None = None) -> list[processes.Forked]:
        found: list[processes.Forked] = []

        def popen(**words) -> processes.Forked:
            found.append(processes.Forked(before=before, **words))
            return found[-1]

        monkeypatch.setattr(subprocess_handler, "Popen", popen)
        return found

    return starts


@pytest.fixture(scope="module")
def forked(patch) -> None:
    patch.setattr(subprocess_handler, "Popen", processes.Forked)


def torchrun(folder: Path, *words: str, options: tuple[str, ...] = ("--standalone",)) -> dict:
    """What `torchrun OPTIONS --nproc-per-node 2 -m phasegpt.train WORD...` wrote, by rank.

    With hydra.run.dir=folder/run. Keys: (rank, "stdout" or "stderr") of the last start.
    """
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    given = [*options, "--nproc-per-node=2", "--redirects=3", f"--log-dir={logs}"]
    kept = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        run_main([*given, "-m", "phasegpt.train", *words])
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in kept.items():
                signal.signal(signum, handler)
    files = sorted(logs.glob("*/attempt_*/*/std*.log"))
    return {(int(file.parent.name), file.stem): file.read_text() for file in files}


def same_losses(a: Path, b: Path, steps: int = 5, *, monitored: bool = True) -> None:
    """Every value of metrics.csv agrees within 1e-6; not `monitored`: but the phase monitor's."""
    left, right = (read_metrics(folder / "metrics.csv") for folder in (a, b))
    assert [row["step"] for row in left] == [row["step"] for row in right] == [*range(1, steps + 1)]
    for row, other in zip(left, right, strict=True):
        for each in (row, other):
            each.pop("perf/tokens_per_s", None)
            for name in () if monitored else [*each]:
                if name.startswith("phase/") and not name.startswith("phase/R/"):
                    each.pop(name)
        assert other == pytest.approx(row, abs=1e-6, nan_ok=True)


def same_weights(a: Path, b: Path) -> None:
    """Bit by bit."""
    left, right = (
        checkpoint.read(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (a, b)
    )
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.fixture(scope="module")
def one(tmp_path_factory, text) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run(folder, text)
    return folder


def dies_at_step_3() -> None:
    """The second process is killed, as it starts step 4 for the first time."""
    _at_step_3(lambda: os.kill(os.getpid(), signal.SIGKILL), of_rank="1")


def has_a_bad_gradient_at_step_3() -> None:
    """The last process has a gradient of NaN in the first micro-batch of step 4."""
    real, last = LitGPT.training_step, int(os.environ.get("WORLD_SIZE", 1)) - 1

    def poisons(self: LitGPT, batch: dict, batch_idx: int) -> dict:
        out = real(self, batch, batch_idx)
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        bad = first and self.global_step == 3 and self.global_rank == last
        return {**out, "loss": out["loss"] * float("nan")} if bad else out

    LitGPT.training_step = poisons  # type: ignore[method-assign]


def stops_at_step_3() -> None:
    """The second process stands still, as it starts step 4."""
    _at_step_3(lambda: os.kill(os.getpid(), signal.SIGSTOP), of_rank="1")


def asked_to_end_at_step_3() -> None:
    """The first process gets a SIGTERM, as it starts step 4."""
    _at_step_3(lambda: os.kill(os.getpid(), signal.SIGTERM), of_rank="0")


def all_asked_to_end_at_step_3() -> None:
    """Every process gets a SIGTERM, as it starts step 4: a launcher passes its own on to all."""
    _at_step_3(lambda: os.kill(os.getpid(), signal.SIGTERM), of_rank=os.environ["RANK"])


def _at_step_3(act: Callable[[], None], *, of_rank: str) -> None:
    if os.environ["RANK"] != of_rank or os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
        return
    real = LitGPT.on_train_batch_start

    def acts(self, batch, batch_idx):
        if self.global_step == 3:
            act()
        return real(self, batch, batch_idx)

    LitGPT.on_train_batch_start = acts
