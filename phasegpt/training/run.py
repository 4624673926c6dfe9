"""One run from its configuration to its results: data, model, training, record."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from phasegpt.core import arguments
from phasegpt.core.allocator import keep_freed_memory
from phasegpt.core.composition import to_yaml
from phasegpt.core.console import show, tell
from phasegpt.core.errors import CheckpointError, Collapsed, Interrupted, UserError
from phasegpt.core.files import write_atomic
from phasegpt.data.corpus import Corpus, prepare
from phasegpt.model import pretrained
from phasegpt.model.loaded import code_changed
from phasegpt.training import multiprocess
from phasegpt.training.assemble import Assembled, assemble, check_device, data_module
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.extras import class_name, own_extras
from phasegpt.training.follower import follow
from phasegpt.training.loggers import check_packages, finish, showing
from phasegpt.training.optim import check_own
from phasegpt.training.preregistration import stamp
from phasegpt.training.ranks import placed, rank
from phasegpt.training.resume import difference, resume_point, written_over
from phasegpt.training.run_figure import draw_curves
from phasegpt.training.run_folder import (
    RunFolder,
    environment,
    provenance,
    read_metrics,
)
from phasegpt.training.signals import StopSignals
from phasegpt.training.size import size
from phasegpt.training.summary import closing, header, prompt_ids, sample


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
    that step are logged again. Those that config.callbacks.extra and config.logger.extra name come
    first. run.json names the classes of both. Only for trainer.devices=1.

    `gpu` is the one to use, counted round where there are fewer. With config.resume the run there
    goes on from its last checkpoint, or from the one of its own that it names; without, an
    unfinished run there is a CheckpointError. A finished run is returned unchanged, a collapsed one
    raises Collapsed again. Raises UserError subclasses: ConfigError, DataError, CheckpointError,
    Collapsed, Interrupted; run.json then says so. What is shown after the training (sample, curves,
    summary, loggers) can fail without changing the result: a line on stderr says so.

    With trainer.devices=N it trains in N processes that it starts. Where torchrun or srun has
    started several, all call it; `run_dir` is the first one's, and the others return an empty dict.
    Raises ProcessFailed where a process is lost.
    """
    run, run_dir = placed(run_config(config)), arguments.path("run_dir", run_dir)
    arguments.whole("gpu", gpu, 0)
    keep_freed_memory()
    mine = rank()
    if mine is not None and not mine.first:
        return follow(run, mine)
    peers = None if mine is None else multiprocess.Peers(mine, run)
    try:
        check_device(run)
        check_own(run.optimizer)
        extras = own_extras(run, callbacks, loggers)
        check_packages(run.logger)
        if run.trainer.devices > 1 and peers is None:
            return multiprocess.launch(run, run_dir)
        return _fit_in(run, run_dir, gpu, peers, extras)
    finally:
        if peers is not None:
            peers.end()


def _fit_in(
    run: RunConfig,
    run_dir: Path,
    gpu: int,
    peers: multiprocess.Peers | None,
    extras: dict[str, list[Any]],
) -> dict[str, Any]:
    """Hold the folder and train in it, as the first of the run's processes."""
    with StopSignals() as stop:
        # Hold the folder; what is there must be this configuration's, and not finished.
        folder = RunFolder(run_dir)
        try:
            earlier = folder.record
            if earlier and not {"config", "config_hash"} <= earlier.keys():
                raise CheckpointError(
                    f"{run_dir}/run.json does not say which configuration it is of; restore it, or "
                    f"start in another folder"
                )
            if earlier and earlier["config_hash"] != run.hash:
                raise CheckpointError(difference(run_dir, earlier["config"], run.to_dict()))
            if changed := code_changed(earlier, run.attention.name):
                raise CheckpointError(
                    f"{run_dir} holds a run that cannot be gone on with: {changed}; give a new "
                    f"folder, there with its weights by init_from={run_dir}, or put the old code "
                    f"back"
                )
            if earlier.get("status") == "collapsed":
                raise Collapsed(
                    f"{run_dir} had collapsed and is left unchanged: {earlier['error']}"
                )
            if earlier.get("status") == "ok":
                tell(f"{run_dir} is finished; nothing to do")
                return earlier
            if earlier and run.resume is False:
                raise written_over(run_dir)
            return _fit(run, folder, gpu, peers, stop, extras)
        finally:
            folder.close()


