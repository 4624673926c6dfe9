"""Commands in processes of their own, forked from one that has torch and Lightning imported.

A fresh Python with both costs 5 to 10 s of CPU, a fork some hundredths. What is forked is a process
as any other: it has a number, signals end it, and it shares no state with the tests. The tests of
the wheel start fresh ones, as a user does.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("pytest", "numpy", "torch", "pytorch_lightning", "hydra._internal.hydra", "hydra.core"),
        *("phasegpt.training.run", "phasegpt.training.sweeps", "phasegpt.training.worker"),
    ]
)


@atexit.register
def _end_what_a_failed_test_left() -> None:
    if multiprocessing.parent_process() is None:  # this is the tests' process, not a forked one
        for child in multiprocessing.active_children():
            child.kill()


class Forked:
    """`python -m MODULE WORD...` or `python SCRIPT WORD...`: what is used of subprocess.Popen.

    `before` is called in the process first: a function of a module, to slow the command or spoil
    something in it.
    """

    def __init__(
        self,
        args: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: dict[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        text: bool = True,
        start_new_session: bool = False,
        before: Callable[[], object] | None = None,
    ) -> None:
        python, *words = (str(word) for word in args if word != "-u")  # streams are as they are
        assert python == sys.executable and text
        given, mine = [], []
        for number, wanted in enumerate((stdin, stdout, stderr)):
            if wanted is not None and wanted != subprocess.PIPE:
                given.append(os.dup(wanted.fileno()))  # type: ignore[union-attr]
                mine.append(None)
            elif wanted is None:
                given.append(os.open(os.devnull, os.O_RDONLY) if number == 0 else os.dup(number))
                mine.append(None)
            else:
                read, write = os.pipe()
                given.append(write if number else read)
                mine.append(os.fdopen(read, "r") if number else os.fdopen(write, "w"))
        self.stdin, self.stdout, self.stderr = mine
        environment = dict(os.environ if env is None else env)
        self.process = FORKS.Process(
            target=_Main(
                words, str(cwd or Path.cwd()), environment, start_new_session, before, given
            )
        )
        self.process.start()
        for descriptor in given:
            os.close(descriptor)
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    @property
    def returncode(self) -> int | None:
        """As of Popen: the exit status, or minus the signal that ended it; None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float = 1200) -> tuple[str, str]:
        """Read both streams to their end; a process that takes longer is killed."""
        limit = threading.Timer(timeout, self.kill)
        limit.start()
        found = ["", ""]

        def read(number: int, stream: Any) -> None:
            found[number] = stream.read()
            stream.close()

        streams = enumerate((self.stdout, self.stderr))
        readers = [threading.Thread(target=read, args=(i, s)) for i, s in streams if s is not None]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        self.wait()
        limit.cancel()
        return found[0], found[1]


def run(command: Sequence[str | Path], **more: Any) -> subprocess.CompletedProcess:
    """subprocess.run with its output captured as text, forked."""
    process = Forked(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    out, err = process.communicate()
    return subprocess.CompletedProcess(list(command), process.returncode or 0, out, err)


def no_network() -> None:
    """This process reaches no other machine from now on."""
    import sys

    def hook(event: str, given: tuple) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            to = given[1] if event == "socket.connect" else given
            host = to[0] if isinstance(to, tuple) else None  # a Unix socket is a path
            if host not in (None, "", "localhost", "127.0.0.1", "::1"):
                raise OSError(f"{event}: no network here, and {host!r} was asked for")

    sys.addaudithook(hook)


def python(*words: str | Path) -> list[str | Path]:
    """The command line `python WORD...`."""
    return [sys.executable, *words]


@dataclass
class _Main:
    """What the forked process does: become the command."""

    words: list[str]
    cwd: str
    environment: dict[str, str]
    leader: bool
    before: Callable[[], object] | None
    streams: list[Any]

    def __getstate__(self) -> dict[str, Any]:
        """Called as the process starts: open files are handed over, not copied."""
        return {**self.__dict__, "streams": [DupFd(stream) for stream in self.streams]}

    def __call__(self) -> None:
        for number, stream in enumerate(self.streams):
            os.dup2(stream.detach(), number)
        sys.stdin = os.fdopen(0)
        multiprocessing.set_start_method(None, force=True)  # it was handed on
        if self.leader:
            os.setsid()
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.cwd)
        try:
            if self.before is not None:
                self.before()
            flag, name, *rest = self.words if self.words[0] == "-m" else ["", *self.words]
            sys.argv = [name, *rest]
            if flag:
                sys.modules.pop(name, None)  # `before` may have imported it
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(name, run_name="__main__")
        finally:
            threading._shutdown()  # as a Python that ends; a forked process leaves these out
            atexit._run_exitfuncs()
