"""One run from its configuration to its results: data, model, training, record."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from phasegpt.core.composition import to_yaml
from phasegpt.core.console import show, tell
from phasegpt.core.errors import CheckpointError, Collapsed, ConfigError, Interrupted, UserError
from phasegpt.core.files import write_atomic
from phasegpt.data.corpus import Corpus, prepare
from phasegpt.model import checkpoint
from phasegpt.training import multiprocess
from phasegpt.training.assemble import Assembled, assemble
from phasegpt.training.config import RunConfig, hashed_fields, run_config
from phasegpt.training.loggers import check_packages, finish, showing
from phasegpt.training.preregistration import stamp
from phasegpt.training.run_folder import (
    RunFolder,
    newest_unfinished,
    provenance,
    read_metrics,
    read_record,
)
from phasegpt.training.signals import StopSignals
from phasegpt.training.summary import closing, draw_curves, header, prompt_ids, sample


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
        tell(f"no unfinished run of this configuration in {run_dir.parent}; starting at step 0")
        return run_dir
    return found


def fit(config: Any, run_dir: str | Path, *, gpu: int = 0) -> dict[str, Any]:
    """Train `config` (see phasegpt.compose) in `run_dir` and return its run.json as a dict.

    `gpu` is the one to use, counted round where there are fewer. With config.resume the run there
    goes on from its last checkpoint. A finished run is returned unchanged, a collapsed one raises
    Collapsed again. Raises UserError subclasses: ConfigError, DataError, CheckpointError,
    Collapsed, Interrupted; run.json then says so. What is shown after the training (sample, curves,
    summary, loggers) can fail without changing the result: a line on stderr says so.
    """

    run, run_dir = run_config(config), Path(run_dir)
    _check_device(run)
    check_packages(run.logger)
    with StopSignals() as stop:
        folder = RunFolder(run_dir)
        try:
            earlier = folder.record
            if earlier and earlier["config_hash"] != run.hash:
                raise CheckpointError(_difference(run_dir, earlier["config"], run.to_dict()))
            if earlier.get("status") == "collapsed":
                raise Collapsed(
                    f"{run_dir} had collapsed and is left unchanged: {earlier['error']}"
                )
            if earlier.get("status") == "ok":
                tell(f"{run_dir} is finished; nothing to do")
                return earlier
            return _fit(run, folder, gpu, stop)
        finally:
            folder.close()


def _fit(run: RunConfig, folder: RunFolder, gpu: int, stop: StopSignals) -> dict[str, Any]:
    """Train, and record how it ended; then show it."""

    begun = False
    try:
        corpus = prepare(run.data)
        earlier = folder.record.get("data")
        if earlier and earlier["fingerprint"] != corpus.fingerprint:
            raise CheckpointError(
                f"the data changed since {folder.path} began; put the old text back, or start anew"
            )
        if run.callbacks.sample_text.max_new_tokens:
            prompt_ids(run, corpus)
        resume_point = _resume_point(run, folder)
        begun = True
        _begin(run, folder)
        folder.update(status="running", data=_describe(corpus), error=None)
        parts = _train(run, folder, corpus, gpu, resume_point, stop)
    except BaseException as error:
        stop.hold()  # until the record says what happened
        if begun or isinstance(error, Interrupted):
            _begin(run, folder)
            folder.update(**_ending(error))
        stop.resume_raising()
        _attempt("logger", lambda: finish(folder))
        if _interrupted(error) and not isinstance(error, Interrupted):
            raise Interrupted(f"stopped by Ctrl-C; {stop.advice}", signal.SIGINT) from error
        raise
    stop.advice = "the run was finished and is recorded"
    stop.resume_raising()
    stop.check()
    _present(run, folder, corpus, parts)
    stop.check()
    return folder.record


def _begin(run: RunConfig, folder: RunFolder) -> None:
    """Write config.yaml and what produced the run, where an earlier start did not get so far."""

    file, begun = folder.path / "config.yaml", "started" in folder.record
    if not begun or not file.is_file():
        config = folder.record["config"] if begun else run.to_dict()
        write_atomic(file, to_yaml(config).encode())
    if not begun:
        folder.update(started=_now(), preregistration=stamp(), **provenance(run))


def _ending(error: BaseException) -> dict[str, str]:
    """Status and error of a training that this has ended."""

    status = "interrupted" if _interrupted(error) else "failed"
    if isinstance(error, UserError):
        status = "collapsed" if isinstance(error, Collapsed) else status
        return {"status": status, "error": str(error)}
    return {"status": status, "error": f"{type(error).__name__}: {error}"}


def _interrupted(error: BaseException) -> bool:
    """Whether a signal ended the training; Lightning makes a SystemExit of a KeyboardInterrupt."""

    cause = error.__context__ if isinstance(error, SystemExit) else error
    return isinstance(cause, Interrupted | KeyboardInterrupt)


def _train(
    run: RunConfig,
    folder: RunFolder,
    corpus: Corpus,
    gpu: int,
    resume_point: Path | None,
    stop: StopSignals,
) -> Assembled:
    """Build everything, train, and write the results into run.json."""

    t = run.trainer
    with multiprocess.started(run, folder.path, resume_point) as rank:
        parts = assemble(run, folder, corpus, gpu=gpu, rank=rank, stop=stop)
        model = parts.lit.model
        parameters = {
            "non_embedding": model.num_parameters(),
            "all": model.num_parameters(non_embedding=False),
        }
        folder.update(parameters=parameters, leaky=model.leaky)
        tell(header(run, folder, parts))
        parts.fit(resume_point)
    last, seconds = parts.trainer.global_step, parts.saver.wall_seconds
    stopped = "max_steps" if last >= t.max_steps else "early_stopping"
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
    return parts


def _present(run: RunConfig, folder: RunFolder, corpus: Corpus, parts: Assembled) -> None:
    """Show a finished run; each part by itself, so that one that fails takes no other along."""

    _attempt("curves.png", lambda: draw_curves(run, folder, corpus))
    text = _attempt("the sample", lambda: sample(run, folder, corpus)) or ""
    prompt, step = run.callbacks.sample_text.prompt, parts.trainer.global_step
    for logger in showing(parts.trainer.loggers) if text else ():
        _attempt("the sample's logger", partial(logger.sample, prompt, text, step))
    _attempt("the summary", lambda: show(closing(run, folder, corpus, text)))
    _attempt("the logger", lambda: finish(folder))


def _attempt(what: str, action: Callable[[], Any]) -> Any:
    """Do what the result does not depend on; a failure is a line, unless it is a signal."""

    try:
        return action()
    except Interrupted:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        tell(f"warning: {what} failed ({type(error).__name__}: {reason}); the run is unharmed")
        return None


def _resume_point(run: RunConfig, folder: RunFolder) -> Path | None:
    """The checkpoint to start from, or None for step 0, where nothing was ever saved.

    That is where last.ckpt points, or, where a copy of the run lost its links, the newest step
    file. CheckpointError if that is damaged, or if run.json knows of more than there is.
    """

    if run.resume is False:
        return None
    if isinstance(run.resume, str) and Path(run.resume).is_file():
        return _resumable(Path(run.resume))
    directory = folder.path / "checkpoints"
    link, steps = directory / "last.ckpt", sorted(directory.glob("step-*.ckpt"))
    if link.is_symlink() and link.exists():
        point = link.resolve()
    elif steps:
        point = steps[-1]
    elif saved := folder.record.get("step"):
        raise CheckpointError(
            f"{folder.path}/run.json says that step {saved} was saved, but {directory} holds no "
            f"step-*.ckpt; copy the checkpoints too, with their .sha256, or start anew elsewhere"
        )
    else:
        tell(f"no checkpoint yet in {folder.path}; starting at step 0")
        return None
    return _resumable(point)


def _resumable(point: Path) -> Path:
    """`point`, once it was read and found to hold a whole training."""

    if "optimizer_states" not in checkpoint.read(point):
        raise CheckpointError(
            f"{point} holds weights alone; resume from the run's folder or a step-*.ckpt of it"
        )
    tell(f"going on with {point}")
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


def _final(path: Path) -> dict[str, float]:
    """The last value of every metric."""

    final: dict[str, float] = {}
    for row in read_metrics(path / "metrics.csv"):
        final |= row
    final.pop("step", None)
    return final


def _describe(corpus: Any) -> dict[str, Any]:
    return {"fingerprint": corpus.fingerprint, **corpus.meta}


def _difference(path: Path, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Error text naming the keys in which two configurations differ."""
    a, b = hashed_fields(old), hashed_fields(new)
    changed = [
        f"{k} was {a.get(k)!r} and is {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)
    ]
    return (
        f"{path} holds a run of another configuration: {'; '.join(changed[:6])}. "
        f"Start it in another folder, or take the change back"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
