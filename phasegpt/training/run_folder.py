"""The run folder: config.yaml, metrics.csv, run.json, checkpoints/, phase/, curves.png.

Nothing in it is ever lost to a crash: files are replaced whole, and rows of metrics.csv are cut
only when they lie past the checkpoint from which they will be written again.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import torch

from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import read_json, write_atomic
from phasegpt.training.config import RunConfig

FINISHED = ("ok", "collapsed")


class RunFolder:
    """One run's folder, locked against a second writer while this object lives."""

    def __init__(self, path: Path) -> None:
        """Make the folder and lock it; CheckpointError if another process holds it."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = open(path / ".lock", "w")  # noqa: SIM115 - held until close()
        except OSError as error:
            raise CheckpointError(
                f"cannot write into {path}: {error.strerror}; choose another folder "
                f"(hydra.run.dir), or copy the run to where you may write"
            ) from error
        if not _locked(lock):
            lock.close()
            raise CheckpointError(f"{path} is being written by another process")
        self.path, self._lock = path, lock
        _open_folders.add(self)
        try:
            self.record: dict[str, Any] = read_record(path)
        except CheckpointError:
            lock.close()
            raise

    def update(self, **fields: Any) -> None:
        """Merge fields into run.json and write it whole."""
        self.record.update(fields)
        text = json.dumps(self.record, indent=2, sort_keys=True, allow_nan=False, default=str)
        write_atomic(self.path / "run.json", (text + "\n").encode())

    def close(self) -> None:
        """Release the lock; a folder in which nothing was recorded is left empty."""
        if not self.record:
            (self.path / ".lock").unlink(missing_ok=True)
        _open_folders.discard(self)
        self._lock.close()


def _locked(lock: Any) -> bool:
    """Take the lock of a run; a reader that asks `held` has it for an instant, so ask again."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_PAUSE_S)
        else:
            return True
    return False


_TRIES, _PAUSE_S = 25, 0.02


def _leave_locks_to_the_parent() -> None:
    """A forked loader worker must not hold the lock of a run that has died."""
    for folder in _open_folders:
        folder._lock.close()


_open_folders: weakref.WeakSet[RunFolder] = weakref.WeakSet()
os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


def held(path: Path) -> bool:
    """Whether a process is writing the run in `path` now."""
    try:
        with open(path / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_record(path: Path) -> dict[str, Any]:
    """run.json of a folder, or an empty dict. Raises CheckpointError where it is damaged."""
    file = path / "run.json"
    if not file.is_file():
        return {}
    try:
        return read_json(file)
    except DataError as error:
        raise CheckpointError(
            f"unreadable {file}: {error}, or move the folder {path} away to start that run anew"
        ) from error


def newest_unfinished(root: Path, config_hash: str) -> Path | None:
    """The folder under `root` whose run has this configuration, began last, and is not done."""
    found = [
        (record.get("started", ""), file.parent)
        for file in root.glob("*/run.json")
        if (record := read_record(file.parent)).get("config_hash") == config_hash
        and record.get("status") not in FINISHED
    ]
    return max(found)[1] if found else None


def provenance(run: RunConfig) -> dict[str, Any]:
    """What produced the run: its configuration and its environment."""
    return {
        **environment(),
        "seed": run.seed,
        "config_hash": run.hash,
        "config": run.to_dict(),
        "command": "python -m phasegpt.train " + " ".join(sys.argv[1:]),
    }


def environment() -> dict[str, Any]:
    """Code, packages and hardware of this process; no machine or user names."""
    import pytorch_lightning as pl

    import phasegpt

    versions = {
        "phasegpt": phasegpt.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
    }
    hardware = {"cpu": _cpu_model(), "cpus": torch.get_num_threads(), "gpu": None}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {"git": _git(), "versions": versions, "hardware": hardware}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv as numbers; a cell that was not logged is absent.

    A last line without its end was cut by a crash and does not count.
    """
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [
        {name: float(cell) for name, cell in row.items() if cell}
        for row in csv.DictReader(whole.splitlines())
    ]


def curves(path: Path, names: str, points: int) -> dict[str, list[list[float]]]:
    """[step, value] pairs of a metrics.csv by name, for names that match the pattern `names`.

    At most `points` of each, evenly spaced from the first; of validations all.
    """
    found: dict[str, list[list[float]]] = {}
    for row in read_metrics(path):
        for name, value in row.items():
            if re.fullmatch(names, name):
                found.setdefault(name, []).append([int(row["step"]), value])
    return {
        name: pairs if "val/" in name else pairs[:: -(-len(pairs) // points)]
        for name, pairs in sorted(found.items())
    }


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout this package runs from, if it is one."""
    root = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
