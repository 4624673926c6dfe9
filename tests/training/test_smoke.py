"""Smoke runs try that a run works: short, marked, and counted in no table. The profiler."""

import pytest
from helpers import TWO_STEPS, composed

import phasegpt
from phasegpt.analysis import verdicts
from phasegpt.analysis.study import collect
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data.corpus import prepare
from phasegpt.model.hf_folder import hf_contents
from phasegpt.model.loading import load_run
from phasegpt.training.assemble import data_module
from phasegpt.training.jobs import jobs
from phasegpt.training.preregistration import read
from phasegpt.training.run_folder import read_metrics, read_record

WORDS = [*TWO_STEPS, "trainer.max_steps=40", "trainer.val_check_interval=20", "data.batch_size=2"]
WORDS.append("trainer.log_every_n_steps=1")


def trained(folder, text, *words):
    return phasegpt.fit(phasegpt.compose([*WORDS, *text, *words]), folder)


@pytest.fixture(scope="module")
def whole_val(text):
    return len(prepare(composed(*WORDS, *text).data).split("val")) - 1


def test_fast_dev_run_makes_its_steps_and_all_that_follows(tmp_path, text):
    words = ["trainer.fast_dev_run=2", "trainer.accumulate_grad_batches=2"]
    record = trained(tmp_path, text, *words)
    assert (record["step"], record["stopped"], record["smoke"]) == (2, "fast_dev_run", True)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2] and "val/ppl" in rows[-1]
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()
    assert (tmp_path / "curves.png").exists()
    assert phasegpt.load(tmp_path)


def test_limited_validations_score_the_first_batches_alone(tmp_path, text, monkeypatch, capsys):
    tmp_path = tmp_path / "run"
    from phasegpt.training.lit import LitGPT

    batches, real = [], LitGPT.validation_step
    monkeypatch.setattr(
        LitGPT, "validation_step", lambda self, b, i: batches.append(i) or real(self, b, i)
    )
    words = ["trainer.limit_val_batches=3", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    record = trained(tmp_path, text, *words)
    assert batches == [0, 1, 2] * 2
    assert record["smoke"] and record["stopped"] == "max_steps"
    out = capsys.readouterr().out
    assert f"({3 * 2 * 16} scored" in out and "SMOKE RUN: not trained" in out
    assert "trigram" not in out  # that is of the whole split
    (job,) = jobs(tmp_path.parent)
    assert job.smoke and job.status == "ok"
    card = hf_contents(load_run(tmp_path), licence="mit")["README.md"].decode()
    assert "this was a smoke run" in card and "perplexity" not in card


def test_overfitting_repeats_its_batches(text):
    run = composed(*WORDS, *text, "trainer.overfit_batches=2", "trainer.max_steps=5")
    data = data_module(run, prepare(run.data))
    samples = [batch["sample"].tolist() for batch in data.train_dataloader()]
    assert samples == [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]
    data.load_state_dict({"consumed": 3})
    assert [batch["sample"].tolist() for batch in data.train_dataloader()] == samples[3:]


def test_overfitting_learns_its_batches(tmp_path, text):
    record = trained(tmp_path, text, "trainer.overfit_batches=1", "optimizer.lr=0.03")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert record["smoke"] and rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert rows[-1]["val/loss"] > rows[-1]["train/loss"] + 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("fast_dev_run=true overfit_batches=2", "overfit_batches=2 does nothing while .*dev_run=1"),
        (
            "fast_dev_run=3 limit_val_batches=2",
            "val_batches=2 does nothing while .*dev_run=3",
        ),
        ("overfit_batches=3 limit_val_batches=2", "limit_val_batches=2 does nothing while .*fit_b"),
        ("fast_dev_run=-1", "fast_dev_run=-1 must be true, false, or a whole number"),
        ("limit_val_batches=0", "limit_val_batches=0 is out of range"),
        ("limit_val_batches=0.5", "limit_val_batches=0.5 must be a whole number"),
        ("profiler=fast", "profiler=.fast. is not allowed.*simple, advanced, pytorch"),
    ],
)
def test_what_makes_no_sense_together_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        composed(*(f"trainer.{word}" for word in words.split()))


def test_smoke_runs_are_kept_off_tables_and_it_is_said(tmp_path, text, capsys):
    trained(tmp_path / "runs" / "a-seed1", text, "trainer.fast_dev_run=true")
    assert collect(tmp_path / "runs", tmp_path / "study") == []
    assert "left out, as smoke runs: a-seed1" in capsys.readouterr().err
    registration = read()
    record = read_record(tmp_path / "runs" / "a-seed1")
    stamp = {"original": registration.hash, "amendments": []}
    ledger = verdicts.admit(registration, {"a": {**record, "preregistration": stamp}})
    assert ledger.excluded["a"].startswith("is a smoke run")


def test_a_whole_run_is_not_marked(tmp_path, text):
    record = trained(tmp_path, text, "trainer.max_steps=1", "trainer.profiler=simple")
    assert "smoke" not in record
    profile = (tmp_path / "fit-profile.txt").read_text()
    assert "run_training_batch" in profile


@pytest.mark.parametrize(("kind", "shows"), [("advanced", "training_step"), ("pytorch", "aten::")])
def test_a_profile_is_written_into_the_run_folder(tmp_path, text, kind, shows):
    trained(tmp_path, text, "trainer.fast_dev_run=true", f"trainer.profiler={kind}")
    assert shows in (tmp_path / "fit-profile.txt").read_text()


def test_a_text_too_short_for_a_block_is_found_before_the_run_begins(tmp_path):
    (tmp_path / "short.txt").write_text("abcdefghijklmnopq" * 2)
    short = [f"data.path={tmp_path / 'short.txt'}", f"data.cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(DataError, match=r"too few for one window of model\.block_size=64"):
        trained(tmp_path / "run", short, "model.block_size=64")
    assert not (tmp_path / "run").exists()
