"""`make endurance`: six jobs on one empty cache, ten times; memory over 2,000 steps and 200 texts.

Prints what it measured; status 1 where a job failed, two jobs differ, or memory grows. Fewer:
ARGS="--rounds 2 --steps 400 --texts 50".
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import pytorch_lightning as pl
import torch
from helpers import TWO_STEPS, play

import phasegpt
from phasegpt import samplers
from phasegpt.training.run_folder import read_metrics, read_record

JOBS = 6
#: What the resident memory may grow by, of what it was at a tenth of the way.
GROWTH = 0.03


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def shared_cache(root: Path, rounds: int) -> int:
    """Rounds in which some job failed or had another result than the others."""
    bad = 0
    for number in range(rounds):
        folder = root / str(number)
        folder.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # of tokens and of kernels
        text = play(folder, 200_000)
        text = [word for word in text if not word.startswith("data.cache_dir")]
        config = phasegpt.compose([*TWO_STEPS, *text])
        children = []
        for job in range(JOBS):
            pid = os.fork()
            if pid == 0:
                log = os.open(folder / f"job{job}.log", os.O_WRONLY | os.O_CREAT)
                os.dup2(log, 1)
                os.dup2(log, 2)
                status = 1
                try:
                    phasegpt.fit(config, folder / f"job{job}")
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            children.append(pid)
        failed = 0
        for job, pid in enumerate(children):
            if os.waitpid(pid, 0)[1] != 0:
                failed += 1
                sys.stdout.write((folder / f"job{job}.log").read_text()[-2000:])
        found = {str(read_record(folder / f"job{job}").get("best", job)) for job in range(JOBS)}
        if failed or len(found) > 1:
            bad += 1
            sys.stdout.write(f"round {number}: {failed} failed, {len(found)} results\n")
    sys.stdout.write(f"{rounds} rounds of {JOBS} jobs on one empty cache: {bad} bad\n")
    return bad


class Watch(pl.Callback):
    """Resident memory at a tenth of the steps and at the end."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seen: dict[int, int] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step in (self.steps // 10, self.steps):
            self.seen[trainer.global_step] = resident()


def training(root: Path, steps: int) -> int:
    """1 where memory grows over a training."""
    root.mkdir()
    watch = Watch(steps)
    words = [
        *TWO_STEPS, *play(root), f"trainer.max_steps={steps}", "trainer.val_check_interval=200",
        "callbacks.phase_monitor.every_n_steps=10", "attention.noise_sigma=0.05",
    ]  # fmt: skip
    phasegpt.fit(phasegpt.compose(words), root / "run", callbacks=[watch])
    assert read_metrics(root / "run" / "metrics.csv")[-1]["step"] == steps
    return grown(f"{steps} steps", watch.seen[steps // 10], watch.seen[steps])


def generations(run: Path, texts: int) -> int:
    """1 where memory grows over many texts."""
    model = phasegpt.load(run)
    ids = torch.zeros(2, 4, dtype=torch.long)
    early = 0
    for number in range(1, texts + 1):
        samplers.decode(model, ids, max_new_tokens=12, seeds=[number, number + 1])
        if number == texts // 10:
            early = resident()
    return grown(f"{texts} generations", early, resident())


def grown(what: str, early: int, late: int) -> int:
    share = late / early - 1
    sys.stdout.write(
        f"{what}: {early / 1e6:.0f} MB after a tenth, {late / 1e6:.0f} MB at the end "
        f"({share:+.1%}, at most {GROWTH:+.0%})\n"
    )
    return int(share > GROWTH)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2000, help="at least 10")
    parser.add_argument("--texts", type=int, default=200, help="at least 10")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bad = shared_cache(root, args.rounds)
        bad += training(root / "training", args.steps)
        return int(bool(bad + generations(root / "training" / "run", args.texts)))


if __name__ == "__main__":
    sys.exit(main())
