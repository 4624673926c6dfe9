"""Caches on disk that processes and users share: where they are, how one process fills them."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from phasegpt.core.errors import ConfigError
from phasegpt.core.files import expand

#: Part of the keys of what is run: earlier versions let a umask make it writable by others.
OWNED = "owned"


def cache_dir(configured: str | None = None) -> Path:
    """`configured` (data.cache_dir), else $XDG_CACHE_HOME/phasegpt, else ~/.cache/phasegpt.

    Raises ConfigError where there is no home folder to put it in.
    """
    if configured:
        if "\0" in configured:
            raise ConfigError(f"data.cache_dir={configured!r} holds a NUL; name a folder")
        return expand(configured)
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "phasegpt"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise ConfigError(
            f"there is no home folder for the cache (HOME={os.environ.get('HOME')!r}); set HOME, "
            f"XDG_CACHE_HOME or data.cache_dir (cache_dir=FOLDER) to a folder that you may write to"
        )
    return Path(home) / ".cache" / "phasegpt"


def digest(*parts: str) -> str:
    """Name of a folder for what depends on all of `parts`."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Fill `folder` by `build(scratch)` unless it exists; safe when several processes ask at once.

    The scratch folder gets its name when it is complete; a lock beside it lets one process build
    while the others wait. Others may read what was built, as far as the umask lets them, and
    nobody else may write it. Raises OSError where the place cannot be written.
    """
    if folder.is_dir():
        return
    _make_like(folder.parent)
    _sweep(folder.parent)
    with _lock(folder):
        if folder.is_dir():
            return
        scratch = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
        try:
            scratch.mkdir(mode=0o755)
            build(scratch)
            for file in scratch.iterdir():
                file.chmod(stat.S_IMODE(file.stat().st_mode) & ~0o022)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _make_like(folder: Path) -> None:
    """Make a folder of the cache; where others may write the cache itself, they may there too."""
    root = folder.parent
    if folder.is_dir() or not root.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        return
    folder.mkdir(exist_ok=True)
    mode = stat.S_IMODE(root.stat().st_mode)
    if mode & 0o022:
        with suppress(PermissionError):  # another user's, made meanwhile
            folder.chmod(mode)


def _sweep(parent: Path) -> None:
    """Remove what killed processes left of other folders: those whose lock nobody holds."""
    for stale in parent.glob("*.tmp-*"):
        name = stale.name.partition(".tmp-")[0]
        with suppress(Timeout, OSError), _lock(parent / name, timeout=0):
            shutil.rmtree(stale, ignore_errors=True)


def _lock(folder: Path, timeout: float = -1) -> FileLock:
    """The lock beside `folder`. Any user may take the one that another has left."""
    return FileLock(folder.with_name(folder.name + ".lock"), mode=0o666, timeout=timeout)


def check_owner(file: Path) -> None:
    """PermissionError if anybody but us or root could have put `file` where it is, or changed it.

    For files whose content will be run. The file and its folder must be writable by nobody else;
    the two folders above (the cache's) may be by our group, or by all if they are sticky.
    """
    folder = file.parent
    for path, shared in ((file, 0o022), (folder, 0o022), *((p, 0o002) for p in folder.parents[:2])):
        found = path.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} belongs to another user (uid {found.st_uid})")
        if found.st_mode & shared and not found.st_mode & stat.S_ISVTX:
            raise PermissionError(f"{path} can be changed by other users")
