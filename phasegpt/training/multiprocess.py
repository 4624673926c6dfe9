"""Data-parallel training on one machine: the processes of a run, and who is who among them.

The process that the user started is rank 0. It starts the others itself, as
`python -m phasegpt.training.multiprocess` with the configuration on standard input, so a run from
a notebook works too and no rank reads the command line again. Rank r takes its rows of every batch
(phasegpt.data.windows.TrainBatches); gradients are averaged. Rank 0 alone writes into the folder
of the run.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from phasegpt.core.errors import UserError
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.run_folder import RunFolder


class Rank(LightningEnvironment):
    """One of `world` processes on this machine that meet at `port`."""

    def __init__(self, number: int, world: int, port: int | None = None) -> None:
        """Be rank `number`; without a port a free one is chosen."""
        super().__init__()
        self.number, self.world = number, world
        if port is not None:
            self._main_port = port
        self.set_global_rank(number)

    @property
    def creates_processes_externally(self) -> bool:
        """True: Lightning need not start any."""
        return True

    @property
    def main_address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    def local_rank(self) -> int:
        """The rank: there is one machine."""
        return self.number

    def node_rank(self) -> int:
        """0: there is one machine."""
        return 0


@contextmanager
def started(run: RunConfig, folder: Path, resume_point: Path | None) -> Iterator[Rank | None]:
    """Start the other ranks of `run` and be rank 0; None where trainer.devices is 1.

    They end with the block, at once where it raises. RuntimeError if one ends before it is ready:
    rank 0 would wait for it in vain.
    """
    world = run.trainer.devices
    if world == 1:
        yield None
        return
    mine = Rank(0, world)
    others = []
    try:
        for number in range(1, world):
            task = {
                "config": run.to_dict(),
                "folder": str(folder),
                "resume_point": None if resume_point is None else str(resume_point),
                "rank": [number, world, mine.main_port],
            }
            command = [sys.executable, "-m", "phasegpt.training.multiprocess"]
            pipe = subprocess.PIPE
            other = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            others.append(other)
            assert other.stdin is not None
            json.dump(task, other.stdin)
            other.stdin.close()
        for number, other in enumerate(others, 1):
            assert other.stdout is not None
            if not other.stdout.readline():
                raise RuntimeError(f"rank {number} failed with status {other.wait()}; see above")
        yield mine
        for other in others:
            other.wait()
    finally:
        for other in others:
            other.kill()
            other.wait()
            other.stdout.close()  # type: ignore[union-attr]
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _ReadOnly(RunFolder):
    """A run's folder for a rank that does not write into it and cannot hold its lock."""

    def __init__(self, path: Path) -> None:
        self.path, self.record = path, {}

    def update(self, **fields: Any) -> None:
        """Nothing: rank 0 does it."""


def _main() -> None:
    """Be the rank that standard input describes, from set-up to the last step."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # rank 0 alone listens, and ends the others
        signal.signal(signum, signal.SIG_IGN)
    task = json.load(sys.stdin)
    ready, sys.stdout = sys.stdout, sys.stderr
    from phasegpt.data.corpus import prepare
    from phasegpt.training.assemble import assemble

    rank = Rank(*task["rank"])
    run, folder = run_config(task["config"]), _ReadOnly(Path(task["folder"]))
    resume_point = None if task["resume_point"] is None else Path(task["resume_point"])
    parts = assemble(run, folder, prepare(run.data), rank=rank)
    ready.write("ready\n")
    ready.flush()
    try:
        parts.fit(resume_point)
    except UserError:
        sys.exit(1)  # rank 0 meets the same and says it


if __name__ == "__main__":
    _main()
