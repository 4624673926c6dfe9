"""Caches on disk that processes share: where they are, and how one process fills them for all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_dir(configured: str | None = None) -> Path:
    """`configured` (data.cache_dir), else $XDG_CACHE_HOME/phasegpt, else ~/.cache/phasegpt."""
    if configured:
        return Path(configured).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "phasegpt"


def digest(*parts: str) -> str:
    """Name of a folder for what depends on all of `parts`."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Fill `folder` by `build(scratch)` unless it exists; safe when several processes ask at once.

    The scratch folder gets its name when it is complete; a lock beside it lets one process build
    while the others wait. Raises OSError where the place cannot be written.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return
        for stale in folder.parent.glob(f"{folder.name}.tmp-*"):  # left by a killed process
            shutil.rmtree(stale, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
        try:
            build(scratch)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
