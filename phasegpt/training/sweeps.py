"""Multiruns: the plan written before the first job, a job in its folder, the report at the end.

`sweep.json` in the sweep's folder lists the jobs as they were last planned (planning.py); what
became of them is in their run.json (jobs.py). A job is known by its config hash, so a sweep that is
started again leaves finished runs as they are and goes on with the others.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hydra.errors import HydraException
from hydra.experimental.callback import Callback

from phasegpt.core.console import tell
from phasegpt.core.errors import CheckpointError, UserError
from phasegpt.core.files import write_atomic
from phasegpt.training import planning, ranks, sweep_resources
from phasegpt.training.planned import Planned, as_job

if TYPE_CHECKING:
    from phasegpt.training.config import RunConfig

_T = TypeVar("_T")


class Plan(Callback):
    """Writes sweep.json and has Hydra start its jobs; without a job it ends with an explanation."""

    folder: ClassVar[Path | None] = None  # of the multirun that this process began
    ended: ClassVar[threading.Event] = threading.Event()  # its jobs have
    stages: ClassVar[list[planning.Stage]] = []  # that have not begun
    planned: ClassVar[list[Planned]] = []  # by those that have
    search: ClassVar[bool] = False  # whether nobody knows the jobs

    @classmethod
    def finish(cls) -> int:
        """Report on the multirun that this process began, if any: the command's exit status."""
        folder, cls.folder = cls.folder, None
        cls.ended.set()
        if folder is None:
            return 0
        mine = [job.entry for job in cls.planned if job.mine]
        return report(folder, None if cls.search else mine)

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Called by Hydra before any job; it would turn an exception into a warning."""
        from omegaconf import open_dict, read_write

        folder = Path(config.hydra.sweep.dir)

        def begin() -> None:
            ranks.refuse_multirun()
            Plan.stages, Plan.planned = planning.stages(config), []
            sweep_resources.open_study(config)
            Plan.search = not Plan.stages
            Plan._next_stage(folder)

        try:
            Plan._or_exit(begin)
        except HydraException:  # a name that there is not: Hydra meets it again, and says it
            return
        Plan.folder, Plan.ended = folder, threading.Event()
        sweep_resources.reserve_gpus(config)
        if not Plan.search:
            with read_write(config), open_dict(config):
                config.hydra.sweeper._target_ = "hydra_plugins.phasegpt.PlannedSweeper"
        if not config.hydra.launcher._target_.endswith(".BasicLauncher"):
            # The jobs' own lines go elsewhere; no more than a look into their folders is needed.
            told = threading.Thread(target=_watch, args=(folder, Plan.ended), daemon=True)
            told.start()

    @classmethod
    def batches(cls, size: int | None) -> Iterator[list[list[str]]]:
        """The words of the jobs to start, at most `size` of them at once, stage by stage.

        A stage is planned when those before it are over.
        """
        begun = cls.planned
        while True:
            words = [list(job.words) for job in begun if job.here]
            step = size or max(1, len(words))
            yield from (words[i : i + step] for i in range(0, len(words), step))
            if not cls.stages or (folder := cls.folder) is None:
                return
            begun = cls._or_exit(lambda: cls._next_stage(folder))

    @staticmethod
    def _or_exit(action: Callable[[], _T]) -> _T:
        """What `action` returns; a UserError ends the process with its message."""
        try:
            return action()
        except UserError as error:
            if ranks.said_by_others(error):
                sys.exit(0)
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.exit(error.exit_code)

    @classmethod
    def _next_stage(cls, folder: Path) -> list[Planned]:
        """Plan the next stage, if there is one, and write all that is planned to sweep.json."""
        begun = cls.stages.pop(0)() if cls.stages else []
        cls.planned = [*cls.planned, *begun]
        text = json.dumps({"jobs": [job.entry for job in cls.planned]}, indent=2)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "sweep.json", (text + "\n").encode())
        for job in (job for job in begun if job.here and job.entry["error"]):
            tell(f"{job.entry['name']} will fail: {job.entry['error']}")
        hashes = [job.entry["config_hash"] for job in begun if job.run is not None]
        if twice := len(hashes) - len(set(hashes)):
            tell(
                f"{len(begun)} jobs: {twice} differ from another in nothing that changes a result, "
                f"and are that run"
            )
        recorded = sum("record" in job.entry for job in begun)
        others = sum("record" not in job.entry and not job.mine for job in begun)
        if recorded or others:
            tell(
                f"{len(begun)} jobs: {recorded} are on record, {others} are of other shares, "
                f"{sum(job.here for job in begun)} are to be done here"
            )
        return begun


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


def train_job(
    run: RunConfig, folder: Path, sweep: Path, number: int, *, sees_all: bool = True
) -> dict[str, Any]:
    """Train one job of the multirun in `sweep`, or go on with the run that has its configuration.

    `sees_all`: the jobs see every GPU of their machine, so each takes one for itself; under Slurm
    a job is given its own.

    `folder` is the job's own, where no run has begun. Where it has the job's number, and a run of
    another configuration is there, as in a sweep that was widened, the job gets a folder named
    after its hash too. Whatever goes wrong stands in run.json.
    """
    import torch

    from phasegpt.training.run import fit
    from phasegpt.training.run_folder import FINISHED, RunFolder, provenance, read_record

    run = as_job(run)
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


def report(sweep: Path, plan: Sequence[Mapping[str, Any]] | None = None) -> int:
    """Say how a multirun ended and name every job that is not done.

    Of the jobs of `plan` alone, where it is given. Returns 0 if every job is finished, and a
    collapse is a result too; else 1. Of a search, which other processes may go on with, jobs that
    are running count as theirs.
    """
    from phasegpt.training.jobs import counted, jobs, planned
    from phasegpt.training.run_folder import FINISHED

    try:
        found = jobs(sweep, plan)
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
