"""Writing to a person: a terminal that is full, closed or of few letters stops no work."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def tell(text: str) -> None:
    """One line (or more) on stderr; nothing where there is none to read it."""
    _write(sys.stderr, text)


def show(text: str) -> None:
    """A result on stdout, letters that its encoding lacks escaped; a line on stderr if it fails."""
    if (error := _write(sys.stdout, text)) is not None:
        tell(f"could not write to stdout ({error}); the result is unchanged")


def _write(stream: TextIO | None, text: str) -> Exception | None:
    """Write a line and flush; the error, or None. What cannot be flushed now never is."""
    if stream is None:  # closed before Python began
        return None
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except (OSError, ValueError) as error:  # full, gone; closed
        _give_up(stream)
        return error
    return None


def _give_up(stream: TextIO) -> None:
    """Let what is left in the buffer go nowhere: Python's own flush at exit would fail again."""
    try:
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
    except (OSError, ValueError):  # no file, or closed
        return
