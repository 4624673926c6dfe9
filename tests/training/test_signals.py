"""A signal at any moment ends a run with 128 + n, the right status and a folder that resumes."""

import os
import signal

import pytest
from helpers import NOISY, assert_identical

import phasegpt
from phasegpt.core.errors import Interrupted
from phasegpt.model import checkpoint
from phasegpt.training import run as run_module
from phasegpt.training.lit import LitGPT
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_record
from phasegpt.training.signals import StopSignals

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def config(*extra, text):
    return phasegpt.compose([*NOISY, *text, *extra])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("whole")
    fit(config(text=text), folder)
    return folder


@pytest.fixture(autouse=True)
def _handlers_come_back():
    before = [signal.getsignal(s) for s in SIGNALS]
    yield
    assert [signal.getsignal(s) for s in SIGNALS] == before


def at_call(monkeypatch, owner, name, number, *signals):
    """Send `signals` to this process when owner.name is called for the number-th time."""
    real, calls = getattr(owner, name), []

    def function(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            for signum in signals:
                os.kill(os.getpid(), signum)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


MOMENTS = {  # where, and the step that is saved by then
    "data preparation": (run_module, "prepare", 1, 0),
    "set-up": (run_module, "assemble", 1, 0),
    "before the first step": (LitGPT, "on_train_start", 1, 1),
    "a step": (LitGPT, "training_step", 6, 6),
    "a checkpoint": (checkpoint, "save", 2, 4),
    "a validation": (LitGPT, "validation_step", 1, 4),
    "the last step": (LitGPT, "training_step", 12, 12),
}


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_run_as_interrupted_and_it_resumes(
    tmp_path, text, whole, monkeypatch, moment, signum
):
    owner, name, number, step = MOMENTS[moment]
    with monkeypatch.context() as patch:
        at_call(patch, owner, name, number, signum)
        with pytest.raises(Interrupted, match="resume=true") as stopped:
            fit(config(text=text), tmp_path)
    assert stopped.value.exit_code == 128 + signum
    record = read_record(tmp_path)
    assert record["status"] == "interrupted" and (tmp_path / "config.yaml").is_file()
    assert record.get("step", 0) >= step
    fit(config("resume=true", text=text), tmp_path)
    assert_identical(whole, tmp_path)


@pytest.mark.parametrize("signals", [(signal.SIGINT,) * 2, (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_stops_at_once_and_the_run_is_interrupted(
    tmp_path, text, whole, monkeypatch, signals
):
    with monkeypatch.context() as patch:
        at_call(patch, LitGPT, "training_step", 6, *signals)
        with pytest.raises(Interrupted) as stopped:
            fit(config(text=text), tmp_path)
    assert stopped.value.exit_code in {128 + signum for signum in signals}
    record = read_record(tmp_path)
    assert record["status"] == "interrupted" and record["step"] == 4  # not 6
    fit(config("resume=true", text=text), tmp_path)
    assert_identical(whole, tmp_path)


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("where", ["sample", "draw_curves", "closing", "finish"])
def test_a_signal_after_the_training_leaves_the_run_finished(
    tmp_path, text, monkeypatch, capsys, where, signum
):
    with monkeypatch.context() as patch:
        at_call(patch, run_module, where, 1, signum, signum)
        with pytest.raises(Interrupted, match="finished and is recorded") as stopped:
            fit(config("trainer.max_steps=2", text=text), tmp_path)
    assert stopped.value.exit_code == 128 + signum
    assert read_record(tmp_path)["status"] == "ok"
    fit(config("trainer.max_steps=2", "resume=true", text=text), tmp_path)
    assert "is finished" in capsys.readouterr().err


def test_a_signal_that_code_in_between_swallows_is_obeyed_later():
    with StopSignals() as stop:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            stop.defer()
    assert stopped.value.exit_code == 143


def test_a_ctrl_c_that_lightning_turned_into_an_exit_is_an_interruption(
    tmp_path, text, monkeypatch
):
    """As from a callback of the user's own."""

    def training_step(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(LitGPT, "training_step", training_step)
    with pytest.raises(Interrupted) as stopped:
        fit(config(text=text), tmp_path)
    assert stopped.value.exit_code == 130
    assert read_record(tmp_path)["status"] == "interrupted"
