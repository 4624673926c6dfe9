"""Files from outside: the user's data folder, reads checked by sha256, hosts."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from phasegpt.core import diskcache
from phasegpt.core.console import tell
from phasegpt.core.errors import DataError
from phasegpt.core.files import expand, read_bytes

DATA_DIR_VARIABLE = "PHASEGPT_DATA_DIR"
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def data_dir() -> Path | None:
    """The folder that $PHASEGPT_DATA_DIR names, or None where the variable is not set.

    Raises DataError for a folder that does not exist.
    """
    value = os.environ.get(DATA_DIR_VARIABLE)
    if not value:
        return None
    folder = expand(value)
    if not folder.is_dir():
        raise DataError(
            f"{DATA_DIR_VARIABLE}={value} is not a folder; correct it or unset the variable"
        )
    return folder


def where_to_put(files: dict[str, str]) -> str:
    """The part of an error that says how to supply files (path under the data folder: sha256)."""
    listed = "\n".join(f"  {name}  (sha256 {digest})" for name, digest in files.items())
    folder = os.environ.get(DATA_DIR_VARIABLE)
    place = f"{DATA_DIR_VARIABLE}={folder}" if folder else f"a folder named by {DATA_DIR_VARIABLE}"
    return f"connect to the network, or put into {place}:\n{listed}"


def verify(content: bytes, sha256: str, origin: str) -> bytes:
    """`content`, after its hash has been compared; raises DataError naming `origin`."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{origin} is not the known file: its sha256 is {found}, expected {sha256}; "
            f"it may be damaged or have other line ends; replace or remove it"
        )
    return content


def local_file(name: str, sha256: str) -> bytes | None:
    """A known file from the data folder, verified; None where it is not there."""
    folder = data_dir()
    if folder is None or not (folder / name).is_file():
        return None
    return verify(read_bytes(folder / name), sha256, str(folder / name))


def online(url: str, *, timeout: float = 2.0) -> bool:
    """Whether the host of `url` (or the proxy on the way) accepts a connection in `timeout` s.

    False at once where HF_HUB_OFFLINE, HF_DATASETS_OFFLINE or TRANSFORMERS_OFFLINE is set. Asked
    before any download, because clients retry a dead network for half a minute.
    """
    if any(os.environ.get(v, "").upper() in {"1", "ON", "YES", "TRUE"} for v in _OFFLINE_VARIABLES):
        return False
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    if parts.scheme in proxies and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxies[parts.scheme])
    answered = threading.Event()

    def connect() -> None:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        try:
            socket.create_connection((parts.hostname, port), timeout).close()
            answered.set()
        except OSError:
            pass

    # In a thread: the name lookup inside has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def download(url: str, sha256: str) -> bytes | None:
    """The file at `url`, verified; None where its host cannot be reached.

    Raises DataError where the transfer ends early.
    """
    if not online(url):
        return None
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"cannot download {url}: {error}") from error
    return verify(content, sha256, url)


def save(url: str, target: Path) -> bool:
    """Write the file at `url` to `target` as it comes; False where its host cannot be reached.

    It is not verified. Raises DataError where the transfer ends early.
    """
    if not online(url):
        return False
    tell(f"downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=30) as response, target.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"cannot download {url}: {error}") from error
    return True


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """diskcache.build_once for the caches of data; DataError where the place cannot be written."""
    try:
        diskcache.build_once(folder, build)
    except OSError as error:
        raise DataError(
            f"cannot build {folder}: {error.strerror or error}; data.cache_dir (cache_dir=FOLDER) "
            f"must be a folder with room that you may write to"
        ) from error
