"""kill -9 at random moments and at every rename and fsync: `make kills` (30 minutes on two cores).

For each cell of accumulation x loader workers x logger a run with noise, dropout and an adaptive
penalty is trained uncut once. Then it is killed again and again, half of the times at a random
moment, half at the n-th rename or fsync, and resumed; weights, optimizer, metrics and phases must
be those of the uncut run, bit for bit. Children are forked from a process that has loaded
everything.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_SILENT", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from helpers import NOISY, assert_identical, play

import phasegpt
from phasegpt.training.run_folder import read_record

MATRIX = list(itertools.product((1, 3), (0, 2), ("csv", "wandb", "tensorboard")))


def forked(work: Callable[[], None], *, kill_after: float | None = None) -> int:
    """The wait status of a child that does `work`, killed with -9 after so many seconds."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            if "KILLS_LOUD" not in os.environ:
                os.dup2(quiet, 2)
            work()
            status = 0
        except BaseException as error:
            if "KILLS_LOUD" in os.environ:
                import traceback

                traceback.print_exc()
            status = 2 if isinstance(error, SystemExit) else 1
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.killpg(pid, signal.SIGKILL) if _alive(pid) else None
    return os.waitpid(pid, 0)[1]


def _alive(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def dying_at(call: int) -> None:
    """From here on this process kills itself in the call-th rename or fsync, before it is done."""
    count = itertools.count(1)

    def deadly(real: Callable[..., object]) -> Callable[..., object]:
        def act(*args: object, **words: object) -> object:
            if next(count) == call:
                os.killpg(os.getpgid(0), signal.SIGKILL)
            return real(*args, **words)

        return act

    for name in ("replace", "rename", "fsync"):
        setattr(os, name, deadly(getattr(os, name)))


def phases_equal(a: Path, b: Path) -> bool:
    names = sorted(p.name for p in (a / "phase").glob("*.npz"))
    if names != sorted(p.name for p in (b / "phase").glob("*.npz")) or not names:
        return False
    for name in names:
        with np.load(a / "phase" / name) as one, np.load(b / "phase" / name) as other:
            if set(one) != set(other):
                return False
            if not all(np.array_equal(one[k], other[k], equal_nan=True) for k in one):
                return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells", default="", help="those whose name has this, such as 3-0-csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    matrix = [cell for cell in MATRIX if args.cells in "-".join(map(str, cell))]
    each = -(-args.kills // len(matrix))
    done = wrong = landed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for accumulation, workers, logger in matrix:
            cell = root / f"{accumulation}-{workers}-{logger}"
            cell.mkdir()
            words = [
                *NOISY, *play(cell), "regularizer.schedule=adaptive", f"logger={logger}",
                f"trainer.accumulate_grad_batches={accumulation}", f"data.num_workers={workers}",
                "callbacks.phase_monitor.every_n_steps=2",
                *(["logger.offline=true"] if logger == "wandb" else []),
            ]  # fmt: skip
            config = phasegpt.compose([*words, "resume=true"])
            began = time.perf_counter()
            if forked(lambda c=config, w=cell / "whole": phasegpt.fit(c, w)):  # type: ignore[misc]
                sys.stdout.write(f"{cell.name}: the uncut run failed\n")
                return 1
            seconds = time.perf_counter() - began
            for number in range(each):
                run = cell / str(number)
                at_call = rng.randrange(1, 60) if number % 2 else None

                def first(c=config, w=run, n=at_call) -> None:  # type: ignore[no-untyped-def]
                    if n is not None:
                        dying_at(n)
                    phasegpt.fit(c, w)

                status = forked(
                    first, kill_after=None if at_call else rng.uniform(0, 1.1 * seconds)
                )
                landed += os.WIFSIGNALED(status)
                resumed = forked(lambda c=config, w=run: phasegpt.fit(c, w))  # type: ignore[misc]
                try:
                    if resumed or read_record(run)["status"] != "ok":
                        raise AssertionError(f"resume ended with {resumed}")
                    assert_identical(cell / "whole", run)
                    if not phases_equal(cell / "whole", run):
                        raise AssertionError("phases differ")
                except AssertionError as error:
                    wrong += 1
                    sys.stdout.write(f"{cell.name} kill {number} (call {at_call}): {error}\n")
                done += 1
            sys.stdout.write(f"{cell.name}: {done} kills, {landed} landed, {wrong} wrong\n")
            sys.stdout.flush()
    sys.stdout.write(f"{done - wrong} of {done} resumed identically, seed {args.seed}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
