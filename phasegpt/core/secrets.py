"""Keeping secrets that were given as command-line words out of records and loggers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_HIDDEN = "***"
# WANDB_API_KEY, logger.token, my-password, secret.value; not data.tokenizer, max_new_tokens.
_NAME = (
    r"(?<![A-Za-z0-9])(?:[\w.~+-]*[_.~+-])?"
    r"(?:(?:api|access|private)?_?key|token|passw(?:or)?d|passphrase|secret|credentials?|auth)"
    r"(?:\.[\w.-]*)?"
)
_ASSIGNED = re.compile(rf"({_NAME}['\"]?\s*[=:]\s*)(?!\s)([^,}}\]]+)", re.IGNORECASE)
_WHOLE = re.compile(rf"\s*['\"]?{_NAME}['\"]?\s*", re.IGNORECASE)
_IN_URL = re.compile(r"(://[^/\s:@]*):[^/\s@]+@")


def masked(words: Sequence[str]) -> list[str]:
    """Command-line words, with *** for the values of keys that are named like a secret.

    So are passwords in addresses, and the values that such variables of the environment have.
    """
    known = [
        value
        for name, value in os.environ.items()
        if len(value) >= 12 and "/" not in value and _WHOLE.fullmatch(name)
    ]

    def mask(word: str) -> str:
        key, sign, _ = word.partition("=")
        if sign and _WHOLE.fullmatch(key):
            return f"{key}={_HIDDEN}"
        word = _IN_URL.sub(rf"\1:{_HIDDEN}@", _ASSIGNED.sub(rf"\1{_HIDDEN}", word))
        for value in known:
            word = word.replace(value, _HIDDEN)
        return word

    return [mask(word) for word in words]


@contextmanager
def masked_arguments() -> Iterator[None]:
    """sys.argv is masked while a library reads it."""
    before = sys.argv
    sys.argv = masked(before)
    try:
        yield
    finally:
        sys.argv = before
