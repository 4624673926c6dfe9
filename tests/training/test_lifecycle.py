"""A result, once reached, is kept; what can be refused is refused before; a copied run goes on."""

import os
import shutil
import sys

import pytest
import torch
from helpers import NOISY, TWO_STEPS, assert_identical, crash_at
from omegaconf import OmegaConf

import phasegpt
from phasegpt.core.composition import plain
from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.training import run as run_module
from phasegpt.training.callbacks import RngState
from phasegpt.training.resume import difference
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics, read_record

SAMPLE = "callbacks.sample_text.max_new_tokens=3"


def config(*extra, text):
    return phasegpt.compose([*NOISY, *text, *extra])


def short(*extra, text):
    return phasegpt.compose([*TWO_STEPS, *text, *extra])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("whole")
    fit(config(text=text), folder)
    return folder


@pytest.fixture
def cut(tmp_path, text):
    """A run that was cut after step 8, with checkpoints at 6 and 8."""
    with crash_at(8):
        fit(config(text=text), tmp_path / "cut")
    return tmp_path / "cut"


# --- what comes after the result ---------------------------------------------------------------


@pytest.mark.parametrize("what", ["sample", "draw_curves", "closing", "finish", "show"])
def test_what_comes_after_training_fails_without_changing_it(
    tmp_path, text, monkeypatch, capsys, what
):
    def fails(*args, **kwargs):
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(run_module, what, fails)
    record = fit(short(SAMPLE, text=text), tmp_path)
    assert record["status"] == read_record(tmp_path)["status"] == "ok"
    (line,) = [s for s in capsys.readouterr().err.splitlines() if "failed (RuntimeError" in s]
    assert "luck" not in line
    fit(short(SAMPLE, "resume=true", text=text), tmp_path)
    assert "is finished" in capsys.readouterr().err


def test_a_sample_in_letters_that_the_terminal_lacks_is_escaped(tmp_path, text, monkeypatch, capfd):
    monkeypatch.setattr(run_module, "sample", lambda *_: "Жизнь")
    latin = open(os.dup(1), "w", encoding="latin-1")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", latin)
    assert fit(short(text=text), tmp_path)["status"] == "ok"
    latin.close()
    assert "\\u0416" in capfd.readouterr().out


@pytest.mark.parametrize("state", ["full", "closed", "none", "gone"])
def test_an_output_that_cannot_be_written_is_a_line_and_no_failure(
    tmp_path, text, monkeypatch, capsys, state
):
    if state == "gone":
        reader, writer = os.pipe()
        os.close(reader)
        stream = open(writer, "w")  # noqa: SIM115
    else:
        stream = open("/dev/full", "w")  # noqa: SIM115
    if state == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stdout", None if state == "none" else stream)
    assert fit(short(text=text), tmp_path)["status"] == "ok"
    errors = capsys.readouterr().err
    assert ("could not write to stdout" in errors) == (state != "none")
    stream.close()  # nothing is left in it that would fail now


