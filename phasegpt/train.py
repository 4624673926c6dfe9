"""`python -m phasegpt.train`: train a model as conf/ describes it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra

from phasegpt.config import CONF_DIR, RunConfig, hashed_fields
from phasegpt.errors import CheckpointError, Collapsed, ConfigError, UserError
from phasegpt.files import write_atomic

if TYPE_CHECKING:
    from phasegpt.record import RunFolder


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def main(cfg: Any) -> Any:
    """Command line."""
    from phasegpt.shell import guarded
    from phasegpt.train import train_from_hydra

    return guarded(lambda: train_from_hydra(cfg), debug=cfg.get("debug") is True)


def train_from_hydra(cfg: Any) -> float | None:
    """Train in Hydra's run folder, or go on with an earlier run; returns the best val/ppl."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from phasegpt.build import run_config

    settings = HydraConfig.get()
    run_dir = Path(settings.runtime.output_dir)
    given = any(o.startswith("hydra.run.dir=") for o in settings.overrides.hydra)
    try:
        run = run_config(cfg)
        if settings.mode == RunMode.MULTIRUN:
            from phasegpt.sweeps import train_job

            record = train_job(run, run_dir, Path(settings.sweep.dir), settings.job.num)
        elif sweep := settings.runtime.choices.get("sweep"):
            raise ConfigError(f"+sweep={sweep} lists the jobs of a multirun; add -m to start them")
        else:
            record = train(run, choose_folder(run, run_dir, given=given))
    finally:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()  # Hydra made it; another folder was used, or nothing was
    return (record.get("best") or {}).get("val/ppl")


def choose_folder(run: RunConfig, run_dir: Path, *, given: bool) -> Path:
    """The folder of this run: `run_dir`, or with `resume` the one it continues.

    `given`: the user chose run_dir. Raises CheckpointError rather than write over a run.
    """
    from phasegpt.record import newest_unfinished, read_record

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


def train(config: Any, run_dir: str | Path, *, gpu: int = 0) -> dict[str, Any]:
    """Train `config` (see phasegpt.compose) in `run_dir` and return its run.json as a dict.

    `gpu` is the one to use, counted round where there are fewer. With config.resume the run there
    goes on from its last checkpoint. A finished run is returned unchanged, a collapsed one raises
    Collapsed again. Raises UserError subclasses: ConfigError, DataError, CheckpointError,
    Collapsed, Interrupted; run.json then says so.
    """
    from phasegpt.analysis.preregistration import stamp
    from phasegpt.build import run_config
    from phasegpt.data import prepare
    from phasegpt.record import RunFolder, provenance

    run, run_dir = run_config(config), Path(run_dir)
    _check_device(run)
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
        corpus = prepare(run.data)
        if "data" in earlier and earlier["data"]["fingerprint"] != corpus.fingerprint:
            raise CheckpointError(
                f"the data changed since {run_dir} began; put the old text back, or start anew"
            )
        if "started" not in earlier:
            folder.update(started=_now(), preregistration=stamp(), **provenance(run))
            _write_config(folder, run)
        folder.update(status="running", data=_describe(corpus), error=None)
        from phasegpt.loggers import finish

        try:
            _fit(run, folder, corpus, gpu)
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


def _fit(run: RunConfig, folder: RunFolder, corpus: Any, gpu: int) -> None:
    """Build everything, train, and write the results into run.json."""
    from phasegpt import ranks
    from phasegpt.loggers import showing
    from phasegpt.summary import closing, draw_curves, estimate, sample
    from phasegpt.trainer import assemble

    resume_point, t = _resume_point(run, folder), run.trainer
    with ranks.started(run, folder.path, resume_point) as rank:
        parts = assemble(run, folder, corpus, gpu=gpu, rank=rank)
        model = parts.lit.model
        parameters = {
            "non_embedding": model.num_parameters(),
            "all": model.num_parameters(non_embedding=False),
        }
        folder.update(parameters=parameters, leaky=model.leaky)
        if not parts.cuda:
            estimate(parts.flops_per_token * parts.tokens_per_step * t.max_steps)
        parts.fit(resume_point)
    draw_curves(folder.path)
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
    text = sample(run, folder, corpus)
    for logger in showing(parts.trainer.loggers) if text else ():
        logger.sample(run.callbacks.sample_text.prompt, text, last)
    print(closing(run, folder, corpus, text))


def _resume_point(run: RunConfig, folder: RunFolder) -> Path | None:
    """The checkpoint to start from, or None for step 0."""
    from phasegpt import checkpoint

    if run.resume is False:
        return None
    if isinstance(run.resume, str) and Path(run.resume).is_file():
        return Path(run.resume)
    link = folder.path / "checkpoints" / "last.ckpt"
    if not link.exists():
        _say(f"no checkpoint yet in {folder.path}; starting at step 0")
        return None
    checkpoint.read(link)
    _say(f"going on with {link.resolve()}")
    return link.resolve()


def _check_device(run: RunConfig) -> None:
    import torch

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
    from phasegpt.record import read_metrics

    final: dict[str, float] = {}
    for row in read_metrics(path / "metrics.csv"):
        final |= row
    final.pop("step", None)
    return final


def _describe(corpus: Any) -> dict[str, Any]:
    return {"fingerprint": corpus.fingerprint, **corpus.meta}


def _write_config(folder: RunFolder, run: RunConfig) -> None:
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.create(run.to_dict()))
    write_atomic(folder.path / "config.yaml", text.encode())


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


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    from phasegpt.shell import launch

    launch(main, "data.path", config_name="config")
