"""phasegpt.fit with Lightning callbacks and loggers of the user's own."""

from pathlib import Path
from typing import Any

import pytest
from helpers import SIX_STEPS, crash_at
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ThroughputMonitor,
    TQDMProgressBar,
)
from pytorch_lightning.loggers import Logger

import phasegpt
from phasegpt.core.errors import ConfigError
from phasegpt.training.callbacks import Metrics
from phasegpt.training.checkpointing import Saver
from phasegpt.training.run_folder import read_metrics, read_record


class Counts(Callback):
    """Counts batches, keeps the count in checkpoints, and can ask for an early end."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.batches, self.stop_at = 0, stop_at
        self.order: list[type] = []
        self.latest: dict[str, float] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
        self.order = [type(callback) for callback in trainer.callbacks]
        self.latest = dict(next(c for c in trainer.callbacks if isinstance(c, Metrics)).latest)
        if self.batches == self.stop_at:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


class Rows(Logger):
    """Keeps what it is given, by step."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.rows.setdefault(step, {}).update(metrics)

    def cut(self, step: int) -> None:
        self.rows = {at: row for at, row in self.rows.items() if at <= step}


def config(text: list[str], *words: str) -> Any:
    return phasegpt.compose([*SIX_STEPS, *text, *words])


def table(folder: Path) -> dict[int, dict[str, float]]:
    return {int(row.pop("step")): row for row in read_metrics(folder / "metrics.csv")}


def without_speed(rows: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {
        step: {k: v for k, v in row.items() if not k.startswith("perf/")}
        for step, row in rows.items()
    }


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory, text: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    phasegpt.fit(config(text), folder)
    return folder


def test_own_callbacks_come_after_ours_and_before_the_save(tmp_path, text, plain_run):
    counts, rows = Counts(), Rows()
    record = phasegpt.fit(config(text), tmp_path / "a", callbacks=[counts], loggers=(rows,))
    assert counts.batches == 6
    assert counts.order.index(Counts) == len(counts.order) - 2
    assert counts.order[-1] is Saver
    assert counts.latest["train/loss"] == table(tmp_path / "a")[6]["train/loss"]
    assert rows.rows == table(tmp_path / "a")
    assert without_speed(rows.rows) == without_speed(table(plain_run))
    assert record["callbacks"] == [f"{__name__}.Counts"]
    assert record["loggers"] == [f"{__name__}.Rows"]
    assert not {"callbacks", "loggers"} & read_record(plain_run).keys()


def test_a_resumed_run_restores_own_callbacks_and_cuts_own_loggers(tmp_path, text, plain_run):
    folder, rows = tmp_path / "a", Rows()
    with crash_at(5):
        phasegpt.fit(config(text), folder, callbacks=[Counts()], loggers=[rows])
    assert max(rows.rows) == 5
    counts = Counts()
    phasegpt.fit(config(text, "resume=true"), folder, callbacks=[counts], loggers=[rows])
    assert counts.batches == 6
    assert without_speed(rows.rows) == without_speed(table(plain_run))


def test_a_callback_can_end_a_run_and_bring_a_progress_bar(tmp_path, text):
    own = [Counts(stop_at=3), TQDMProgressBar()]
    record = phasegpt.fit(config(text), tmp_path / "a", callbacks=own)
    assert (record["status"], record["step"], record["stopped"]) == ("ok", 3, "callback")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"callbacks": Counts()}, r"callbacks is a .*Counts; give a list of them"),
        ({"loggers": 3}, r"loggers is a builtins.int; give a list of them"),
        ({"callbacks": [Rows()]}, r"callbacks holds a .*Rows; each must be a pytorch_lightning"),
        ({"callbacks": [Counts]}, r"callbacks holds a .*Counts; each must be a"),
        ({"loggers": [None]}, r"loggers holds a builtins.NoneType"),
        ({"callbacks": [Counts(1), Counts(2)]}, r"several of Counts with a state_dict"),
        (
            {"callbacks": [GradientAccumulationScheduler({0: 2})]},
            r"GradientAccumulationScheduler, .* other values .*; set trainer.accumulate_grad_b",
        ),
        ({"callbacks": [LearningRateFinder()]}, r"LearningRateFinder, .*; set optimizer.lr"),
    ],
)
def test_what_is_no_callback_or_logger_is_refused(tmp_path, text, given, says):
    with pytest.raises(ConfigError, match=says):
        phasegpt.fit(config(text), tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()


def test_averaged_weights_are_refused_beside_a_rollback(tmp_path, text):
    rollback = config(text, "callbacks.collapse_guard.action=rollback")
    with pytest.raises(ConfigError, match=r"EMAWeight.* .*action=rollback would .* use report"):
        phasegpt.fit(rollback, tmp_path / "a", callbacks=[EMAWeightAveraging()])
    assert not (tmp_path / "a").exists()


def test_what_lightning_refuses_is_one_error(tmp_path, text):
    stops = EarlyStopping("train/nothing", patience=1)
    stops.on_fit_start = lambda *_: _refuse()  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="Lightning refuses: give an epoch"):
        phasegpt.fit(config(text), tmp_path / "a", callbacks=[stops])
    assert read_record(tmp_path / "a")["status"] == "failed"


