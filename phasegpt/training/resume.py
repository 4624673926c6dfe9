"""Going on with a run: which folder, which checkpoint, and why a folder is not this run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phasegpt.core.console import tell
from phasegpt.core.errors import CheckpointError
from phasegpt.model import checkpoint
from phasegpt.model.migration import migrated
from phasegpt.training.config import CAME_LATER, RunConfig, hashed_fields
from phasegpt.training.run_folder import FINISHED, RunFolder, read_metrics, read_record


def choose_folder(run: RunConfig, run_dir: Path, *, given: bool) -> Path:
    """The folder of this run: `run_dir`, or with `resume` the one it continues.

    `given`: the user chose run_dir. Raises CheckpointError rather than write over a run.
    """

    holds = bool(read_record(run_dir))
    if run.resume is False:
        if holds:
            raise written_over(run_dir)
        return run_dir
    if isinstance(run.resume, str):
        folder = Path(run.resume)
        if folder.is_file() and folder.parent.name == "checkpoints":
            folder = folder.parent.parent
        if not read_record(folder):
            raise CheckpointError(f"resume={run.resume} is not a run folder; it has no run.json")
        return folder
    if holds or given:
        return run_dir
    found = newest_unfinished(run_dir.parent, run.hash)
    if found is None:
        tell(f"no unfinished run of this configuration in {run_dir.parent}; starting at step 0")
        return run_dir
    return found


def written_over(path: Path) -> CheckpointError:
    """The error of a run that would begin where another one is."""
    return CheckpointError(
        f"{path} already holds a run; choose another folder (hydra.run.dir), or resume=true"
    )


def newest_unfinished(root: Path, config_hash: str) -> Path | None:
    """The folder under `root` whose run has this configuration, began last, and is not done."""
    found = []
    for file in root.glob("*/run.json"):
        try:
            record = read_record(file.parent)
        except CheckpointError as error:  # of another run: it is in nobody's way
            tell(f"warning: left out: {error}")
            continue
        if record.get("config_hash") == config_hash and record.get("status") not in FINISHED:
            found.append((record.get("started", ""), file.parent))
    return max(found)[1] if found else None


def resume_point(run: RunConfig, folder: RunFolder) -> Path | None:
    """The checkpoint to start from, or None for step 0, where nothing was ever saved.

    That is where last.ckpt points, or, where a copy of the run lost its links, the newest step
    file. CheckpointError if that is damaged, if run.json knows of more than there is, or if
    `run.resume` names another run, or a checkpoint of one.
    """

    if run.resume is False:
        return None
    directory = folder.path / "checkpoints"
    point = checkpoint.last(directory)
    if isinstance(run.resume, str):
        named = Path(run.resume)
        own, here = (named.parent, directory) if named.is_file() else (named, folder.path)
        if own.resolve() != here.resolve():
            raise CheckpointError(
                f"resume={named} is not of the run in {folder.path}; give one of the files in "
                f"{directory}, or resume=true to go on with the last"
            )
        point = checkpoint.find(named) if named.is_file() else point
    if point is not None:
        checkpoint.check_resumable(point)
        tell(f"going on with {point}")
        if not read_metrics(folder.path / "metrics.csv"):
            tell(
                f"warning: {folder.path}/metrics.csv is missing or empty, so the metrics of the "
                f"steps before are lost; stop, and copy it too, if you have it"
            )
    elif saved := folder.record.get("step"):
        raise CheckpointError(
            f"{folder.path}/run.json says that step {saved} was saved, but its checkpoints folder "
            f"holds no step-*.ckpt; copy the checkpoints too, with their .sha256, or start anew "
            f"elsewhere"
        )
    else:
        tell(f"no checkpoint yet in {folder.path}; starting at step 0")
    return point


def difference(path: Path, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Error text naming the keys in which two configurations differ."""
    a, b = (CAME_LATER | hashed_fields(config, migrated) for config in (old, new))
    changed = [
        f"{k} was {a.get(k)!r} and is {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)
    ]
    said = "; ".join(changed[:6]) or "its config_hash says so, although no key differs"
    return (
        f"{path} holds a run of another configuration: {said}. "
        f"Start it in another folder, or take the change back"
    )
