"""The judge of a hostile case: success, or one short UserError; anything else is a fault."""

from __future__ import annotations

import contextlib
import io
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from phasegpt.core.errors import UserError

MOST_LINES = 20
#: A case that takes longer hangs, or does what no one asked for; generous for a slow machine.
MOST_SECONDS = 120


@dataclass(frozen=True)
class Case:
    """One hostile input: `call` is what a user would do with it."""

    name: str
    call: Callable[[], Any]


@contextlib.contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def verdict(case: Case) -> str | None:
    """None where the outcome is one that a user is owed, else what was wrong with it."""
    said = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            _deadline(MOST_SECONDS),
        ):
            warnings.simplefilter("ignore")
            case.call()
    except UserError as error:
        lines = str(error).splitlines()
        if not str(error).strip():
            return f"{type(error).__name__} without a message"
        if len(lines) > MOST_LINES:
            return f"{type(error).__name__} of {len(lines)} lines: {lines[0]}"
        return None
    except BaseException:  # SystemExit too: a library function ends no process
        return "".join(traceback.format_exc(limit=-6))
    return None
