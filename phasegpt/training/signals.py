"""SIGINT and SIGTERM while a run has the process: they end it with 128 + n and a whole folder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from phasegpt.core.console import tell
from phasegpt.core.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Raises Interrupted where the program stands, or, after `defer`, at the end of the step.

    In between (`deferred`) a signal is remembered as `signum`, so that the step is completed and
    saved; a second SIGINT raises at once. What has been raised is never raised over: further
    signals are only remembered until `resume_raising`. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.advice = "run the same command with resume=true to go on"
        self._previous: dict[int, Any] = {}
        self._entered = False
        self._act: Callable[[int, bool], None] = self._raise

    def __enter__(self) -> StopSignals:
        """Take the signals over."""
        self._entered = True
        self._take()
        return self

    def __exit__(self, *exc: object) -> None:
        """Give them back to who had them."""
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._previous, self._entered = {}, False

    def defer(self) -> None:
        """From now on finish the step first. Raises Interrupted if a signal has come."""
        self._take()
        self._act = self._remember
        self.check()

    def hold(self) -> None:
        """From now on only remember."""
        self._act = lambda signum, again: None

    def resume_raising(self) -> None:
        """From now on raise where the program stands again."""
        self._take()
        self._act = self._raise

    def check(self) -> None:
        """Raise Interrupted if a signal has come: whoever it was raised in may have dropped it."""
        if self.signum is not None:
            self._raise(self.signum, True)

    def _take(self) -> None:
        """Be the handler of the signals again: Lightning puts its own on top."""
        if self._entered and threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                before = signal.signal(signum, self._receive)
                self._previous.setdefault(signum, before)

    def _receive(self, signum: int, frame: Any) -> None:
        again, self.signum = self.signum is not None, self.signum or signum
        self._act(signum, again)

    def _remember(self, signum: int, again: bool) -> None:
        if again and signum == signal.SIGINT:
            self._raise(signum, again)
        tell("\nstopping after this step; a checkpoint will be saved")

    def _raise(self, signum: int, again: bool) -> None:
        self.hold()
        raise Interrupted(f"stopped by signal {signum}; {self.advice}", signum)
