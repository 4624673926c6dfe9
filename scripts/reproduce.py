"""Train a committed record's configuration again and compare every number of its curves.

python scripts/reproduce.py results/first_light/runs/softmax-seed1.json
python scripts/reproduce.py results/leaderboard/runs/leaderboard-copying-fsn-seed1.json

Exit code 1 if a number differs by more than --tolerance (relative; by default not at all). With the
record's versions, machine and thread count (OMP_NUM_THREADS) the numbers are the same to the last
digit; elsewhere float32 rounding grows with the steps. Stopped, the same command goes on.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from phasegpt.cli import guarded
from phasegpt.core import targets
from phasegpt.core.files import read_json
from phasegpt.data.config import DataConfig
from phasegpt.training.config import RunConfig
from phasegpt.training.metric_names import with_names_of_today
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics, read_record


def reproduce(record: dict[str, Any], folder: Path) -> float:
    """Train in `folder`, or go on there; the largest relative difference from the curves."""
    targets.refuse_named("the record", record["config"])
    run = RunConfig.parse(record["config"])
    data = run.data
    if isinstance(data, DataConfig):  # a generated task has no cache
        data = replace(data, cache_dir=None)  # a record does not choose where we write
    fit(replace(run, data=data, resume=bool(read_record(folder))), folder)
    rows = read_metrics(folder / "metrics.csv")
    worst = 0.0
    for name, curve in record["curves"].items():
        found = {int(row["step"]): row[name] for row in rows if name in row}
        gaps = [abs(found[step] - value) / max(abs(value), 1e-12) for step, value in curve]
        print(f"{name}: {len(gaps)} values, largest relative difference {max(gaps):.3g}")
        worst = max(worst, *gaps)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="results/STUDY/runs/ARM-seedN.json")
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--into", type=Path, default=Path("runs/reproduced"))
    args = parser.parse_args()
    if not args.record.is_file():
        parser.error(f"{args.record} is not a file; give a record such as results/*/runs/*.json")
    record = with_names_of_today(read_json(args.record, "config", "curves"))
    worst = reproduce(record, args.into / args.record.parents[1].name / args.record.stem)
    print(f"{args.record}: {'identical' if worst == 0 else f'differs by up to {worst:.3g}'}")
    sys.exit(0 if worst <= args.tolerance else 1)


if __name__ == "__main__":
    guarded(main)
