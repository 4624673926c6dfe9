"""The checkpoint files of a run: the hashes beside them, which is the last and which the best."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from phasegpt.core.errors import CheckpointError, UserError
from phasegpt.core.files import read_json


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar(path: Path) -> Path:
    """The file beside a checkpoint that holds its sha256, as sha256sum writes it."""
    return path.with_name(path.name + ".sha256")


def sums_beside(path: Path) -> list[str]:
    """The hashes that stand beside a checkpoint. A copy of a link has that of the file it named."""
    beside = [sidecar(path)]
    if path.name in ("best.ckpt", "last.ckpt") and not beside[0].is_file():
        beside = sorted(path.parent.glob("step-*.ckpt.sha256"))
    texts = (
        file.read_text(encoding="ascii", errors="replace") for file in beside if file.is_file()
    )
    return [word for text in texts for word in text.split()[::2]]


def verified(path: Path, content: bytes) -> bool:
    """Whether `content`, read from `path`, has a hash that stands beside it."""
    return hashlib.sha256(content).hexdigest() in sums_beside(path)


def whole(path: Path) -> bool:
    """Whether a checkpoint has a hash that stands beside it."""
    return sha256_of(path) in sums_beside(path)


def last(directory: Path) -> Path | None:
    """The checkpoint in a run's `checkpoints` from which training goes on; None: there is none.

    It is the one that last.ckpt names, or the newest step file where a copy of the run has no
    links. An older one never stands in for it: a damaged one is refused by who reads it.
    """
    if (named := _named(directory / "last.ckpt")) is not None:
        return named
    candidates = [*sorted(directory.glob("step-*.ckpt"), reverse=True), directory / "last.ckpt"]
    return next((path for path in candidates if path.is_file()), None)


def best(directory: Path) -> Path | None:
    """The checkpoint of the best validation; None where there was no validation yet.

    It is best.ckpt, if that has a .sha256 of its own, or the one that it names. Where a copy of
    the run has lost the link, it is the step file that equals the copy, or that of the best step
    in run.json. Raises CheckpointError where that file is missing.
    """
    name = directory / "best.ckpt"
    if (named := _named(name)) is not None:
        return named
    if name.is_file() and sidecar(name).is_file():
        return name
    step = _best_step(directory.parent)
    recorded = None if step is None else directory / f"step-{step:08d}.ckpt"
    found = [path for path in (_twin(name), recorded) if path is not None and path.is_file()]
    if found:
        return max(found, key=lambda path: (path != name, path.name))
    if recorded is not None or os.path.lexists(name):
        raise CheckpointError(
            f"{recorded or name}, the best checkpoint, is missing or not whole; copy it and its "
            f".sha256 too, or choose which=last"
        )
    return None


def _named(link: Path) -> Path | None:
    """The file beside `link` that it names: as a link, or as text, which some copies make of it."""
    name = None
    if link.is_symlink():
        if link.is_file():
            return link.resolve()
        name = os.path.basename(os.readlink(link))
    elif link.is_file() and link.stat().st_size < 1000:
        text = link.read_text(encoding="utf-8", errors="replace").strip()
        name = re.split(r"[/\\]", text)[-1]
    if name and re.fullmatch(r"step-\d+\.ckpt", name) and link.with_name(name).is_file():
        return link.with_name(name)
    return None


def _twin(copy: Path) -> Path | None:
    """The step file with the content of `copy`, else `copy` if it is whole."""
    if not copy.is_file() or copy.is_symlink():
        return None
    digest = sha256_of(copy)
    for step in sorted(copy.parent.glob("step-*.ckpt"), reverse=True):
        if digest in sums_beside(step):
            return step
    return copy if digest in sums_beside(copy) else None


def _best_step(run: Path) -> int | None:
    """The step of the best validation as run.json has it."""
    try:
        step = (read_json(run / "run.json").get("best") or {}).get("step")
    except (UserError, AttributeError):
        return None
    return step if isinstance(step, int) else None