@pytest.mark.parametrize("closed", [False, True])
def test_training_goes_on_where_stderr_is_lost(tmp_path, text, monkeypatch, closed):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", None if closed else full)
        assert fit(short("callbacks.progress_bar=true", text=text), tmp_path)["status"] == "ok"


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_wandb_in_any_mode_leaves_the_run_finished(tmp_path, text, monkeypatch, capsys, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = ["logger=wandb", SAMPLE, *(["logger.offline=true"] if mode == "offline" else [])]
    assert fit(short(*words, text=text), tmp_path)["status"] == "ok"
    assert "warning" not in capsys.readouterr().err


def test_a_logger_that_fails_is_off_and_the_training_goes_on(tmp_path, text, monkeypatch, capsys):
    from phasegpt.training.loggers import TensorBoardLogger

    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", fails)
    assert fit(short("logger=tensorboard", SAMPLE, text=text), tmp_path)["status"] == "ok"
    errors = capsys.readouterr().err
    assert errors.count("TensorBoard failed and is off") == 1


# --- what can be refused at the start ----------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "says"),
    [("''", "is empty, and a model needs something"), ("'Привет'", "not among the")],
)
def test_a_prompt_that_cannot_be_continued_is_refused_before_training(tmp_path, text, prompt, says):
    with pytest.raises(ConfigError, match=says):
        fit(short(SAMPLE, f"callbacks.sample_text.prompt={prompt}", text=text), tmp_path)
    assert not read_record(tmp_path)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_without_its_package_is_refused_before_training(tmp_path, text, monkeypatch, name):
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        fit(short(f"logger={name}", text=text), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- start and resume --------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["config.yaml", "run.json"])
def test_a_start_that_was_killed_between_its_files_is_made_whole(tmp_path, text, missing):
    fit(short(text=text), tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    for name in {"config.yaml", "run.json"} - {missing}:
        shutil.copy(tmp_path / "whole" / name, folder / name)
    if missing == "config.yaml":
        (folder / "run.json").write_text(
            (folder / "run.json").read_text().replace('"status": "ok"', '"status": "running"')
        )
        shutil.copytree(tmp_path / "whole" / "checkpoints", folder / "checkpoints", symlinks=True)
    fit(short("resume=true", text=text), folder)
    record = read_record(folder)
    assert record["status"] == "ok"
    assert plain(OmegaConf.load(folder / "config.yaml")) == record["config"]


def copy_links(source, target, how):
    """What scp -r, zip, a bucket and a USB stick make of links."""
    shutil.copytree(source, target, symlinks=how != "followed")
    for name in ("last.ckpt", "best.ckpt"):
        link = target / "checkpoints" / name
        if how == "left out" and link.is_symlink():
            link.unlink()
        elif how == "a text" and link.is_symlink():
            to = os.readlink(link)
            link.unlink()
            link.write_text(to)


@pytest.mark.parametrize("how", ["followed", "left out", "a text"])
def test_a_run_copied_without_links_goes_on_where_it_was(tmp_path, text, whole, cut, how):
    copy_links(cut, tmp_path / "copy", how)
    fit(config("resume=true", text=text), tmp_path / "copy")
    assert_identical(whole, tmp_path / "copy")
    assert (tmp_path / "copy" / "checkpoints" / "last.ckpt").is_symlink()


@pytest.mark.parametrize("how", ["left out", "followed", "a text"])
def test_an_older_run_whose_best_was_a_link_keeps_its_best(tmp_path, text, cut, how):
    """Until now best.ckpt was a link to a whole checkpoint of its step."""
    from phasegpt.model import checkpoint

    directory = cut / "checkpoints"
    checkpoint.remove(directory / "best.ckpt")
    (directory / "best.ckpt").symlink_to("step-00000008.ckpt")
    copy_links(cut, tmp_path / "copy", how)
    with crash_at(10):
        fit(config("resume=true", text=text), tmp_path / "copy")
    best = tmp_path / "copy" / "checkpoints" / "best.ckpt"
    assert checkpoint.read(best)["global_step"] == 8


def test_a_run_whose_checkpoints_were_not_copied_stops_and_says_so(tmp_path, text, cut):
    shutil.rmtree(cut / "checkpoints")
    before = (cut / "run.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"says that step 8 was saved.*copy the checkpoints"):
        fit(config("resume=true", text=text), cut)
    assert (cut / "run.json").read_bytes() == before


def test_a_run_copied_without_its_metrics_goes_on_and_says_what_is_lost(text, cut, capsys):
    (cut / "metrics.csv").unlink()
    record = fit(config("resume=true", text=text), cut)
    assert record["status"] == "ok"
    assert "metrics.csv is missing or empty, so the metrics of the steps before are lost" in (
        capsys.readouterr().err
    )
    assert read_metrics(cut / "metrics.csv")[0]["step"] == 9


def test_a_hash_that_differs_alone_is_said_to(tmp_path):
    values = {"attention": {"name": "softmax"}, "seed": 1}
    assert "although no key differs" in difference(tmp_path, values, values)


def test_a_damaged_newest_checkpoint_stops_and_nothing_is_deleted(tmp_path, text, cut):
    newest = cut / "checkpoints" / "step-00000008.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    (cut / "checkpoints" / "last.ckpt").unlink()
    before = sorted(path.name for path in (cut / "checkpoints").iterdir())
    with pytest.raises(CheckpointError, match=r"damaged.*is whole: .*step-00000006"):
        fit(config("resume=true", text=text), cut)
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == before


def test_the_random_state_is_that_of_the_gpu_in_use(monkeypatch):
    """Saved on another machine, with more GPUs than there are now."""
    taken = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, device: taken.append((s, device)))

    class Trainer:
        world_size = 1

        class strategy:
            root_device = torch.device("cuda", 1)

    for states, wanted in (((7,), 7), ((5, 6), 6), ((5, 6, 7), 6)):
        rng = RngState()
        cuda = [torch.tensor([s], dtype=torch.uint8) for s in states]
        rng.load_state_dict({"cpu": torch.get_rng_state(), "cuda": cuda})
        rng.on_train_start(Trainer, None)
        state, device = taken.pop()
        assert state.item() == wanted and device == torch.device("cuda", 1)