def _fit(
    run: RunConfig,
    folder: RunFolder,
    gpu: int,
    peers: multiprocess.Peers | None,
    stop: StopSignals,
    extras: dict[str, list[Any]],
) -> dict[str, Any]:
    """Train, and record how it ended; then show it."""
    begun = False
    try:
        # The text must be the one that the run began with, and all that comes later possible.
        corpus = prepare(run.data)
        earlier = folder.record.get("data")
        if earlier and earlier["fingerprint"] != corpus.fingerprint:
            raise CheckpointError(
                f"the data changed since {folder.path} began; put the old text back, or start anew"
            )
        data_module(run, corpus)
        if run.callbacks.sample_text.max_new_tokens and corpus.task is None:
            prompt_ids(run, corpus)
        resume_from = resume_point(run, folder)
        start = _start(run, folder, corpus) if resume_from is None else None

        # Write down what is about to run, then train; how it ended goes into run.json too.
        begun = True
        _begin(run, folder)
        _note_start(folder)
        shown = {k: v for k, v in extras.items() if v or k in folder.record}
        classes = {k: [class_name(x) for x in v] for k, v in shown.items()}
        folder.update(status="running", data=_describe(corpus), error=None, **classes)
        if peers is not None:
            point = None if resume_from is None else str(resume_from.absolute())
            peers.begin(
                folder=str(folder.path.absolute()),
                checkpoint=point,
                config_hash=run.hash,
                data=corpus.fingerprint,
            )
        parts = _train(run, folder, corpus, gpu, resume_from, start, stop, extras)
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

    # What comes now is for show: it cannot change the result.
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
        smoke = {"smoke": True} if run.trainer.smoke else {}
        folder.update(started=_now(), preregistration=stamp(), **provenance(run), **smoke)


def _note_start(folder: RunFolder) -> None:
    """Say in `resumed` where this start has other code, packages or hardware than the last."""
    resumed, here = list(folder.record.get("resumed", [])), environment()
    last = resumed[-1] if resumed else folder.record
    if any(last.get(key) != value for key, value in here.items()):
        folder.update(resumed=[*resumed, {"started": _now(), **here}])


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
    resume_from: Path | None,
    start: pretrained.Start | None,
    stop: StopSignals,
    extras: dict[str, list[Any]],
) -> Assembled:
    """Build everything, train, and write the results into run.json."""
    t = run.trainer
    parts = assemble(run, folder, corpus, gpu=gpu, rank=rank(), stop=stop, **extras)
    model = parts.lit.model
    if start is not None:  # the other processes get the weights from this one
        start.fill(model)
        folder.update(init_from=start.record)
    folder.update(**size(model, parts.flops), leaky=model.leaky)
    tell(header(run, folder, parts))
    parts.fit(resume_from)

    # The result: how far it came, why it ended, the best validation, how fast it was.
    last, seconds = parts.trainer.global_step, parts.saver.wall_seconds
    early = "callback" if run.callbacks.early_stopping.patience is None else "early_stopping"
    stopped = early if last < t.steps else "fast_dev_run" if t.fast_dev_run else "max_steps"
    stopped = "solved" if parts.solved is not None and parts.solved.reached else stopped
    if parts.guard is not None:
        folder.update(guard=parts.guard.events)
        stopped = "collapse_guard" if parts.guard.stopped else stopped
    if parts.lit.skipped is not None:
        folder.update(skipped_steps=parts.lit.skipped)
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


def _start(run: RunConfig, folder: RunFolder, corpus: Corpus) -> pretrained.Start | None:
    """What a run begins with at step 0, None for fresh weights.

    CheckpointError if an earlier start of the run had others under that name.
    """

    if run.init_from is None:
        return None
    tokenizer = corpus.tokenizer
    start = pretrained.start(run.init_from, run.gpt(tokenizer.vocab_size), tokenizer)
    earlier = folder.record.get("init_from")
    if earlier and earlier["sha256"] != start.record["sha256"]:
        raise CheckpointError(
            f"the weights of init_from={run.init_from} changed since {folder.path} began; put the "
            f"old ones back, or start anew elsewhere"
        )
    return start


def _final(path: Path) -> dict[str, float]:
    """The last value of every metric, where it is finite: JSON has no others."""
    final: dict[str, float] = {}
    for row in read_metrics(path / "metrics.csv"):
        final |= row
    final.pop("step", None)
    return {name: value for name, value in final.items() if math.isfinite(value)}


def _describe(corpus: Any) -> dict[str, Any]:
    return {"fingerprint": corpus.fingerprint, **corpus.meta}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
