"""Documents in files with columns: JSON, JSON lines, Parquet; gzip. Read row by row."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from phasegpt.core.errors import DataError
from phasegpt.core.files import read_chunks, text_pieces

#: Endings of files with columns; the first two may have .gz behind them.
KINDS = (".jsonl", ".json", ".parquet")
_SPACE, _COMMA = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_ROWS = 64  # of Parquet, read at a time


def is_packed(path: Path) -> bool:
    """Whether a file is compressed by gzip, by its name."""
    return path.suffix.lower() == ".gz"


def kind(path: Path) -> str:
    """The ending that says what is in a file, without .gz."""
    return Path(path.stem if is_packed(path) else path.name).suffix.lower()


def documents(rows: Iterable[Any], column: str, place: str, split: str = "") -> Iterator[str]:
    """The texts in a column; rows without one are left out, which is said.

    `place` is where the rows are from. Raises DataError for what is no text.
    """
    empty, number, within = 0, -1, f" of {split}" if split else ""
    for number, row in enumerate(rows):
        names = ", ".join(map(str, row)) if isinstance(row, dict) else f"none, in {row!r:.60}"
        if not isinstance(row, dict) or column not in row:
            raise DataError(
                f"data.text_column={column} is not a text column of {place}; its columns are "
                f"{names}"
            )
        text = row[column]
        if isinstance(text, str):
            yield text
        elif text is None:
            empty += 1
        else:
            raise DataError(
                f"data.text_column={column} is not a text column of {place}: row {number}{within} "
                f"holds {type(text).__name__} {text!r:.60}; its columns are {names}"
            )
    if empty:
        sys.stderr.write(
            f"{place}: {empty} of {number + 1} rows{within} have no text ({column} is null) and "
            f"are left out\n"
        )


def rows(path: Path, column: str) -> Iterator[Any]:
    """The rows of a file with columns, as dicts; of Parquet `column` alone is read."""
    if kind(path) == ".parquet":
        return _parquet(path, column)
    text = text_pieces(path, unpacked(path))
    return _json_lines(path, text) if kind(path) == ".jsonl" else _json_values(path, text)


def unpacked(path: Path) -> Iterator[bytes]:
    """The content of a file in chunks, unpacked if it is compressed. Raises DataError."""
    if not is_packed(path):
        yield from read_chunks(path)
        return
    next(read_chunks(path, 1), None)  # a clear error where it cannot be read
    try:
        with gzip.open(path, "rb") as opened:
            while chunk := opened.read(1 << 20):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}); restore it, or unpack it") from error


def _json_lines(path: Path, text: Iterable[str]) -> Iterator[Any]:
    number, rest = 0, ""
    for piece in itertools.chain(text, ["\n"]):
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            number += 1
            try:
                if line.strip():
                    yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path} has no JSON in line {number} ({error}); mend that line"
                ) from None


def _json_values(path: Path, text: Iterator[str]) -> Iterator[Any]:
    """The elements of the array in a JSON file, or its values one after the other."""
    decoder = json.JSONDecoder()
    rest, at, count, array, ended = "", 0, 0, False, False
    while True:
        at = (_COMMA if count else _SPACE).match(rest, at).end()  # type: ignore[union-attr]
        if not count and not array and rest[at : at + 1] == "[":
            array, at = True, at + 1
            continue
        if array and rest[at : at + 1] == "]":
            if any(piece.strip() for piece in itertools.chain([rest[at + 1 :]], text)):
                raise DataError(f"{path} goes on after its array; make it one array, or .jsonl")
            return
        if not array and ended and count and at == len(rest):
            return
        value, stop, problem = None, len(rest), "it ends too early"
        try:
            value, stop = decoder.raw_decode(rest, at)
            complete = stop < len(rest) or ended  # a number could go on
        except (ValueError, RecursionError) as error:
            complete, problem = False, str(error)
        if complete:
            yield value
            at, count = stop, count + 1
        elif ended:
            raise DataError(f"{path} is not JSON after {count} values ({problem}); mend it")
        else:
            more = "".join(_at_least(text, len(rest) - at))  # doubled: no value costs its square
            rest, at, ended = rest[at:] + more, 0, not more


def _at_least(text: Iterator[str], length: int) -> Iterator[str]:
    got = 0
    for piece in text:
        yield piece
        if (got := got + len(piece)) > length:
            return


def _parquet(path: Path, column: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    next(read_chunks(path, 1), None)  # a clear error where it cannot be read
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            if column not in names:
                yield dict.fromkeys(names)  # a row that lacks it
                return
            for batch in file.iter_batches(_ROWS, columns=[column], use_threads=False):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error!s:.300}); restore it") from error
