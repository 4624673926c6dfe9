"""A run's Lightning Trainer, module, data and callbacks, put together from its configuration."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import DoublePrecision
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from pytorch_lightning.strategies import DDPStrategy

from phasegpt.attention import Flops
from phasegpt.core.errors import ConfigError, UserError
from phasegpt.data.config import TaskConfig
from phasegpt.data.corpus import Corpus, prepare
from phasegpt.model import checkpoint
from phasegpt.training import callbacks as cb
from phasegpt.training.checkpointing import Saver, VerifiedIO
from phasegpt.training.collapse_guard import CollapseGuard
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.datamodule import DataModule
from phasegpt.training.gpus import compile_gain
from phasegpt.training.lit import LitGPT
from phasegpt.training.loggers import extra_loggers
from phasegpt.training.metrics_csv import AtSteps, MetricsCSV
from phasegpt.training.multiprocess import answering
from phasegpt.training.phase_monitor import PhaseMonitor
from phasegpt.training.run_folder import RunFolder
from phasegpt.training.sharding import Sharded
from phasegpt.training.signals import StopSignals

if TYPE_CHECKING:
    from phasegpt.training.ranks import Rank


class Assembled(NamedTuple):
    """Everything `trainer.fit` needs, and what is worth knowing about it."""

    trainer: pl.Trainer
    lit: LitGPT
    data: DataModule
    saver: Saver
    guard: CollapseGuard | None
    solved: cb.Solved | None
    cuda: bool
    tokens_per_step: int
    flops: Flops  # of a token, forward and backward

    def fit(self, resume_point: Path | None) -> None:
        """Train, from a checkpoint or from step 0; what is to be saved has been when it ends.

        Whatever restoring raises, up to the first step, is a CheckpointError, and what Lightning
        refuses of the user's own callbacks a ConfigError.
        """
        try:
            with answering(), _products(self.lit.run.trainer.tf32):
                self.trainer.fit(
                    self.lit, datamodule=self.data, ckpt_path=resume_point, weights_only=True
                )
        except Exception as error:
            if resume_point is None and isinstance(error, MisconfigurationException):
                raise ConfigError(f"Lightning refuses: {' '.join(str(error).split())}") from error
            other = isinstance(error, UserError) and not isinstance(error, ConfigError)
            if resume_point is None or self.saver.stepped or other:
                raise
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = f"{type(error).__name__}: {error!s:.300}"
            raise checkpoint.not_resumable(resume_point, why) from error
        finally:
            self.saver.writer.wait()


def assemble(
    run: RunConfig,
    folder: RunFolder,
    corpus: Corpus,
    *,
    gpu: int = 0,
    rank: Rank | None = None,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    stop: StopSignals | None = None,
) -> Assembled:
    """Seed, and build model, data, callbacks, loggers and Trainer for `run` in `folder`.

    `rank` is this process among several (see ranks); all compute, and the first one
    alone logs, monitors and shows. A single process takes GPU number `gpu`. The user's own
    `callbacks` and `loggers` come after the run's. `stop` are the signals that end the training;
    None: none do.
    """
    # Quiet Lightning, and one seed for what draws from torch's own generator.
    first = rank is None or rank.first
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    # Dropout differs between ranks; the model and the noise have seeds of their own.
    pl.seed_everything((run.seed + (0 if rank is None else rank.number)) % 2**32, verbose=False)

    # Model and data.
    t = run.trainer
    cuda = t.accelerator != "cpu" and torch.cuda.is_available()
    lit, data = lightning(run, corpus)
    model = lit.model
    if t.precision == "64-true":
        lit.double()  # Lightning does it too, but after it has read a checkpoint
    sharded = t.processes > 1 and t.strategy == "fsdp"

    # What watches, saves and stops the run, in the order in which it is called.
    time = model.config.block_size
    if isinstance(run.data, TaskConfig):
        time = run.data.time(run.data.trained)
    scored = 1.0 if corpus.task is None else corpus.task.scored_share
    flops = model.flops(time, backward=True, scored=scored)
    tokens = time * run.data.batch_size * t.accumulate_grad_batches  # of a step and process
    index = gpu % max(1, torch.cuda.device_count()) if rank is None else rank.local
    on = torch.cuda.get_device_name(index) if cuda else None
    if compiles(run, flops.products * tokens, on):
        model.compile()
    csv = MetricsCSV(folder.path / "metrics.csv")
    saver = Saver(
        folder,
        run.callbacks.checkpoint.every_n_train_steps,
        best_whole=run.callbacks.collapse_guard.action == "rollback",
        stop=stop,
    )
    metrics = cb.Metrics(t.log_every_n_steps, flops.products)
    ours: list[pl.Callback] = [metrics, cb.RngState(), saver]  # Lightning calls savers last
    if first and run.callbacks.phase_monitor.every_n_steps is not None:
        # Before the metrics, whose clock starts again when a validation is over.
        ours.insert(0, PhaseMonitor(run.callbacks.phase_monitor, folder.path))
    if run.callbacks.early_stopping.patience is not None:
        ours.append(cb.EarlyStopping(run.callbacks.early_stopping))
    solved = None
    if run.callbacks.early_stopping.accuracy is not None:
        solved = cb.Solved(run.callbacks.early_stopping.accuracy)
        ours.append(solved)
    guard = None
    if run.callbacks.collapse_guard.action is not None:
        guard = CollapseGuard(run.callbacks.collapse_guard, metrics, saver)
        ours.append(guard)
    if first and run.callbacks.progress_bar:
        ours.append(cb.Progress(metrics, t.steps))
    callbacks = [*ours, *callbacks]

    # The Trainer, with everything of Lightning's own off that a run does itself.
    trainer = pl.Trainer(
        default_root_dir=folder.path,
        accelerator="cuda" if cuda else "cpu",
        devices=[index] if cuda and rank is None else t.devices,
        num_nodes=t.num_nodes,
        strategy=_strategy(run),
        precision=None if sharded and t.precision == "64-true" else _precision(run, cuda),
        inference_mode=not sharded,
        max_steps=t.steps,
        max_epochs=-1,
        accumulate_grad_batches=t.accumulate_grad_batches,
        gradient_clip_val=t.gradient_clip_val,
        val_check_interval=t.val_check_interval * t.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        limit_val_batches=t.val_batches,
        log_every_n_steps=t.log_every_n_steps,  # of callbacks that log by themselves
        num_sanity_val_steps=0,
        deterministic=t.deterministic,
        logger=[csv, *extra_loggers(run, folder), *loggers] if first else False,
        callbacks=callbacks,
        plugins=[
            VerifiedIO(saver.write),
            LightningEnvironment() if rank is None else TorchElasticEnvironment(),
            *([DoublePrecision()] if sharded and t.precision == "64-true" else []),
        ],
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        enable_model_summary=False,
        profiler=_profiler(run, folder.path) if first else None,
        use_distributed_sampler=False,
    )
    # Signals are ours. On a SIGTERM Lightning's handler would start a broadcast in every process
    # that gets one, and before each batch it makes another, which waits for the device.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    for logger in trainer.loggers:
        if isinstance(logger, AtSteps):
            logger.trainer = trainer
    return Assembled(trainer, lit, data, saver, guard, solved, cuda, tokens * t.processes, flops)


@contextmanager
def _products(tf32: bool) -> Iterator[None]:
    """Float32 products in TF32, if so; else as the process has them, which torch begins exact."""
    before = torch.get_float32_matmul_precision()
    if tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compiles(run: RunConfig, flops_per_step: float, gpu: str | None) -> bool:
    """Whether the model is compiled: as asked, and for auto where it gains time on this `gpu`.

    Not with whole documents, whose lengths change from batch to batch, nor split over processes.
    """
    if run.compile != "auto":
        return bool(run.compile)
    split = run.trainer.processes > 1 and run.trainer.strategy == "fsdp"
    if gpu is None or split or getattr(run.data, "documents", False):
        return False
    return compile_gain(gpu, flops_per_step * run.trainer.steps) > 0


def lightning(config: Any, corpus: Corpus | None = None) -> tuple[LitGPT, DataModule]:
    """LitGPT and DataModule of a configuration, for a Trainer of your own.

    `lit, data = phasegpt.lightning(cfg)`, then `Trainer(...).fit(lit, data)`, validate or test: the
    Trainer's own settings count, and an epoch is the configuration's trainer.max_steps. Weights are
    fresh: config.init_from is for phasegpt.fit. Raises ConfigError, DataError.
    """
    run = run_config(config)
    corpus = prepare(run.data) if corpus is None else corpus
    lit = LitGPT(run.to_dict(), corpus.tokenizer.state(), corpus.tokenizer.vocab_size)
    return lit, data_module(run, corpus)


def data_module(run: RunConfig, corpus: Corpus) -> DataModule:
    """The DataModule of a run.

    DataError where the text is too short for it, ConfigError where it is to stop at an accuracy
    that its task has not.
    """
    t, solved = run.trainer, run.callbacks.early_stopping.accuracy
    if corpus.task is not None and solved is not None and solved > corpus.task.ceiling:
        raise ConfigError(
            f"callbacks.early_stopping.accuracy={solved:g} is never reached: the best predictor of "
            f"data={run.data.corpus} has {corpus.task.ceiling:.4f}; give less, such as "
            f"{0.99 * corpus.task.ceiling:.3g}"
        )
    return DataModule(
        corpus,
        run.data,
        block_size=run.model.block_size,
        seed=run.seed,
        total_batches=t.steps * t.accumulate_grad_batches,
        overfit_batches=t.overfit_batches,
        loads=run.loads,
    )


def check_device(run: RunConfig) -> None:
    """ConfigError where this machine has not the device of the configuration."""
    gpus = torch.cuda.device_count()
    if run.trainer.accelerator != "cpu" and 0 < gpus < run.trainer.devices:
        raise ConfigError(f"trainer.devices={run.trainer.devices}, but there are {gpus} GPUs here")
    if run.trainer.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=cuda, but torch sees no GPU here; use trainer=cpu or trainer=auto"
        )
    on_cpu = run.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    if run.trainer.precision == "bf16-mixed" and on_cpu:
        raise ConfigError(
            "trainer.precision=bf16-mixed is for GPUs; use 32-true, or auto to have it chosen"
        )
    if run.trainer.tf32 and on_cpu:
        raise ConfigError("trainer.tf32=true is for GPUs, and torch sees none here; leave it out")


def _profiler(run: RunConfig, folder: Path) -> Profiler | None:
    """Lightning's profiler, which writes into the run folder; None: none."""
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    kind = kinds.get(run.trainer.profiler or "")
    return None if kind is None else kind(dirpath=folder, filename="profile")


def _strategy(run: RunConfig) -> Any:
    """How the processes of a run work together."""
    t, timeout = run.trainer, timedelta(seconds=run.trainer.timeout_s)
    if t.processes == 1:
        return "auto"
    if t.strategy == "fsdp":
        return Sharded(t.processes, timeout)
    # Without a step of integration some parameters have no gradient, which DDP must be told.
    idle = getattr(run.attention.options, "steps", 1) == 0
    return DDPStrategy(timeout=timeout, find_unused_parameters=idle)


def _precision(run: RunConfig, cuda: bool) -> Any:
    if run.trainer.precision == "auto":
        return "bf16-mixed" if cuda else "32-true"
    return run.trainer.precision
