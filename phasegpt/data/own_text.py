"""The user's own files as one text: plain, JSON, JSON lines or Parquet, compressed by gzip or not.

All of it in pieces, so that memory does not grow with the text.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.core.files import expand, read_chunks, text_pieces
from phasegpt.data.config import DataConfig
from phasegpt.data.encoding import Span
from phasegpt.data.rows import KINDS, documents, is_packed, kind, rows, unpacked

_SUFFIXES = (".txt", *KINDS)
_BOM = b"\xef\xbb\xbf"


class OwnText:
    """The files of `data.path` in the order of their names, a line end added where one lacks it.

    `content` fixes the text and its split. Raises ConfigError, and DataError for missing files.
    """

    def __init__(self, config: DataConfig) -> None:
        if not config.path:
            raise ConfigError(
                "data.path is missing; data=text needs data.path=FILE, FOLDER or GLOB"
            )
        self.config = config
        self.paths = [Path(name) for name in _files(config.path)]
        columns = any(kind(path) in KINDS for path in self.paths)
        self.plain = not columns and not config.documents and not any(map(is_packed, self.paths))
        self._states = self._now()
        share = str(config.val_fraction)
        if self.plain:
            self.content = _hash("text", share, _digest(self._bytes()))
            if all(state[1] == 0 for state in self._states):
                raise DataError(f"data.path={config.path} is empty; name a file with text")
        else:
            files = [f"{p.name} {_digest(read_chunks(p))}" for p in self.paths]
            self.content = _hash("files", share, config.text_column, *files)

    def splits(self, scratch: Path) -> dict[str, Span]:
        """The last `val_fraction` of the characters are the validation split.

        A single plain file is read where it is, others are joined in `scratch`.
        """
        if self.plain and len(self.paths) == 1:
            (path,) = self.paths
            for _ in text_pieces(path, read_chunks(path)):
                pass  # it is text
            with path.open("rb") as file:
                whole = Span(path, len(_BOM) if file.read(3) == _BOM else 0, path.stat().st_size)
        else:
            whole = self._joined(scratch)
        cut = _place(whole, 1 - self.config.val_fraction)
        return {"train": whole._replace(stop=cut), "val": whole._replace(start=cut)}

    def check(self) -> None:
        """DataError if a file is not as it was when `content` was taken."""
        if self._now() != self._states:
            raise DataError(
                f"data.path={self.config.path} changed while it was read; start again once it is "
                f"complete"
            )

    def _now(self) -> list[tuple[str, int, int]]:
        try:
            return [(str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in self.paths]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error

    def _bytes(self) -> Iterator[bytes]:
        """The plain files as one text."""
        for path in self.paths:
            last, first = b"", True
            for chunk in read_chunks(path):
                yield (chunk.removeprefix(_BOM) if first else chunk)
                last, first = chunk, False
            if path is not self.paths[-1] and not last.endswith(b"\n"):
                yield b"\n"

    def _joined(self, scratch: Path) -> Span:
        """Every text and document in one file; with data.documents, where they begin."""
        target, apart = scratch / "text", scratch / "documents" if self.config.documents else None
        with target.open("wb") as file, open(apart or os.devnull, "wb") as begins:
            for path in self.paths:
                if kind(path) in KINDS:
                    column = self.config.text_column
                    for document in documents(rows(path, column), column, str(path)):
                        begins.write(np.int64(file.tell()).tobytes())
                        file.write(f"{document}\n".encode(errors="replace"))
                    continue
                ends = False
                begins.write(np.int64(file.tell()).tobytes())
                for piece in text_pieces(path, unpacked(path)):
                    file.write(piece.encode())
                    ends = piece.endswith("\n") if piece else ends
                if path is not self.paths[-1] and not ends:
                    file.write(b"\n")
        return Span.of(target, apart)


def _files(path: str) -> list[str]:
    """The files that data.path names: one of exactly that name, those of a folder, or a pattern."""
    pattern = str(expand(path))
    if os.path.isdir(pattern):
        if expand("~").resolve().is_relative_to(Path(pattern).resolve()):
            raise DataError(f"data.path={path} is not a folder of text alone: name one below it")
        paths = sorted(_below(pattern))
        if not paths:
            raise DataError(
                f"data.path={path} is a folder without text; its files must end in "
                f"{', '.join(_SUFFIXES)}, or .gz behind the first three"
            )
        return paths
    if os.path.lexists(pattern):
        return [pattern]
    try:
        found = glob.glob(pattern, recursive=True)
    except ValueError:  # a NUL
        found = []
    paths = sorted(name for name in found if os.path.isfile(name))
    if not paths:
        raise DataError(
            f"data.path={path!r:.300}: no such file (from {os.getcwd()}); correct the path, and "
            f"quote a pattern so that the shell leaves it alone"
        )
    return paths


def _below(folder: str) -> Iterator[str]:
    """The files of text in a folder and below it; what is hidden and links to folders are not."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(place, name)
            if kind(Path(name)) in _SUFFIXES and name[0] != "." and os.path.isfile(path):
                yield path


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _place(whole: Span, share: float) -> int:
    """The byte at which the first `share` of the characters ends."""

    def begins() -> Iterator[np.ndarray]:
        """Where characters begin in each chunk, behind the start."""
        left = whole.start
        for chunk in read_chunks(whole.path):
            yield (np.frombuffer(chunk, np.uint8)[left:] & 0xC0) != 0x80
            left = 0

    wanted = int(sum(int(b.sum()) for b in begins()) * share)
    at = whole.start
    for begin in begins():
        number = int(begin.sum())
        if wanted < number:
            return at + int(np.flatnonzero(begin)[wanted])
        wanted, at = wanted - number, at + len(begin)
    return whole.stop
