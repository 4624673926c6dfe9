"""What every tokenizer is: ids of a text, the bytes of an id, and where a text may be cut."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from phasegpt.core.errors import DataError

#: What ends a word. (Python's white space is more than that of Unicode, which tokenizers know.)
WORD_ENDS = re.compile(r"\S(?=[ \t\n\r])")


class Tokenizer(ABC):
    """Text to ids and back."""

    name: ClassVar[str]
    vocab_size: int
    #: Bytes of a long text that are encoded at a time.
    piece: ClassVar[int] = 1 << 20

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of `state()`."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()[:16]

    def state(self) -> dict[str, Any]:
        """What `from_state` needs, as plain JSON."""
        return {"name": self.name}

    def cut(self, text: str) -> int | None:
        """A place 0 < i < len(text) where a long text may be cut; None: `text` has none.

        The tokens of the two parts are those of the whole. Behind a word, where there is one.
        """
        return before_space(text) or anywhere(text)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`. Raises DataError for a character that has none."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one token, not always a whole character."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises DataError for a bad id."""
        return b"".join(self._bytes(i) for i in ids).decode("utf-8", errors="replace")

    def _bytes(self, token: int) -> bytes:
        if not 0 <= int(token) < self.vocab_size:
            raise DataError(
                f"token {int(token)} is outside the {self.name} vocabulary 0..{self.vocab_size - 1}"
            )
        return self.token_bytes(int(token))


def before_space(text: str) -> int | None:
    """The first place between a word and a space behind it."""
    found = WORD_ENDS.search(text)
    return found.end() if found else None


def anywhere(text: str) -> int | None:
    """The first place between two characters."""
    return 1 if len(text) > 1 else None


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2 writes each byte as a printable character: itself, or the next one from U+0100 on."""
    printable = {b for b in range(256) if chr(b).isprintable() and chr(b) != " "}
    others = (b for b in range(256) if b not in printable)
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


@functools.cache
def character_of_byte(byte: int) -> str:
    """The printable character that GPT-2's vocabulary writes for `byte`."""
    return next(c for c, b in _byte_of_character().items() if b == byte)


def plain_bytes(word: str) -> bytes:
    """The bytes of a word as GPT-2's vocabulary writes it; KeyError for another character."""
    table = _byte_of_character()
    return bytes(table[character] for character in word)
