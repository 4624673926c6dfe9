"""Text files to token files, piece by piece and in several processes; memory does not grow.

The pieces end where their tokens are those of the whole text (Tokenizer.cut).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from phasegpt.core.errors import DataError, UserError
from phasegpt.data._tokenizer import Tokenizer, anywhere, before_space

_SHORT = 1 << 16  # of those that byte pairs are trained on: 256 wait at a time
_WINDOW = 1 << 12  # bytes in which the end of a piece is looked for at first
_COUNTS = ("tokens", "characters", "bytes", "words", "lines")


class Span(NamedTuple):
    """Bytes `start` to `stop` of a file, which are UTF-8 text.

    `documents` is a file of the places, int64, where documents begin in the whole of it.
    """

    path: Path
    start: int
    stop: int
    documents: Path | None = None

    @classmethod
    def of(cls, path: Path, documents: Path | None = None) -> Span:
        """The whole file."""
        return cls(path, 0, path.stat().st_size, documents)

    def content(self) -> bytes:
        """The text as it is in the file."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.stop - self.start)

    def read(self) -> str:
        """The text."""
        return self.content().decode()

    def begins(self) -> np.ndarray | None:
        """Where documents begin behind the start; None where there is one text."""
        if self.documents is None:
            return None
        if not self.documents.stat().st_size:
            return np.empty(0, np.int64)
        places = np.memmap(self.documents, dtype=np.int64, mode="r")
        low, high = np.searchsorted(places, [self.start, self.stop])
        return places[low:high]


class Piece(NamedTuple):
    """A part of a text; `inside`: it begins inside a word.

    `begins` are the places in the file where documents begin in it; None: it is one text.
    """

    span: Span
    inside: bool
    begins: np.ndarray | None = None


def pieces(span: Span, cut: Callable[[str], int | None], size: int) -> Iterator[Piece]:
    """A text in pieces of about `size` bytes that end where `cut` says.

    See Tokenizer.cut; a text in which it finds no place is one piece.
    """
    start, inside, begins = span.start, False, span.begins()
    with span.path.open("rb") as file:
        while start < span.stop:
            stop, limit, mine = start + size, span.stop, None
            if begins is not None:
                limit = int(min([*begins[np.searchsorted(begins, stop) :][:1], span.stop]))
                stop = limit if limit <= stop + size else stop
            stop, next_inside = _end(file, stop, limit, cut)
            if begins is not None:
                mine = begins[slice(*np.searchsorted(begins, [start, stop]))]
                if start == span.start:  # of a validation split it may be inside a document
                    mine = np.union1d(mine, [start])
            yield Piece(span._replace(start=start, stop=stop), inside, mine)
            start, inside = stop, next_inside


def _end(file: IO[bytes], at: int, stop: int, cut: Callable[[str], int | None]) -> tuple[int, bool]:
    """The first place behind byte `at` where a piece may end, and whether that is in a word."""
    width = _WINDOW
    while at < stop:
        file.seek(at)
        window = file.read(min(width, stop - at))
        # From a whole character to a whole character.
        skipped = next((i for i, byte in enumerate(window) if byte & 0xC0 != 0x80), len(window))
        text = window[skipped:].decode(errors="ignore")
        place = cut(text)
        if place is not None:
            inside = not text[place - 1].isspace() and not text[place].isspace()
            return at + skipped + len(text[:place].encode()), inside
        if at + len(window) >= stop:
            break
        width *= 4
    return stop, False


def characters(span: Span) -> set[str]:
    """Every character of a text."""
    found: set[str] = set()
    for piece in pieces(span, anywhere, 1 << 20):
        found.update(piece.span.read())
    return found


def texts(span: Span) -> Iterator[str]:
    """A text in short pieces that end behind a word, for training byte pairs on it."""
    with tqdm(total=span.stop - span.start, unit="B", unit_scale=True, desc="byte pairs",
              leave=False, disable=None) as bar:  # fmt: skip
        for piece in pieces(span, before_space, _SHORT):
            yield piece.span.read()
            bar.update(piece.span.stop - piece.span.start)


