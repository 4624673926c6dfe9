"""`make endurance`: six jobs on one empty cache, ten times; memory over 2,000 steps and 200 texts.

Prints what it measured; status 1 where a job failed, two jobs differ, or memory grows.
"""

from __future__ import annotations

import os
import sys
import tempfile
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

ROUNDS, JOBS = 10, 6
STEPS, TEXTS = 2000, 200
#: What the resident memory may grow by, of what it was at a tenth of the way.
GROWTH = 0.03


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def shared_cache(root: Path) -> int:
    """Rounds in which some job failed or found other tokens than the others."""
    bad = 0
    for number in range(ROUNDS):
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
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                try:
                    phasegpt.fit(config, folder / f"job{job}")
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(pid)
        failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
        found = {str(read_record(folder / f"job{job}").get("best", job)) for job in range(JOBS)}
        if failed or len(found) > 1:
            bad += 1
            sys.stdout.write(f"round {number}: {failed} failed, {len(found)} results\n")
    sys.stdout.write(f"{ROUNDS} rounds of {JOBS} jobs on one empty cache: {bad} bad\n")
    return bad


class Watch(pl.Callback):
    """Resident memory at a tenth of the steps and at the end."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step in (STEPS // 10, STEPS):
            self.seen[trainer.global_step] = resident()


def training(root: Path) -> int:
    """1 where memory grows over a training."""
    root.mkdir()
    watch = Watch()
    words = [
        *TWO_STEPS, *play(root), f"trainer.max_steps={STEPS}", "trainer.val_check_interval=200",
        "callbacks.phase_monitor.every_n_steps=10", "attention.noise_sigma=0.05",
    ]  # fmt: skip
    phasegpt.fit(phasegpt.compose(words), root / "run", callbacks=[watch])
    assert read_metrics(root / "run" / "metrics.csv")[-1]["step"] == STEPS
    return grown(f"{STEPS} steps", watch.seen[STEPS // 10], watch.seen[STEPS])


def generations(run: Path) -> int:
    """1 where memory grows over many texts."""
    model = phasegpt.load(run)
    ids = torch.zeros(2, 4, dtype=torch.long)
    early = 0
    for number in range(1, TEXTS + 1):
        samplers.decode(model, ids, max_new_tokens=12, seeds=[number, number + 1])
        if number == TEXTS // 10:
            early = resident()
    return grown(f"{TEXTS} generations", early, resident())


def grown(what: str, early: int, late: int) -> int:
    share = late / early - 1
    sys.stdout.write(
        f"{what}: {early / 1e6:.0f} MB after a tenth, {late / 1e6:.0f} MB at the end "
        f"({share:+.1%}, at most {GROWTH:+.0%})\n"
    )
    return int(share > GROWTH)


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bad = shared_cache(root)
        bad += training(root / "training")
        return int(bool(bad + generations(root / "training" / "run")))


if __name__ == "__main__":
    sys.exit(main())
