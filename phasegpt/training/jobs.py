"""What became of the jobs of a sweep, read from its folder at any time: sweep.json and run.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import read_json
from phasegpt.training.metric_names import with_names_of_today
from phasegpt.training.run_folder import FINISHED, held, read_record


class Job(NamedTuple):
    """One job. `status`: ok | running | stopped (it can go on) | failed | collapsed | missing."""

    name: str
    status: str
    step: int
    best: float | None  # val/ppl
    error: str | None
    again: bool = False  # whether the same command, given again, would run it
    smoke: bool = False  # whether it only tried that a run works


def finished(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """File and record of every finished run by config hash: of a study, runs/*.json, or a sweep.

    Smoke runs do not count, nor do records of a study from a checkout with uncommitted changes:
    what they ran is in no commit. Raises DataError where a record of a study is damaged.
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in sorted((*folder.glob("runs/*.json"), *folder.glob("*/run.json"))):
        if file.name == "run.json":
            record = _record(file.parent)
        else:
            record = with_names_of_today(read_json(file))
            if changed(record):
                continue
        if record.get("status") in FINISHED and not record.get("smoke"):
            found[str(record.get("config_hash"))] = file, record
    return found


def changed(record: Mapping[str, Any]) -> bool:
    """Whether a start of a run was from a checkout with uncommitted changes."""
    starts = [record, *(record.get("resumed") or ())]
    return any((start.get("git") or {}).get("dirty") for start in starts)


def jobs(sweep: Path, plan: Sequence[Mapping[str, Any]] | None = None) -> list[Job]:
    """The jobs of sweep.json in its order, then runs in the folder that it does not list.

    Those of `plan` alone, where it is given; its entries are as in sweep.json.

    A run with a damaged run.json has failed; it is known by its name alone. Raises CheckpointError
    where sweep.json is damaged.
    """
    listed = _checked(plan) if plan is not None else planned(sweep / "sweep.json")
    folders = sorted(path.parent for path in sweep.glob("*/run.json"))
    records = {folder: _record(folder) for folder in folders}
    known = {record.get("config_hash", folder.name): folder for folder, record in records.items()}
    found = []
    for name, config_hash, error, file in listed:
        folder = known.get(config_hash) or known.get(name)
        if folder is None and error:
            found.append(Job(name, "failed", 0, None, error))
        elif folder is None and file is not None and Path(file).is_file():
            found.append(_job(Path(name), with_names_of_today(read_json(Path(file)))))
        elif folder is None:
            found.append(Job(name, "missing", 0, None, None, again=True))
        elif folder in records:  # two jobs can be one run
            found.append(_job(folder, records.pop(folder)))
    others = [] if plan is not None else [_job(*item) for item in records.items()]
    return found + others


def counted(found: Sequence[Job]) -> str:
    """How many jobs are in what state, in words."""
    states = Counter(job.status for job in found)
    states["done"] = states.pop("ok", 0)
    order = ("done", "running", "stopped", "failed", "collapsed", "missing")
    return f"{len(found)} jobs: " + ", ".join(f"{states[s]} {s}" for s in order if states[s])


def planned(file: Path) -> list[Any]:
    """Name, config hash, error and record of every job in sweep.json; none of a search, or without.

    Raises CheckpointError where it is damaged.
    """
    if not file.is_file():
        return []
    try:
        return _checked(read_json(file, "jobs")["jobs"])
    except (DataError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"unreadable {file}: {type(error).__name__}: {error}. Start the sweep again, which "
            f"writes it anew and leaves finished runs as they are, or remove it"
        ) from error


def _checked(entries: Iterable[Mapping[str, Any]]) -> list[Any]:
    found = [(j["name"], j["config_hash"], j["error"], j.get("record")) for j in entries]
    if not all(isinstance(x, str | None) for job in found for x in job):
        raise TypeError("name, config_hash, error and record of a job must be text, or null")
    return found


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