def encode(
    span: Span, tokenizer: Tokenizer, path: Path, *, processes: int | None = None
) -> dict[str, Any]:
    """Write the tokens of a text to `path`; counts of the text, and the sha256 of the file.

    Documents are encoded one by one; the places of their first tokens go to a file beside it, as
    int64, with its own `documents_sha256`. The same for every number of `processes`; None: one for
    every core that this one may use. A bar on a terminal shows how far it is.
    """
    count, digests = dict.fromkeys(_COUNTS, 0), (hashlib.sha256(), hashlib.sha256())
    total = span.stop - span.start
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=path.stem, leave=False, disable=None)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("wb"))
        beside = stack.enter_context(path.with_suffix(".documents").open("wb"))
        stack.enter_context(bar)
        found = pieces(span, tokenizer.cut, tokenizer.piece)
        most = -(-total // tokenizer.piece)  # no process without a piece
        workers = min(processes or _cores(), most)
        if workers > 1:
            results = stack.enter_context(_in_processes(found, tokenizer, workers))
        else:
            results = (_encoded(piece, tokenizer) for piece in found)
        for tokens, counts, begins in results:
            places = (begins + count["tokens"]).tobytes()
            for content, opened, digest in zip((tokens, places), (file, beside), digests,
                                               strict=True):  # fmt: skip
                opened.write(content)
                digest.update(content)
            for name, value in zip(_COUNTS, counts, strict=True):
                count[name] += value
            bar.update(counts[2])
    result = {**count, "sha256": digests[0].hexdigest()}
    if span.documents is None:
        path.with_suffix(".documents").unlink()
        return result
    return {**result, "documents_sha256": digests[1].hexdigest()}


def _cores() -> int:
    """The processor cores that this process may use; 1 where it may have no children."""
    if multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encoded(piece: Piece, tokenizer: Tokenizer) -> tuple[bytes, tuple[int, ...], np.ndarray]:
    """The tokens of a piece as they are in the file, its counts, where its documents begin."""
    content, (_, start, stop, _) = piece.span.content(), piece.span
    begins = [] if piece.begins is None else [int(place) - start for place in piece.begins]
    edges = sorted({0, *begins, stop - start})
    texts = [content[a:b].decode() for a, b in itertools.pairwise(edges)]
    tokens = [tokenizer.encode(text) for text in texts]
    first = np.cumsum([0, *map(len, tokens)])[:-1]
    places = first[np.isin(edges[:-1], begins) & np.array([len(ids) > 0 for ids in tokens])]
    counts = (
        sum(map(len, tokens)),
        sum(map(len, texts)),
        stop - start,
        sum(len(text.split()) for text in texts) - piece.inside,
        content.count(b"\n"),
    )
    return np.concatenate(tokens).tobytes(), counts, places.astype(np.int64)


@contextlib.contextmanager
def _in_processes(
    found: Iterable[Piece], tokenizer: Tokenizer, number: int
) -> Iterator[Iterator[Any]]:
    """_encoded of the pieces in their order, by `number` processes that take turns.

    A process sends a result through a pipe and waits there until it is read, so that no more than
    one piece of each is in memory. They end with this one, whatever ends it.
    """
    context = multiprocessing.get_context("fork")  # what is loaded here is theirs too
    listed, readers, workers = list(found), [], []
    try:
        for k in range(number):
            reader, writer = context.Pipe(duplex=False)
            readers.append(reader)
            mine = listed[k::number]
            arguments = (mine, tokenizer, writer, tuple(readers))
            workers.append(context.Process(target=_work, args=arguments, daemon=True))
            workers[-1].start()
            writer.close()
        yield _in_turn(readers, len(listed))
    finally:
        for worker, reader in zip(workers, readers, strict=False):
            reader.close()
            worker.terminate()
            worker.join()


def _in_turn(readers: list[Connection], number: int) -> Iterator[Any]:
    for reader in itertools.islice(itertools.cycle(readers), number):
        try:
            result = reader.recv()
        except EOFError:
            raise DataError(
                "a process that made tokens ended early, perhaps for lack of memory; make room, "
                "or use fewer cores: taskset -c 0 python -m phasegpt.train ..."
            ) from None
        if isinstance(result, Exception):
            raise result
        yield result


def _work(
    found: list[Piece], tokenizer: Tokenizer, writer: Connection, readers: tuple[Connection, ...]
) -> None:
    """Send the result of each piece, or the error that ended the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # this process is told by the one that reads
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for reader in readers:  # so that writing fails when the process that reads is gone
        reader.close()
    try:
        for piece in found:
            writer.send(_encoded(piece, tokenizer))
    except BrokenPipeError:
        pass
    except UserError as error:
        writer.send(error)
    except MemoryError:  # the process that reads sees an early end
        pass
    except Exception:
        told = traceback.format_exc()
        writer.send(RuntimeError(f"a process that made tokens failed:\n{told}"))
