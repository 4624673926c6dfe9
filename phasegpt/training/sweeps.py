"""Multiruns: the plan written before the first job, a job in its folder, the report at the end.

`sweep.json` in the sweep's folder lists the jobs as they were last started; what became of them is
in their run.json (phasegpt.training.jobs). A job is known by its config hash, so a sweep that is
started again leaves finished runs as they are and goes on with the others.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.experimental.callback import Callback

from phasegpt.core.console import tell
from phasegpt.core.errors import CheckpointError, ConfigError, UserError
from phasegpt.core.files import write_atomic
from phasegpt.core.secrets import masked
from phasegpt.training import ranks, sweep_resources

if TYPE_CHECKING:
    from phasegpt.training.config import RunConfig


class Plan(Callback):
    """Writes sweep.json; a sweep without a job ends here with an explanation."""

    folder: ClassVar[Path | None] = None  # of the multirun that this process began
    ended: ClassVar[threading.Event] = threading.Event()  # its jobs have

    @classmethod
    def finish(cls) -> int:
        """Report on the multirun that this process began, if any: the command's exit status."""
        folder, cls.folder = cls.folder, None
        cls.ended.set()
        return 0 if folder is None else report(folder)

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Called by Hydra before any job; it would turn an exception into a warning."""
        try:
            ranks.refuse_multirun()
            jobs = _planned(config)
            sweep_resources.open_study(config)
        except ConfigError as error:
            if ranks.said_by_others(error):
                sys.exit(0)
            sys.stderr.write(f"ConfigError: {error}\n")
            sys.exit(error.exit_code)
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        Plan.folder, Plan.ended = folder, threading.Event()
        write_atomic(folder / "sweep.json", (json.dumps({"jobs": jobs}, indent=2) + "\n").encode())
        sweep_resources.reserve_gpus(config)
        if not config.hydra.launcher._target_.endswith(".BasicLauncher"):
            # The jobs' own lines go elsewhere; no more than a look into their folders is needed.
            told = threading.Thread(target=_watch, args=(folder, Plan.ended), daemon=True)
            told.start()


_LOOK_EVERY_S = 5.0


def _watch(sweep: Path, ended: threading.Event) -> None:
    """Say how many jobs are in what state whenever that changes."""
    from phasegpt.training.jobs import counted, jobs

    said = ""
    while not ended.wait(_LOOK_EVERY_S):
        with suppress(UserError, OSError):  # the report at the end names what is damaged
            if (now := counted(jobs(sweep))) != said:
                said = now
                tell(f"{time.strftime('%H:%M:%S')}  {now}")


def _planned(config: Any) -> list[dict[str, Any]]:
    """Name, overrides and config hash (or error) of every job; none are known to a search."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        return []
    loader = GlobalHydra.instance().config_loader()
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    words += config.hydra.overrides.task
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    if not batch:
        empty = [
            override.input_line
            for override in overrides
            if override.is_sweep_override() and not list(override.sweep_string_iterator())
        ]
        raise ConfigError(
            f"this sweep composes no job: nothing matches {', '.join(map(str, empty))}. A glob "
            f"sees only the direct children of its group, as in '+experiment/phase_a=glob(*)'"
        )
    _name_by_what_varies(config, batch)
    return [_job(loader, config, number, words) for number, words in enumerate(batch)]


_SUBDIR = "${hydra.job.num}-${name}"  # conf/config.yaml's; sweeps with names of their own keep them


def _name_by_what_varies(config: Any, batch: Sequence[Sequence[str]]) -> None:
    """Have the jobs' folders say in what they differ: 3-quickstart-attention.coupling-2-seed-1."""
    from omegaconf import OmegaConf, open_dict, read_write

    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if sweep["subdir"] != _SUBDIR:
        return
    values: dict[str, set[str]] = {}
    for word in (word for words in batch for word in words):
        key, _, value = word.partition("=")
        values.setdefault(key.lstrip("+"), set()).add(value)
    # A name is one folder, and no folder has a name of 300 letters.
    shown = {
        key
        for key, given in values.items()
        if len(given) > 1 and not any("/" in text or len(text) > 40 for text in (key, *given))
    }
    if not shown or len(shown) > 4:
        return
    quoted = ",".join(f"'{key}'" for key in values if key not in shown)
    naming = "hydra.job.config.override_dirname"
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra += [
            f"{naming}.exclude_keys=[{quoted}]",
            f"{naming}.kv_sep='-'",
            f"{naming}.item_sep='-'",
            f"hydra.sweep.subdir='{_SUBDIR}-${{hydra.job.override_dirname}}'",
        ]


