"""A check in a process of its own, which ends with everything that it started.

On a GPU each is a fresh Python, so that what one does to the device cannot touch the next. A dry
run forks: it has no device to spoil, and importing torch anew costs more than the check.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu import ROOT, Check, Run

TAIL = 4000  # characters of what a check printed that are kept when it goes wrong


def measured(check: Check, run: Run, limit: float) -> dict[str, Any]:
    """The record of one check: status, seconds, limit, and its result or what went wrong.

    status: ok, failed (a claim does not hold), error (it raised or died), timeout.
    """
    context = multiprocessing.get_context("fork" if run.dry else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        process = context.Process(target=_child, args=(check, run, place))
        begin = time.perf_counter()
        process.start()
        try:
            process.join(limit)
            late = process.is_alive()
        finally:
            _end(process)
        record: dict[str, Any] = {"name": check.name, "question": check.question}
        record |= {"seconds": round(time.perf_counter() - begin, 1), "limit": round(limit)}
        result, log = place / "result.json", place / "log"
        if result.is_file() and not late:
            found = json.loads(result.read_text(encoding="utf-8"))
            return record | {"status": "failed" if found.get("failures") else "ok", "result": found}
        said = _end_of(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else ""
        why = f"it ended with status {process.exitcode}"
        why = f"it took longer than {limit:.0f} s and was ended" if late else why
        said = _anywhere(said)
        return record | {"status": "timeout" if late else "error", "why": why, "log": said}


def _end_of(log: str) -> str:
    """The last TAIL characters, and before them how many tests passed until then, and which failed.

    Without a test the tail alone.
    """
    failed = [line for line in log[:-TAIL].splitlines() if " FAILED " in f" {line} "]
    passed = sum(" PASSED " in f" {line} " for line in log.splitlines())
    told = [f"{passed} tests passed; these failed:", *failed] if failed or passed else []
    return "\n".join([*told, log[-TAIL:]])


def _child(check: Check, run: Run, place: Path) -> None:
    """Run a check as the leader of a session; its result, whole, is the last thing it writes."""
    os.setsid()
    log = open(place / "log", "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - until the end
    for stream in (1, 2):  # of what it starts too
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    try:
        found = _anywhere(json.dumps(_finite(check.function(run)), allow_nan=False))
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # threads of Lightning and of torch may never end
    scratch = place / "result.tmp"
    scratch.write_text(found, encoding="utf-8")
    scratch.rename(place / "result.json")
    os._exit(0)


def _end(process: Any) -> None:
    """Kill a process and all of its session; nothing where they have ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():  # it had no session yet
        process.kill()
    process.join()


def _anywhere(text: str) -> str:
    """The text with paths as seen from the checkout: where that lies concerns no reader."""
    return text.replace(f"{ROOT}/", "")


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return value
