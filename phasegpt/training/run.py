"""One run from its configuration to its results: data, model, training, record."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from phasegpt.core.composition import to_yaml
from phasegpt.core.errors import CheckpointError, Collapsed, ConfigError, UserError
from phasegpt.core.files import write_atomic
from phasegpt.data.corpus import prepare
from phasegpt.model import checkpoint
from phasegpt.model.migration import migrated
from phasegpt.training import multiprocess
from phasegpt.training.assemble import assemble
from phasegpt.training.config import RunConfig, hashed_fields, run_config
from phasegpt.training.loggers import finish, showing
from phasegpt.training.preregistration import stamp
from phasegpt.training.run_folder import (
    RunFolder,
    newest_unfinished,
    provenance,
    read_metrics,
    read_record,
)
from phasegpt.training.summary import closing, draw_curves, estimate, sample


def choose_folder(run: RunConfig, run_dir: Path, *, given: bool) -> Path:
    """The folder of this run: `run_dir`, or with `resume` the one it continues.

    `given`: the user chose run_dir. Raises CheckpointError rather than write over a run.
    """

    holds = bool(read_record(run_dir))
    if run.resume is False:
        if holds:
            raise CheckpointError(
                f"{run_dir} already holds a run; choose another hydra.run.dir, or resume=true"
            )
        return run_dir
    if isinstance(run.resume, str):
        folder = Path(run.resume)
        if folder.is_file() and folder.parent.name == "checkpoints":
            folder = folder.parent.parent
        if not read_record(folder):
            raise CheckpointError(f"resume={run.resume} is not a run folder; it has no run.json")
        return folder
    if holds or given:
        return run_dir
    found = newest_unfinished(run_dir.parent, run.hash)
    if found is None:
        _say(f"no unfinished run of this configuration in {run_dir.parent}; starting at step 0")
        return run_dir
    return found


def fit(
    config: Any,
    run_dir: str | Path,
    *,
    callbacks: Iterable[Callback] = (),
    loggers: Iterable[Logger] = (),
    gpu: int = 0,
) -> dict[str, Any]:
    """Train `config` (see phasegpt.compose) in `run_dir` and return its run.json as a dict.

    callbacks: Lightning callbacks of your own, called after the run's and before a checkpoint is
    saved, which keeps their state_dict (tensors and plain values). loggers: Lightning loggers that
    get what metrics.csv gets, and, if they have a method `cut(step)`, a call before rows past
    that step are logged again. run.json names the classes of both. Only for trainer.devices=1.

    `gpu` is the one to use, counted round where there are fewer. With config.resume the run there
    goes on from its last checkpoint. A finished run is returned unchanged, a collapsed one raises
    Collapsed again. Raises UserError subclasses: ConfigError, DataError, CheckpointError,
    Collapsed, Interrupted; run.json then says so.
    """

    run, run_dir = run_config(config), Path(run_dir)
    _check_device(run)
    extras = {
        "callbacks": _extras(run, "callbacks", callbacks, Callback),
        "loggers": _extras(run, "loggers", loggers, Logger),
    }

    # Hold the folder; what is there must be this configuration's, and not finished.
    folder = RunFolder(run_dir)
    try:
        earlier = folder.record
        if earlier and earlier["config_hash"] != run.hash:
            raise CheckpointError(_difference(run_dir, earlier["config"], run.to_dict()))
        if earlier.get("status") == "collapsed":
            raise Collapsed(f"{run_dir} had collapsed and is left unchanged: {earlier['error']}")
        if earlier.get("status") == "ok":
            _say(f"{run_dir} is finished; nothing to do")
            return earlier

        # The text must be the one that the run began with.
        corpus = prepare(run.data)
        if "data" in earlier and earlier["data"]["fingerprint"] != corpus.fingerprint:
            raise CheckpointError(
                f"the data changed since {run_dir} began; put the old text back, or start anew"
            )

        # Write down what is about to run, then train; how it ended goes into run.json too.
        if "started" not in earlier:
            folder.update(started=_now(), preregistration=stamp(), **provenance(run))
            _write_config(folder, run)
        classes = {k: [_class(x) for x in v] for k, v in extras.items() if v or k in earlier}
        folder.update(status="running", data=_describe(corpus), error=None, **classes)
        try:
            _train(run, folder, corpus, gpu, **extras)
        except UserError as error:
            folder.update(status=_STATUS.get(type(error).__name__, "failed"), error=str(error))
            raise
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            folder.update(status=status, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            finish(folder)
        return folder.record
    finally:
        folder.close()


_STATUS = {"Collapsed": "collapsed", "Interrupted": "interrupted"}


def _train(run: RunConfig, folder: RunFolder, corpus: Any, gpu: int, **extras: list[Any]) -> None:
    """Build everything, train, and write the results into run.json."""

    # Train; the other processes of the run, if there are any, live as long as this block.
    resume_point, t = _resume_point(run, folder), run.trainer
    with multiprocess.started(run, folder.path, resume_point) as rank:
        parts = assemble(run, folder, corpus, gpu=gpu, rank=rank, **extras)
        model = parts.lit.model
        parameters = {
            "non_embedding": model.num_parameters(),
            "all": model.num_parameters(non_embedding=False),
        }
        folder.update(parameters=parameters, leaky=model.leaky)
        if not parts.cuda:
            estimate(parts.flops_per_token * parts.tokens_per_step * t.max_steps)
        parts.fit(resume_point)

    # The result: how far it came, why it ended, the best validation, how fast it was.
    draw_curves(folder.path)
    last, seconds = parts.trainer.global_step, parts.saver.wall_seconds
    early = "callback" if run.callbacks.early_stopping.patience is None else "early_stopping"
    stopped = "max_steps" if last >= t.max_steps else early
    if parts.guard is not None:
        folder.update(guard=parts.guard.events)
        stopped = "collapse_guard" if parts.guard.stopped else stopped
    folder.update(
        status="ok",
        finished=_now(),
        step=last,
        stopped=stopped,
        best=parts.saver.best,
        wall_seconds=round(seconds, 1),
        tokens=last * parts.tokens_per_step,
        tokens_per_s=round(last * parts.tokens_per_step / seconds, 1),
        final=_final(folder.path),
    )

    # A sample, and the closing words.
    text = sample(run, folder, corpus)
    for logger in showing(parts.trainer.loggers) if text else ():
        logger.sample(run.callbacks.sample_text.prompt, text, last)
    print(closing(run, folder, corpus, text))


def _resume_point(run: RunConfig, folder: RunFolder) -> Path | None:
    """The checkpoint to start from, or None for step 0."""

    if run.resume is False:
        return None
    if isinstance(run.resume, str) and Path(run.resume).is_file():
        point: Path | None = checkpoint.find(run.resume)
    else:
        point = checkpoint.last(folder.path / "checkpoints")
    if point is None:
        _say(f"no checkpoint yet in {folder.path}; starting at step 0")
        return None
    checkpoint.check_resumable(point)
    _say(f"going on with {point}")
    return point


def _check_device(run: RunConfig) -> None:

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


def _extras(run: RunConfig, name: str, given: Iterable[Any], kind: type) -> list[Any]:
    """The user's own callbacks or loggers as a list. Raises ConfigError."""
    if not isinstance(given, Iterable) or isinstance(given, kind):
        raise ConfigError(f"{name} is a {_class(given)}; give a list of them, {name}=[...]")
    found = list(given)
    for one in found:
        if not isinstance(one, kind):
            raise ConfigError(
                f"{name} holds a {_class(one)}; each must be a {_class(kind)}, from the package "
                f"pytorch_lightning"
            )
    if found and run.trainer.devices > 1:
        raise ConfigError(
            f"{name}=[{', '.join(map(_class, found))}] with trainer.devices={run.trainer.devices}: "
            f"the other processes could not have them; leave them out, or set trainer.devices=1"
        )
    return found


def _class(thing: Any) -> str:
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _final(path: Path) -> dict[str, float]:
    """The last value of every metric."""

    final: dict[str, float] = {}
    for row in read_metrics(path / "metrics.csv"):
        final |= row
    final.pop("step", None)
    return final


def _describe(corpus: Any) -> dict[str, Any]:
    return {"fingerprint": corpus.fingerprint, **corpus.meta}


def _write_config(folder: RunFolder, run: RunConfig) -> None:
    write_atomic(folder.path / "config.yaml", to_yaml(run.to_dict()).encode())


def _difference(path: Path, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Error text naming the keys in which two configurations differ."""
    a, b = (hashed_fields(config, migrated) for config in (old, new))
    changed = [
        f"{k} was {a.get(k)!r} and is {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)
    ]
    return (
        f"{path} holds a run of another configuration: {'; '.join(changed[:6])}. "
        f"Start it in another folder, or take the change back"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _say(text: str) -> None:
    print(text, file=sys.stderr)
