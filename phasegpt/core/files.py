"""Writing files that are whole at any time, whatever happens; tables as CSV; reading text, JSON."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import itertools
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phasegpt.core.errors import ConfigError, DataError, OutputError, UserError

if TYPE_CHECKING:
    import numpy as np

_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota",
    errno.EIO: "check that disk",
    errno.EROFS: "choose a place that is not read-only",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "name a file, not a folder",
    errno.ENXIO: "open its other end first, or name a file",
}
# What a file of text must not begin with: what it is then, and how to make text of it.
_FORMATS = {
    b"\x1f\x8b": ("compressed by gzip", "unpack it: gunzip -k {}"),
    b"BZh": ("compressed by bzip2", "unpack it: bunzip2 -k {}"),
    b"\xfd7zXZ\0": ("compressed by xz", "unpack it: unxz -k {}"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it: unzstd {}"),
    b"PK\x03\x04": ("a zip archive", "unpack it: unzip {}"),
    b"\xff\xfe\0\0": ("UTF-32", "convert it: iconv -f utf-32 -t utf-8 {} > NEW"),
    b"\0\0\xfe\xff": ("UTF-32", "convert it: iconv -f utf-32 -t utf-8 {} > NEW"),
    b"\xff\xfe": ("UTF-16", "convert it: iconv -f utf-16 -t utf-8 {} > NEW"),
    b"\xfe\xff": ("UTF-16", "convert it: iconv -f utf-16 -t utf-8 {} > NEW"),
}


def expand(path: str | Path) -> Path:
    """`path` with ~ in front replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(path))


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError: one line with the path and the remedy."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        number = getattr(error, "errno", None)
        cause = getattr(error, "strerror", None) or str(error)
        remedy = _REMEDIES.get(number or 0, "choose another place")
        raise OutputError(f"cannot write {str(path)!r:.300}: {cause}; {remedy}") from error


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into a DataError: one line with the path and the remedy."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        cause = error.strerror or error
        raise DataError(f"cannot read {path}: {cause}; correct the path or its rights") from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    A file that is there keeps its mode, and its owner where that can be; a link is followed. What
    is no regular file (a terminal, /dev/null, a pipe with a reader) is written into. Raises
    OutputError, with everything that was there before as it was.
    """
    with writing(path):
        if (there := _status(path)) is not None and not stat.S_ISREG(there.st_mode):
            return _write_into(path, there, content)
        path = Path(os.path.realpath(path))
        temporary = path.with_name(f".{path.name[:60]}.{_writer()}.tmp")
        _sweep(path)
        try:
            with open(temporary, "xb") as file:
                if there is not None:
                    with suppress(OSError):
                        os.fchown(file.fileno(), there.st_uid, there.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _status(path: Path) -> os.stat_result | None:
    """What stands at `path`, links followed; None where there is nothing."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _write_into(path: Path, there: os.stat_result, content: bytes) -> None:
    """Write into a character device or a pipe that somebody reads."""
    _refuse_others(there)
    # Without O_NONBLOCK a pipe that nobody reads would be waited for without end.
    number = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    os.set_blocking(number, True)
    with open(number, "wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]


def _refuse_others(there: os.stat_result) -> None:
    """OSError for what is neither a file, a character device nor a pipe."""
    if not any(kind(there.st_mode) for kind in (stat.S_ISREG, stat.S_ISCHR, stat.S_ISFIFO)):
        number = errno.EISDIR if stat.S_ISDIR(there.st_mode) else errno.ENXIO
        raise OSError(number, os.strerror(number))


def _writer() -> str:
    """The process and thread that write, as temporary names carry them."""
    return f"{os.getpid()}-{threading.get_native_id()}"


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` whose writer is dead."""
    for stale in path.parent.glob(f".{_escaped(path.name[:60])}.*.tmp"):
        writer = stale.name.split(".")[-2]
        process = writer.partition("-")[0]
        if process.isdecimal() and (writer == _writer() or not _alive(int(process))):
            with suppress(OSError):
                stale.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def check_output(path: Path, name: str = "output") -> None:
    """ConfigError if `path` could not be written now; nothing is left behind.

    For the start of work whose result goes there. `name` is what the user calls it.
    """
    try:
        with writing(path):
            _try_to_write(path)
    except OutputError as error:
        raise ConfigError(f"{name}: {error}") from error


def _try_to_write(path: Path) -> None:
    if (there := _status(path)) is not None:
        _refuse_others(there)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not stat.S_ISREG(there.st_mode):
            return  # a pipe must not be opened to try: its reader would see an end
    path = Path(os.path.realpath(path))
    for part in path.parts:
        if len(os.fsencode(part)) > 255:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    with tempfile.TemporaryFile(dir=folder, prefix=".", suffix=".tmp") as file:  # never has a name
        file.write(b"\0" * 4096)
        file.flush()


def check_name(value: str, key: str) -> str:
    """`value`, fit to be one folder's or file's name; ConfigError naming `key` otherwise."""
    reason = None
    if not value or value != value.strip():
        reason = "it is empty or has space around it"
    elif value.startswith("."):
        reason = "it begins with a dot"
    elif any(c in "/\\" or not c.isprintable() for c in value):
        reason = "it holds / or \\ or a character that cannot be printed"
    elif len(value.encode(errors="replace")) > 120:
        reason = f"it has {len(value)} characters"
    if reason:
        raise ConfigError(
            f"{key}={value!r:.80} names no folder: {reason}; use up to 120 letters, digits, dots "
            f"and dashes, as in {key}=my-run"
        )
    return value


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Rows under a header as CSV, floats in the format `form`, nothing for None."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row[name] for name in columns)
        writer.writerow([form.format(v) if isinstance(v, float) else v for v in values])
    return buffer.getvalue()


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8; DataError says why there is none."""
    return "".join(text_pieces(path, [read_bytes(path)]))


def text_pieces(path: str | Path, chunks: Iterable[bytes]) -> Iterator[str]:
    """The text of UTF-8 `chunks` as they come, without a byte-order mark.

    Raises DataError, with `path`, for what is no such text.
    """
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in itertools.chain(chunks, [b""]):
        for beginning, (what, remedy) in _FORMATS.items() if offset == 0 else ():
            if chunk.startswith(beginning):
                raise DataError(f"{path} is {what}, not UTF-8 text; {remedy.format(path)}")
        if (zero := chunk.find(b"\0")) >= 0:
            raise DataError(
                f"{path} is not text: there is a NUL byte at offset {offset + zero}; save it as "
                f"UTF-8 text"
            )
        begun = len(decoder.getstate()[0])  # of a character that the chunk before did not end
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                f"{offset - begun + error.start}; convert it, for instance: iconv -f latin1 -t "
                f"utf-8"
            ) from error
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(chunk)


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file; DataError where there is none that can be read."""
    return b"".join(read_chunks(path, -1))


def read_chunks(path: str | Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The content of a regular file, `size` bytes at a time; DataError as read_bytes."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no file but a pipe, socket or device"
            raise DataError(f"{path} is {kind}; name a regular file, or save it as one first")
        with open(path, "rb") as file:
            while chunk := file.read(size):
                yield chunk
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {cause}; correct the path or its rights") from error


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz; DataError where it is not whole, or holds more than numbers."""
    import numpy as np

    content = io.BytesIO(read_bytes(file))
    try:
        with np.load(content, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # of zip, of zlib, of numpy's header, of the array inside
        raise DataError(
            f"{file} is no whole .npz ({type(error).__name__}: {error!s:.200}); restore it, or "
            f"remove it"
        ) from error


def read_json(file: Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file; DataError where there is none or it lacks one of `keys`."""
    try:
        found = json.loads(read_bytes(file).decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8
        raise DataError(f"{file} is not JSON ({error}); restore it, or make it again") from None
    fields = found if isinstance(found, dict) else {}
    if not keys and fields is not found:
        raise DataError(f"{file} holds a {type(found).__name__}, not an object; restore it")
    if lacking := [key for key in keys if key not in fields]:
        raise DataError(f"{file} has no {', '.join(lacking)}; restore it, or make it again")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON; OutputError where the place cannot be written."""
    write_output(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


def write_output(path: Path, content: bytes) -> None:
    """Write a file whole, with the folders above it; OutputError where that cannot be done."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
