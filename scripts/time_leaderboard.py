"""How long the leaderboard will take: 20 steps of every arm in every task, in this process.

    python scripts/time_leaderboard.py [scale=small] [task=copying,text] [arm=fsn] [--out FILE]

Words are those of +sweep=leaderboard. Prints milliseconds of a step and minutes of a run, and the
minutes of each stage; --out writes all of it as JSON. Times are of the processor, in all threads:
with OMP_NUM_THREADS=1 they are what a quiet core needs, whatever else runs here.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback

from phasegpt.cli import guarded
from phasegpt.core.console import tell
from phasegpt.core.files import check_output, write_json
from phasegpt.training.config import RunConfig
from phasegpt.training.leaderboard import RATES, Leaderboard
from phasegpt.training.run import fit
from phasegpt.training.run_folder import environment

STEPS = 20


class Clock(Callback):
    """Seconds of the processor in every step and in every validation."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self._step = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(time.process_time() - self._step)

    def on_validation_start(self, *args: Any) -> None:
        self._validation = time.process_time()

    def on_validation_end(self, *args: Any) -> None:
        self.validations.append(time.process_time() - self._validation)


def timed(run: RunConfig) -> dict[str, float]:
    """Seconds of a step, of a validation, of what comes before and after, and of all of `run`."""
    few = replace(run.trainer, max_steps=STEPS, val_check_interval=STEPS)
    clock, begun = Clock(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fit(replace(run, trainer=few), Path(folder) / "run", callbacks=[clock])
    spent = time.process_time() - begun
    step, validation = statistics.median(clock.steps), clock.validations[0]
    start = max(0.0, spent - sum(clock.steps) - sum(clock.validations))
    validations = -(-run.trainer.max_steps // run.trainer.val_check_interval)
    whole = start + run.trainer.max_steps * step + validations * validation
    found = {"step": step, "validation": validation, "start": start, "run": whole}
    return {name: round(value, 5) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="as of +sweep=leaderboard")
    parser.add_argument("--out", type=Path, help="write the times here, as JSON")
    args = parser.parse_args()
    if args.out is not None:
        check_output(args.out, "--out")
    board = Leaderboard.of(args.words)
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    for task, arm in board.pairs:
        found = timed(board.run(task, arm, seed=0, rate=board.rates[0]))
        seconds.setdefault(task, {})[arm] = found
        tell(
            f"{task} {arm}: {1e3 * found['step']:.1f} ms a step, {found['run'] / 60:.2f} min a run"
        )

    print(f"{'minutes of a run':20}" + "".join(f"{task:>18}" for task in seconds))
    for arm in board.arms:
        print(f"{arm:20}" + "".join(f"{of[arm]['run'] / 60:18.2f}" for of in seconds.values()))
    each = {task: sum(of[arm]["run"] for arm in of) / 60 for task, of in seconds.items()}
    print(f"{'all arms, one seed':20}" + "".join(f"{minutes:18.1f}" for minutes in each.values()))
    minutes = {}
    for stage, seeds in board.seeds.items():
        runs = len(seeds) * (len(board.rates) if stage == RATES else 1)
        minutes[stage] = {task: round(runs * each[task], 1) for task in each}
        print(f"stage={stage}, {runs} runs of an arm: {sum(minutes[stage].values()):.0f} minutes")
    if args.out is not None:
        kept = {"seconds": seconds, "minutes": minutes, "scale": board.scale, **environment()}
        write_json(args.out, kept)


if __name__ == "__main__":
    guarded(main)
