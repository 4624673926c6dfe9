"""Writing files that are whole at any time, whatever happens; tables as CSV; reading text, JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phasegpt.core.errors import ConfigError, DataError


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if (zero := content.find(b"\0")) >= 0:
        raise DataError(
            f"{path} is not text: there is a NUL byte at offset {zero}; save it as UTF-8 text"
        )
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}; "
            f"convert it, for instance: iconv -f latin1 -t utf-8"
        ) from error


def read_json(file: Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file; DataError where there is none or it lacks one of `keys`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of JSON or of UTF-8
        raise DataError(f"{file} is not JSON ({error}); restore it, or make it again") from None
    fields = found if isinstance(found, dict) else {}
    if not keys and fields is not found:
        raise DataError(f"{file} holds a {type(found).__name__}, not an object; restore it")
    if lacking := [key for key in keys if key not in fields]:
        raise DataError(f"{file} has no {', '.join(lacking)}; restore it, or make it again")
    return found


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON; ConfigError where the place cannot be written."""
    write_output(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


def write_output(path: Path, content: bytes) -> None:
    """Write a file whole, with the folders above it; ConfigError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise ConfigError(f"cannot write output={path}: {error.strerror}") from error
