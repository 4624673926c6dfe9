"""The run folder: config.yaml, metrics.csv, run.json, checkpoints/, phase/, curves.png.

Nothing in it is ever lost to a crash: files are replaced whole, and rows of metrics.csv are cut
only when they lie past the checkpoint from which they will be written again. Reading one needs
neither torch nor Lightning.
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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import read_arrays, read_json, read_text, reading, write_atomic
from phasegpt.core.secrets import masked
from phasegpt.training.metric_names import today, today_array, with_names_of_today

if TYPE_CHECKING:
    from phasegpt.training.config import RunConfig

FINISHED = ("ok", "collapsed")
_TYPES: dict[str, type] = {  # of what readers of run.json take apart
    **{"config": dict, "data": dict, "best": dict, "final": dict, "versions": dict},
    **{"init_from": dict, "attention_code": dict, "resumed": list},
    **{"config_hash": str, "status": str, "started": str, "step": int},
}


class RunFolder:
    """One run's folder, locked against a second writer while this object lives."""

    def __init__(self, path: Path) -> None:
        """Make the folder and lock it; CheckpointError if another process holds it."""
        self._made = not path.exists()
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
        """Release the lock; of a folder in which nothing was recorded nothing is left."""
        if not self.record:
            (self.path / ".lock").unlink(missing_ok=True)
            if self._made:
                with suppress(OSError):  # something else is in it
                    self.path.rmdir()
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
            break
    else:
        return False
    with suppress(FileNotFoundError):  # the process that had it may have removed it by now
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
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
    """run.json of a folder, metrics by today's names, or an empty dict where there is none.

    Raises CheckpointError where it is damaged.
    """
    file = path / "run.json"
    try:
        with reading(file):
            if not file.is_file():
                return {}
        record = read_json(file)
        for key, kind in _TYPES.items():
            if not isinstance(record.get(key), kind | None):
                raise DataError(
                    f"{file}: {key}={record[key]!r:.60} is no {kind.__name__}; restore it"
                )
        return with_names_of_today(record)
    except DataError as error:
        raise CheckpointError(
            f"unreadable {file}: {error}, or move the folder {path} away to start that run anew"
        ) from error


def provenance(run: RunConfig) -> dict[str, Any]:
    """What produced the run: its configuration, its environment, and code of other packages."""
    from phasegpt.attention import origin

    code = origin(run.attention.name)
    return {
        **environment(),
        **({} if code is None else {"attention_code": code}),
        "seed": run.seed,
        "config_hash": run.hash,
        "config": run.to_dict(),
        "command": "python -m phasegpt.train " + " ".join(masked(sys.argv[1:])),
    }


def environment() -> dict[str, Any]:
    """Code, packages and hardware of this process; no machine or user names."""
    import pytorch_lightning as pl
    import torch

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
    """Rows of a metrics.csv as numbers by today's names; a cell that was not logged is absent.

    A last line without its end was cut by a crash and does not count. Raises DataError for what
    is not a table of numbers.
    """
    if not path.is_file() and not path.is_dir():
        return []
    whole, rows = read_text(path).rpartition("\n")[0], []
    try:
        for row in csv.DictReader(whole.splitlines()):
            if None in row or None in row.values():
                raise ValueError("it has more or fewer cells than the header")
            rows.append({today(name): float(cell) for name, cell in row.items() if cell})
            int(rows[-1]["step"])
    except (csv.Error, LookupError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}, row {len(rows)} is not a row of numbers with a step ({error!s:.200}); "
            f"restore the file, or remove that row"
        ) from error
    return rows


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


def read_phases(folder: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a run folder by name, stacked over its V validations; `step` [V] says when.

    `layer7/R_HS` is then [V,H,S+1]. Names and shapes: phasegpt.training.phase_measures.ARRAYS,
    and metric_names.MEASURES per head, such as `layer7/dR` [V,H]. Empty where nothing was measured.
    Raises DataError for a file that is not whole, CheckpointError where no folder is.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} does not exist; give the folder of a run")
    found = (Path(folder) / "phase").glob("step-*.npz")
    files = sorted(path for path in found if path.stem.removeprefix("step-").isdecimal())
    if not files:
        return {}
    loaded = [
        {today_array(name): array for name, array in read_arrays(path).items()} for path in files
    ]
    for path, arrays in zip(files, loaded, strict=True):
        if any(k not in arrays or arrays[k].shape != x.shape for k, x in loaded[0].items()):
            raise DataError(
                f"{path} does not hold the arrays of {files[0].name}; restore it, or remove it"
            )
    stacked = {name: np.stack([arrays[name] for arrays in loaded]) for name in loaded[0]}
    return {"step": np.array([step_of(path) for path in files]), **stacked}


def step_of(path: Path) -> int:
    """The step in a file's name, step-00000100.ckpt."""
    return int(path.stem.removeprefix("step-"))


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout this package runs from, if it is one."""
    root = Path(__file__).resolve().parents[2]

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