def _job(loader: Any, config: Any, number: int, words: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf, open_dict, read_write

    from phasegpt.training.config import run_config

    job = loader.load_sweep_config(config, list(words))
    with read_write(job), open_dict(job):
        job.hydra.job.num = number
        found = {"name": str(job.hydra.sweep.subdir), "overrides": masked(words), "error": None}
        OmegaConf.resolve(job.hydra.sweep)
        del job["hydra"]
    try:
        return {**found, "config_hash": _one_process(run_config(job)).hash}
    except ConfigError as error:
        return {**found, "config_hash": None, "error": f"ConfigError: {error}"}


def _one_process(run: RunConfig) -> RunConfig:
    if run.trainer.processes > 1:
        raise ConfigError(
            f"trainer.devices={run.trainer.devices} in a multirun: every further process would run "
            f"the whole sweep again. One job is one process here: use trainer.devices=1 and run "
            f"several jobs at once (+launcher=joblib), or start the run without -m"
        )
    return run


def train_job(
    run: RunConfig, folder: Path, sweep: Path, number: int, *, sees_all: bool = True
) -> dict[str, Any]:
    """Train one job of the multirun in `sweep`, or go on with the run that has its configuration.

    `sees_all`: the jobs see every GPU of their machine, so each takes one for itself; under Slurm
    a job is given its own.

    `folder` is the job's own, where no run has begun; if a run of another configuration has, as in
    a sweep that was widened, the job gets a folder named after its hash too. Whatever goes wrong
    stands in run.json.
    """
    import torch

    from phasegpt.training.run import fit
    from phasegpt.training.run_folder import FINISHED, RunFolder, provenance, read_record

    run = _one_process(run)
    if "wandb" in run.logger.besides and run.logger.group is None:
        run = replace(run, logger=replace(run.logger, group=group(sweep)))
    for file in sorted(sweep.glob("*/run.json")):
        with suppress(CheckpointError):  # what is damaged there is not this job's to mend
            if read_record(file.parent).get("config_hash") == run.hash:
                folder = file.parent
    earlier = read_record(folder)
    numbered = folder.name.startswith(f"{number}-")  # where a name says less than a configuration
    if numbered and earlier and earlier.get("config_hash") != run.hash:
        folder = folder.with_name(f"{folder.name}-{run.hash[:6]}")
    if earlier := read_record(folder):
        run = replace(run, resume=True)
    trains = run.trainer.accelerator != "cpu" and earlier.get("status") not in FINISHED
    count = torch.cuda.device_count() if sees_all and trains else 0
    try:
        with sweep_resources.one_gpu(sweep, number, count) as gpu:
            return fit(run, folder, gpu=gpu)
    except Exception as error:
        if not read_record(folder):  # it failed before it began: the data, as a rule
            record = RunFolder(folder)
            record.update(
                **provenance(run), status="failed", error=f"{type(error).__name__}: {error}"
            )
            record.close()
        raise


def group(sweep: Path) -> str:
    """The name under which W&B groups the runs of a multirun: the sweep's folder and its parent.

    W&B takes at most 128 characters.
    """
    return "-".join(sweep.parts[-2:])[-128:]


def report(sweep: Path) -> int:
    """Say how a multirun ended and name every job that is not done.

    Returns 0 if every job is finished, and a collapse is a result too; else 1. Of a search, which
    other processes may go on with, jobs that are running count as theirs.
    """
    from phasegpt.training.jobs import counted, jobs, planned
    from phasegpt.training.run_folder import FINISHED

    try:
        found = jobs(sweep)
    except UserError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    undone = [job for job in found if job.status != "ok"]
    lines = [f"{sweep}: {counted(found)}"]
    lines += [f"  {job.name}  {job.status}  {job.error or ''}".rstrip() for job in undone]
    if again := sum(job.again for job in found):
        lines.append(f"the same command again runs {again} of these")
    sys.stderr.write("\n".join(lines) + "\n")
    done = FINISHED if planned(sweep / "sweep.json") else (*FINISHED, "running")
    return 1 if any(job.status not in done for job in found) else 0
