"""What became of the jobs of a sweep, read from its folder at any time: sweep.json and run.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phasegpt.record import held, read_record


class Job(NamedTuple):
    """One job. `status`: ok | running | stopped (it can go on) | failed | collapsed | missing."""

    name: str
    status: str
    step: int
    best: float | None  # val/ppl
    error: str | None


def jobs(sweep: Path) -> list[Job]:
    """The jobs of sweep.json in its order, then runs in the folder that it does not list."""
    file = sweep / "sweep.json"
    planned = json.loads(file.read_text(encoding="utf-8"))["jobs"] if file.is_file() else []
    folders = sorted(path.parent for path in sweep.glob("*/run.json"))
    records = {folder: read_record(folder) for folder in folders}
    by_hash = {record["config_hash"]: folder for folder, record in records.items()}
    found = []
    for job in planned:
        folder = by_hash.get(job["config_hash"])
        if folder is None:
            found.append(
                Job(job["name"], "failed" if job["error"] else "missing", 0, None, job["error"])
            )
        elif folder in records:  # two jobs can be one run
            found.append(_job(folder, records.pop(folder)))
    return found + [_job(folder, record) for folder, record in records.items()]


def counted(found: Sequence[Job]) -> str:
    """How many jobs are in what state, in words."""
    states = Counter(job.status for job in found)
    states["done"] = states.pop("ok", 0)
    order = ("done", "running", "stopped", "failed", "collapsed", "missing")
    return f"{len(found)} jobs: " + ", ".join(f"{states[s]} {s}" for s in order if states[s])


def _job(folder: Path, record: dict[str, Any]) -> Job:
    status = record.get("status", "stopped")
    if status == "interrupted" or (status == "running" and not held(folder)):
        status = "stopped"
    best = (record.get("best") or {}).get("val/ppl")
    return Job(folder.name, status, record.get("step", 0), best, record.get("error"))
