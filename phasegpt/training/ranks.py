"""Which process of a run this is, where torchrun or srun started several. Needs no torch.

All of them run the same command. The first one decides where the run lives, writes into its folder
and speaks; the others compute, and say only what the first cannot know.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from phasegpt.core.errors import ConfigError, ProcessFailed, UserError

if TYPE_CHECKING:
    from phasegpt.training.config import RunConfig


class Rank(NamedTuple):
    """Process `number` of `world`, `per_node` on each machine, and `local` among those of its."""

    number: int
    world: int
    local: int
    per_node: int

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.number == 0

    @property
    def nodes(self) -> int:
        """How many machines there are."""
        return self.world // self.per_node


def rank() -> Rank | None:
    """Which one this process is; None: it is alone.

    torchrun says so in RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, and where to meet in
    MASTER_ADDR and MASTER_PORT. A step of srun is put into the same words here.
    """
    found = os.environ
    if "RANK" not in found and int(found.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        found.update(_of_slurm())
    if int(found.get("WORLD_SIZE", 1)) == 1 or "RANK" not in found:
        return None
    world = int(found["WORLD_SIZE"])
    per_node = int(found.get("LOCAL_WORLD_SIZE", world))
    if world % per_node:
        raise ConfigError(
            f"{world} processes with {per_node} on this machine: start as many on each"
        )
    return Rank(int(found["RANK"]), world, int(found.get("LOCAL_RANK", 0)), per_node)


def _of_slurm() -> dict[str, str]:
    """torchrun's variables for a process that srun started; those that are set stay."""
    found = os.environ
    world = int(found["SLURM_STEP_NUM_TASKS"])
    per_node = world // int(found.get("SLURM_STEP_NUM_NODES", 1))
    # The first machine of a list such as gpu[07-09,12],login1.
    nodes = found.get("SLURM_STEP_NODELIST", "127.0.0.1")
    head = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes).split(",")[0]
    # All must know the port before they can speak: it follows from the job and its step.
    job, step = (int(found.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {
        "RANK": found["SLURM_PROCID"],
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": found["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(per_node),
        "GROUP_RANK": found.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": found.get("MASTER_ADDR", head),
        "MASTER_PORT": found.get("MASTER_PORT", str(15_000 + (job + 7 * step) % 15_000)),
    }


def follows() -> bool:
    """Whether this process is one that is not first."""
    mine = rank()
    return mine is not None and not mine.first


def placed(run: RunConfig) -> RunConfig:
    """`run` with the processes that the launcher started, and resumed where it started them again.

    ConfigError where trainer.devices and trainer.num_nodes say otherwise.
    """
    t, mine = run.trainer, rank()
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) and run.resume is False:
        run = replace(run, resume=True)
    if mine is None:
        if t.num_nodes > 1:
            raise ConfigError(
                f"trainer.num_nodes={t.num_nodes}, but this process was started alone; start one "
                f"torchrun on each machine, torchrun --nnodes {t.num_nodes} --nproc-per-node "
                f"{t.devices} --rdzv-backend c10d --rdzv-endpoint HOST:PORT -m phasegpt.train ..., "
                f"or srun --ntasks-per-node {t.devices} python -m phasegpt.train ..."
            )
        if t.processes == 1 and t.strategy != "auto":
            raise ConfigError(
                f"trainer.strategy={t.strategy} is for several processes, and this run has one; "
                f"leave it out, or set trainer.devices"
            )
        return run
    if t.devices not in (1, mine.per_node) or t.num_nodes not in (1, mine.nodes):
        raise ConfigError(
            f"trainer.devices={t.devices} trainer.num_nodes={t.num_nodes}, but the launcher "
            f"started {mine.per_node} processes on each of {mine.nodes} machines; leave both out, "
            f"or have it start as many"
        )
    return replace(run, trainer=replace(t, devices=mine.per_node, num_nodes=mine.nodes))


def refuse_multirun() -> None:
    """ConfigError in a process of several: each would run the whole sweep."""
    if (mine := rank()) is not None:
        raise ConfigError(
            f"a multirun in {mine.world} processes: each of them would run the whole sweep. Start "
            f"it without torchrun or srun and give every job its processes by the launcher "
            f"(+launcher=slurm, or +launcher=joblib for one per GPU), or start the runs one by one "
            f"without -m"
        )


def said_by_others(error: UserError) -> bool:
    """Whether this process need not print `error`.

    The first one meets the same, or the launcher prints it: PyTorch's shows what the process that
    failed first has written into the file that it named.
    """
    if not follows():
        return False
    if not isinstance(error, ProcessFailed):
        return True
    return hand_to_launcher(error)


def hand_to_launcher(error: Exception) -> bool:
    """Write `error` where PyTorch's launcher looks for it; False: there is no such place."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return False
    text = f"{type(error).__name__}: {error}"
    more = {"py_callstack": text, "timestamp": str(int(time.time()))}
    with open(file, "w", encoding="utf-8") as out:
        json.dump({"message": {"message": text, "extraInfo": more}}, out)
    return True
