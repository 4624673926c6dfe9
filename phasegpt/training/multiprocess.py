"""Data-parallel training: starting the processes of a run, and what they tell each other.

`torchrun ... -m phasegpt.train`, `srun python -m phasegpt.train` and trainer.devices=N are one
thing: with trainer.devices=N alone, `launch` has PyTorch's elastic launcher, which torchrun is too,
start N processes that call `fit` as torchrun's do (phasegpt.training.worker). Rank r takes its rows
of every batch (phasegpt.data.windows.TrainBatches); gradients are averaged. The first process
prepares the text, decides where the training begins and tells the others by `Peers`
(phasegpt.training.follower).
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from phasegpt.core import errors
from phasegpt.core.errors import Interrupted, ProcessFailed, UserError
from phasegpt.training.config import RunConfig
from phasegpt.training.ranks import Rank
from phasegpt.training.run_folder import read_record

#: How long a process that fails waits to hear that the first one has failed too, and says so.
_PATIENCE_S = 10.0
_LOST = "another process of the run"
_RESUME = "run the same command with resume=true to go on from its last checkpoint, if it has one"

_fits = itertools.count()  # trainings in this process: every one has words of its own


class Peers:
    """The processes of one training: what the first tells the others, and their process group.

    They meet in the store whose address the launcher gave them. The words there belong to one
    start and one training: a launcher that starts the processes again keeps its store.
    """

    def __init__(self, mine: Rank, run: RunConfig) -> None:
        """Meet within trainer.timeout_s; ProcessFailed if that fails."""
        self.mine, self.limit = mine, timedelta(seconds=run.trainer.timeout_s)
        self._cuda = run.trainer.accelerator != "cpu" and torch.cuda.is_available()
        self._told = False
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        with answering():
            store, *_ = next(
                torch.distributed.rendezvous("env://", mine.number, mine.world, timeout=self.limit)
            )
        self._store = torch.distributed.PrefixStore(f"phasegpt/{again}/{next(_fits)}", store)

    def begin(self, **where: Any) -> None:
        """Have the others begin to train too."""
        self._tell(where)
        self._connect()

    def begun(self) -> dict[str, Any] | None:
        """Wait for `begin`, however long the text takes; None: there is nothing to do."""
        with answering():
            self._store.wait(["begin"], timedelta(days=365))
            where = json.loads(self._store.get("begin"))
        if where is not None:
            self._connect()
        return where

    def end(self) -> None:
        """Say that the first process is through; before `begin`, that there is nothing to do."""
        try:
            if not self._told:
                self._tell(None)
            self._store.set("end", "")
        except (RuntimeError, ProcessFailed):  # the launcher has gone: it ends the others
            pass
        disconnect()

    def ended(self) -> bool:
        """Whether the first process is through, or is within a moment."""
        try:
            self._store.wait(["end"], timedelta(seconds=_PATIENCE_S))
        except RuntimeError:  # it took longer, or cannot be asked
            return False
        return True

    def _tell(self, where: dict[str, Any] | None) -> None:
        self._told = True
        with answering():
            self._store.set("begin", json.dumps(where))

    def _connect(self) -> None:
        """Make the process group; Lightning takes one that is there."""
        words: dict[str, Any] = {"backend": "gloo"}
        if self._cuda:
            device = torch.device("cuda", self.mine.local)
            torch.cuda.set_device(device)
            words = {"backend": "nccl", "device_id": device}
        with answering():
            torch.distributed.init_process_group(
                store=torch.distributed.PrefixStore("group", self._store),
                rank=self.mine.number,
                world_size=self.mine.world,
                timeout=self.limit,
                **words,
            )


def disconnect() -> None:
    """Leave the process group, so that the next training can make its own."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def answering() -> Iterator[None]:
    """Turn what torch raises where another process is gone, or silent too long, into one error."""
    try:
        yield
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise ProcessFailed(
            f"{_LOST} has ended, or has not answered for trainer.timeout_s; {_RESUME} "
            f"({str(error).splitlines()[0]:.200})"
        ) from error


def _lost(error: BaseException) -> bool:
    """Whether an error is of the connection between processes."""
    if isinstance(error, torch.distributed.DistError):
        return True
    said = str(error).lower()
    return any(word in said for word in ("gloo", "nccl", "connection closed", "connection reset"))


def launch(run: RunConfig, folder: Path) -> dict[str, Any]:
    """Train in trainer.devices processes of this machine; the run.json as a dict.

    Raises what the first process raised, and ProcessFailed where one ended otherwise.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as scratch, _quiet(), _signals_kept():
        task = Path(scratch) / "task.json"
        task.write_text(json.dumps({"config": run.to_dict(), "folder": str(folder.absolute())}))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=run.trainer.devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )
        words = ["-m", "phasegpt.training.worker", str(task)]
        try:
            elastic_launch(config, sys.executable)(*words)
        except ChildFailedError as error:
            raise _first_failure(error.failures) from None
        except SignalException as error:
            said = (
                read_record(folder).get("error") or f"stopped by signal {error.sigval}; {_RESUME}"
            )
            raise Interrupted(said, error.sigval) from None
    return read_record(folder)


def _first_failure(failures: dict[int, Any]) -> UserError:
    """What a training in several processes failed of: the first failure that has no other cause."""

    def order(number: int) -> tuple[bool, float]:
        failure = failures[number]
        return failure.exitcode == -signal.SIGTERM or _LOST in _said(failure), failure.timestamp

    number = min(failures, key=order)
    failure = failures[number]
    if failure.exitcode < 0:
        return ProcessFailed(f"rank {number} was ended by {failure.signal_name()}; {_RESUME}")
    said = _said(failure)
    kind, _, text = said.partition(": ")
    found = getattr(errors, kind, None)
    if found is Interrupted:
        return Interrupted(text, failure.exitcode - 128)
    if isinstance(found, type) and issubclass(found, UserError):
        return found(text)
    return ProcessFailed(f"rank {number} failed with status {failure.exitcode}; see above. {said}")


def _said(failure: Any) -> str:
    """What the process wrote for its launcher: the error's class and text, or nothing."""
    return failure.message["message"] if isinstance(failure.message, dict) else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Have PyTorch's launcher say nothing: what it says is raised."""
    import torch.distributed.elastic.agent.server.local_elastic_agent  # noqa: F401 - has loggers

    names = [n for n in logging.root.manager.loggerDict if n.startswith("torch.distributed.elast")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the handlers of signals back: PyTorch's launcher leaves its own."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {signum: signal.getsignal(signum) for signum in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
