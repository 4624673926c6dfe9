"""What the jobs of a multirun share: the GPUs of a machine, and the storage of a search."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from phasegpt.core.console import tell
from phasegpt.core.errors import ConfigError

_LAUNCHERS = "submitit_launcher."
_LOOK_EVERY_S = 1.0
_TRIES = 6  # of processes that make the tables of one storage at the same time


def reserve_gpus(config: Any) -> None:
    """Have launchers that hide every GPU that was not asked for give the jobs what they train on.

    What the user set stays. A job on this machine sees all of its GPUs and takes a free one, see
    `one_gpu`; under Slurm it is given trainer.devices of its own.
    """
    from omegaconf import open_dict, read_write

    launcher, target = config.hydra.launcher, config.hydra.launcher._target_
    local = target.endswith(f"{_LAUNCHERS}LocalLauncher")
    slurm = target.endswith(f"{_LAUNCHERS}SlurmLauncher")
    if config.trainer.accelerator == "cpu" or not (local or slurm):
        return
    import torch

    more = launcher.get("additional_parameters") or {}
    asked = [launcher.get(key) for key in ("gpus_per_node", "gpus_per_task", "gres")]
    if any(x is not None for x in asked) or any("gpu" in k or "gres" in k for k in more):
        return
    # Where a job is submitted to Slurm there may be no GPU.
    number = torch.cuda.device_count() if local else config.trainer.devices
    with read_write(config), open_dict(config):
        launcher.gpus_per_node = number


@contextmanager
def one_gpu(sweep: Path, number: int, count: int) -> Iterator[int]:
    """The GPU of job `number` of a multirun in `sweep`, among the `count` that it sees, alone.

    The first that no other job of the sweep on this machine has, from number modulo count on; where
    all are taken it waits. A job that dies lets go of its own. Without a GPU: number.
    """
    if not count:
        yield number
        return
    host, said = socket.gethostname(), False
    while True:
        for k in range(count):
            gpu = (number + k) % count
            with open(sweep / f".gpu{gpu}-{host}.lock", "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                try:
                    yield gpu
                finally:  # for the processes that load its data too
                    fcntl.flock(lock, fcntl.LOCK_UN)
                return
        if not said:
            tell(f"job {number} waits for a GPU: other jobs have all {count}")
            said = True
        time.sleep(_LOOK_EVERY_S)


def open_study(config: Any) -> None:
    """Make the study of an Optuna search, or find it, before the sweeper does.

    Several processes may do so at once: one makes the tables, and the others, whose own attempt
    fails on them, look again. ConfigError where the storage cannot be opened.
    """
    sweeper = config.hydra.sweeper
    storage = sweeper.get("storage")
    if not sweeper._target_.endswith(".OptunaSweeper") or storage is None:
        return
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    if storage.startswith("sqlite:///"):
        with suppress(OSError):
            path = storage.removeprefix("sqlite:///").partition("?")[0]
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    several = not isinstance(sweeper.direction, str)
    directions = [str(d) for d in sweeper.direction] if several else [str(sweeper.direction)]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        for attempt in range(_TRIES):
            try:
                optuna.create_study(
                    storage=storage,
                    study_name=sweeper.study_name,
                    directions=directions,
                    load_if_exists=True,
                )
                return
            except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
                if attempt == _TRIES - 1 or isinstance(error, ImportError):
                    raise ConfigError(
                        f"hydra.sweeper.storage={_without_password(storage)} cannot be opened "
                        f"({type(error).__name__}: {_first_line(error)}); check the address and "
                        f"the rights, and for PostgreSQL pip install psycopg2-binary"
                    ) from error
                time.sleep(random.uniform(0.1, 0.5))
    finally:
        optuna.logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    return f"{error!s:.300}".partition("\n")[0]


def _without_password(storage: str) -> str:
    """The address of a database, as an error may show it."""
    before, at, behind = storage.rpartition("@")
    return f"{before.partition('://')[0]}://...@{behind}" if at else storage
