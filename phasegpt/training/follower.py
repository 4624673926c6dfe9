"""A process of a run that is not the first: it trains, and writes and says nothing."""

from __future__ import annotations

import signal
import threading
import warnings
from pathlib import Path
from typing import Any

from phasegpt.core.errors import (
    Collapsed,
    ConfigError,
    DataError,
    Interrupted,
    ProcessFailed,
    UserError,
)
from phasegpt.data.corpus import prepare
from phasegpt.training.assemble import assemble, check_device
from phasegpt.training.config import RunConfig
from phasegpt.training.multiprocess import Peers, disconnect
from phasegpt.training.ranks import Rank
from phasegpt.training.run_folder import RunFolder


def follow(run: RunConfig, mine: Rank) -> dict[str, Any]:
    """Train as a process that is not first: it writes nothing, and what it returns is empty.

    It says what went wrong only where the first process goes on: ProcessFailed then, and whatever
    is no UserError. Signals end it while it waits, and are the first one's affair while it trains.
    """
    _on_signals(signal.SIG_DFL)
    warnings.simplefilter("ignore")  # the first process warns of the same
    peers = Peers(mine, run)
    where = peers.begun()
    if where is None:
        return {}
    training = False
    try:
        if where["config_hash"] != run.hash:
            raise ConfigError("its configuration differs; start all with the same command")
        check_device(run)
        corpus = prepare(run.data)
        if corpus.fingerprint != where["data"]:
            raise DataError("the text here is not that of the first process; copy it here")
        parts = assemble(run, _ReadOnly(Path(where["folder"])), corpus, rank=mine)
        training = True
        _on_signals(signal.SIG_IGN)
        parts.fit(None if where["checkpoint"] is None else Path(where["checkpoint"]))
    except (Collapsed, Interrupted):  # all meet it at the same step
        pass
    except Exception as error:
        _on_signals(signal.SIG_DFL)
        if not (training and peers.ended()):
            if isinstance(error, ProcessFailed) or not isinstance(error, UserError):
                raise
            raise ProcessFailed(f"rank {mine.number}: {type(error).__name__}: {error}") from error
    disconnect()
    return {}


def _on_signals(action: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, action)


class _ReadOnly(RunFolder):
    """A run's folder for a process that does not write into it and cannot hold its lock."""

    def __init__(self, path: Path) -> None:
        self.path, self.record = path, {}

    def update(self, **fields: Any) -> None:
        """Nothing: the first process does it."""
