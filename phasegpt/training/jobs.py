"""What became of the jobs of a sweep, read from its folder at any time: sweep.json and run.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import read_json
from phasegpt.training.run_folder import held, read_record


class Job(NamedTuple):
    """One job. `status`: ok | running | stopped (it can go on) | failed | collapsed | missing."""

    name: str
    status: str
    step: int
    best: float | None  # val/ppl
    error: str | None
    again: bool = False  # whether the same command, given again, would run it
    smoke: bool = False  # whether it only tried that a run works


def jobs(sweep: Path) -> list[Job]:
    """The jobs of sweep.json in its order, then runs in the folder that it does not list.

    A run with a damaged run.json has failed; it is known by its name alone. Raises CheckpointError
    where sweep.json is damaged.
    """
    listed = planned(sweep / "sweep.json")
    folders = sorted(path.parent for path in sweep.glob("*/run.json"))
    records = {folder: _record(folder) for folder in folders}
    known = {record.get("config_hash", folder.name): folder for folder, record in records.items()}
    found = []
    for name, config_hash, error in listed:
        folder = known.get(config_hash) or known.get(name)
        if error:
            found.append(Job(name, "failed", 0, None, error))
        elif folder is None:
            found.append(Job(name, "missing", 0, None, None, again=True))
        elif folder in records:  # two jobs can be one run
            found.append(_job(folder, records.pop(folder)))
    return found + [_job(folder, record) for folder, record in records.items()]


def counted(found: Sequence[Job]) -> str:
    """How many jobs are in what state, in words."""
    states = Counter(job.status for job in found)
    states["done"] = states.pop("ok", 0)
    order = ("done", "running", "stopped", "failed", "collapsed", "missing")
    return f"{len(found)} jobs: " + ", ".join(f"{states[s]} {s}" for s in order if states[s])


def planned(file: Path) -> list[tuple[str, str | None, str | None]]:
    """Name, config hash and error of every job in sweep.json; none of a search, or without it.

    Raises CheckpointError where it is damaged.
    """
    if not file.is_file():
        return []
    try:
        listed = read_json(file, "jobs")["jobs"]
        found = [(job["name"], job["config_hash"], job["error"]) for job in listed]
        if not all(isinstance(x, str | None) for job in found for x in job):
            raise TypeError("name, config_hash and error of a job must be text, or null")
        return found
    except (DataError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"unreadable {file}: {type(error).__name__}: {error}. Start the sweep again, which "
            f"writes it anew and leaves finished runs as they are, or remove it"
        ) from error


def _record(folder: Path) -> dict[str, Any]:
    try:
        return read_record(folder)
    except CheckpointError as error:
        return {"status": "failed", "error": str(error)}


def _job(folder: Path, record: dict[str, Any]) -> Job:
    status = record.get("status", "stopped")
    if status == "interrupted" or (status == "running" and not held(folder)):
        status = "stopped"
    best = (record.get("best") or {}).get("val/ppl")
    again = status in ("stopped", "failed") and "config_hash" in record
    step, error, smoke = record.get("step", 0), record.get("error"), record.get("smoke") is True
    return Job(folder.name, status, step, best, error, again, smoke)