def _refuse() -> None:
    raise MisconfigurationException("give an\nepoch")


@pytest.mark.parametrize("given", [{"callbacks": [Counts()]}, {"loggers": [Rows()]}])
def test_several_processes_refuse_own_callbacks_and_loggers(tmp_path, text, given):
    with pytest.raises(ConfigError, match=r"(Counts|Rows)\] with trainer.devices=2: the other"):
        phasegpt.fit(config(text, "trainer.devices=2"), tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()


def test_lightnings_own_callbacks_work_in_a_run(tmp_path, text, plain_run):
    own = [
        LearningRateMonitor("step"),
        ThroughputMonitor(lambda batch: len(batch["idx"]), lambda batch: batch["idx"].numel()),
        ModelCheckpoint(monitor="val/loss", save_top_k=1, save_last=True),
        EarlyStopping("train/loss", patience=9),
    ]
    record = phasegpt.fit(config(text), tmp_path / "a", callbacks=own)
    assert record["status"] == "ok" and record["step"] == 6
    found = table(tmp_path / "a")
    rows = read_metrics(tmp_path / "a" / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 7))
    for step, row in without_speed(table(plain_run)).items():
        assert row.items() <= found[step].items()
        assert found[step]["train/batches"] == step and found[step]["train/lengths"] == 64 * step
        assert found[step]["lr-AdamW/pg1"] == pytest.approx(3e-6 * step)  # with which it was made
    assert found[3]["validate/batches"] == 7
    (best, last) = sorted((tmp_path / "a" / "lightning" / "checkpoints").glob("*.ckpt"))
    assert best.name == "epoch=0-step=6.ckpt" and last.name == "last.ckpt"
    assert phasegpt.load(best).num_parameters() == phasegpt.load(tmp_path / "a").num_parameters()


def test_early_stopping_of_lightning_ends_a_run(tmp_path, text):
    own = [EarlyStopping("val/loss", patience=0, min_delta=99)]
    words = [*text, "trainer.val_check_interval=2"]
    record = phasegpt.fit(config(words), tmp_path / "a", callbacks=own)
    assert (record["step"], record["stopped"]) == (4, "callback")


class Work(Callback):
    """What a token costs, as the run's speed counts it."""

    flops = 0.0

    def on_fit_start(self, trainer, pl_module):
        self.flops = next(c for c in trainer.callbacks if isinstance(c, Metrics)).flops_per_token
        self.model = pl_module.model


def test_the_speed_counts_the_work_that_the_model_states(tmp_path, text):
    work = Work()
    phasegpt.fit(config(text, "trainer.max_steps=1"), tmp_path, callbacks=[work])
    stated = work.model.flops(work.model.config.block_size, backward=True)
    assert work.flops == stated.products > 6 * work.model.lm_head.weight.numel()


class LogsNaN(Callback):
    """A metric of the user's own, which is not finite."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for logger in trainer.loggers:
            logger.log_metrics({"mine/x": float("nan")}, step=trainer.global_step)


def test_a_metric_that_is_not_finite_leaves_the_run_finished(tmp_path, text):
    record = phasegpt.fit(config(text, "trainer.max_steps=2"), tmp_path, callbacks=[LogsNaN()])
    assert record["status"] == "ok" and "mine/x" not in record["final"]
    assert "mine/x" in read_metrics(tmp_path / "metrics.csv")[-1]
