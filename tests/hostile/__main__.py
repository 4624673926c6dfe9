"""`make fuzz`: thousands of hostile cases; prints every fault with the number that repeats it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hostile.judge import verdict
from hostile.surfaces import cases
from hostile.workshop import Workshop


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", type=int, help="the number of one case")
    args = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        numbers = range(args.start, args.start + args.cases) if args.only is None else [args.only]
        for number, case in cases(args.seed, numbers, shop):
            found = verdict(case)
            if found is not None:
                faults += 1
                sys.stdout.write(f"--- case {number}: {case.name}\n{found.rstrip()}\n")
                sys.stdout.flush()
            elif number % 500 == 0:
                sys.stderr.write(f"case {number}: {faults} faults so far\n")
    sys.stdout.write(f"{faults} faults in {len(numbers)} cases, seed {args.seed}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
