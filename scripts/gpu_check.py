"""Everything worth knowing of one GPU, in order of worth, within some minutes.

    python scripts/gpu_check.py [--minutes 15] --out results/gpu      [--only NAME ...]
    python scripts/gpu_check.py --dry-run --out FOLDER                all of it on a CPU, small
    python scripts/gpu_check.py --list                                the checks and their limits
    python scripts/gpu_check.py --wheels                              what to bring along

Every check has a process and a time limit of its own, and its record is written as it ends: what
fails, dies or hangs takes no other along. Writes checks.json, README.md, and a record of every
whole run of Phase A, five files. --only keeps the records of the other checks that are in --out.
The status is 1 if a check did not pass. docs/gpu.md says how to bring it to a machine.
"""

import argparse
import os
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # the checkout beside it, installed or not
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

#: What a machine with torch, pytorch-lightning and pytest lacks: to be brought as wheels.
BROUGHT = ("hydra-core", "omegaconf", "antlr4-python3-runtime", "pydantic")
#: With what these need in turn that may not be there.
WHEELS = (*BROUGHT, "pydantic_core", "annotated-types", "typing-inspection")
SOURCE_ONLY = ("antlr4-python3-runtime",)  # the index has no wheel of it
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
KEPT_BACK = 5.0  # seconds for the last record and page


def checks() -> list[Any]:
    """In order of worth. A limit is some three times what the check is thought to take."""
    from gpu import Check, decoding, kernels, machine, mechanisms, training

    arms = {"winner": training.WINNER, "baseline": training.BASELINE}
    ways = {"eager": False, "compiled": True}
    steps = [
        Check(
            f"steps: {arm}, {way}",
            partial(training.steps, arm=arms[arm], compiled=ways[way]),
            (60, 150)[ways[way]],
            "How fast is Phase A, and does the host wait?",
        )
        for way in ways
        for arm in arms
    ]
    runs = {"winner": training.WINNER, "K = 0": training.WITHOUT, "baseline": training.BASELINE}
    whole = [
        Check(f"phase A: {n}", partial(training.whole, arm=a), 150, "What does Phase A come to?")
        for n, a in runs.items()
    ]
    return [
        Check("environment", machine.machine, 45, "Can the kernels run here?"),
        Check("tests", machine.tests, 180, "Do the tests that need a GPU pass?"),
        Check("sanitizer", machine.sanitizer, 90, "Do the kernels touch only what is theirs?"),
        Check("kernels", kernels.kernels, 60, "How near are the kernels to the device's limit?"),
        Check("dispatch", mechanisms.dispatch, 60, "Which attention kernel does a layer get?"),
        *steps,
        Check("mechanisms", mechanisms.table, 120, "Is every layer right, causal, and how fast?"),
        Check("decoding", decoding.decoding, 90, "How fast is decoding?"),
        *whole,
        Check("torch.compile", kernels.against_compile, 150, "And beside torch.compile?"),
    ]


def wheels() -> str:
    """Commands that fetch the wheels for Python 3.12 on x86-64, and install them there."""
    pins = dict(
        line.strip().split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    known = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    named = {name: f"{name}=={known[name.lower().replace('_', '-')]}" for name in WHEELS}
    ready = [pin for name, pin in named.items() if name not in SOURCE_ONLY]
    built = [named[name] for name in SOURCE_ONLY]
    platforms = " ".join(f"--platform {p}_x86_64" for p in PLATFORMS)
    return "\n".join([
        "# here, where there is a network: 3 MB",
        f"python -m pip download -d .whl --no-deps --only-binary=:all: --python-version 3.12 "
        f"--implementation cp {platforms} {' '.join(ready)}",
        f"python -m pip wheel -w .whl --no-deps {' '.join(built)}",
        "# there, after .whl and the text were copied into the checkout",
        "python3 -m pip install --no-index --no-deps --target site .whl/*.whl",
        "PYTHONPATH=site PHASEGPT_DATA_DIR=texts python3 scripts/gpu_check.py --out results/gpu",
    ])  # fmt: skip


def take(run: Any, chosen: list[Any], minutes: float, *, keep: bool) -> int:
    """Make the checks, writing record and page after each; the number that did not pass.

    `keep`: the records of other checks stay, and those for which there is no time left.
    """
    from gpu.page import page
    from gpu.process import measured

    from phasegpt.core.files import write_json, write_output

    begin, file = time.monotonic(), run.out / "checks.json"
    record: dict[str, Any] = {"dry": run.dry, "minutes": minutes, "command": _command()}
    earlier = _earlier(file, run.dry) if keep else {}
    names = [check.name for check in checks()]
    found = {name: earlier[name] for name in names if name in earlier}
    for check in chosen:
        left = 60 * minutes - KEPT_BACK - (time.monotonic() - begin)
        if left < 5:
            done = {"name": check.name, "question": check.question, "status": "not run"}
            done = earlier.get(check.name, done)
        else:
            done = measured(check, run, min(check.limit, left))
        found[check.name] = done
        record["checks"] = [found[name] for name in names if name in found]
        write_json(file, record)
        write_output(run.out / "README.md", page(record).encode())
        said = "; ".join([*done.get("result", {}).get("failures", []), done.get("why", "")])
        line = f"{done['status']:8} {done.get('seconds', 0):6.1f} s  {check.name}  {said}"
        print(line.rstrip()[:400], flush=True)
    print(f"{time.monotonic() - begin:.0f} s; {file}, {run.out / 'README.md'}")
    return sum(found[check.name]["status"] != "ok" for check in chosen)


def _earlier(file: Path, dry: bool) -> dict[str, Any]:
    """Records of an earlier call by name; none where it was of another kind."""
    from phasegpt.core.files import read_json

    record = read_json(file, "checks", "dry") if file.is_file() else {"checks": []}
    if not all({"name", "question", "status"} <= set(check) for check in record["checks"]):
        sys.exit(f"{file} is of another form; give another --out, or remove it")
    if record["checks"] and record["dry"] != dry:
        sys.exit(f"{file} is of {'a dry run' if record['dry'] else 'a GPU'}; give another --out")
    return {check["name"]: check for check in record["checks"]}


def _command() -> str:
    return shlex.join(["python", "scripts/gpu_check.py", *sys.argv[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15, help="for all checks together")
    parser.add_argument("--out", type=Path, help="folder of the record and the page")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="checks whose name begins so")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at small size")
    parser.add_argument("--list", action="store_true", help="the checks and their limits")
    parser.add_argument("--wheels", action="store_true", help="what to bring to the machine")
    args = parser.parse_args()
    if args.wheels:
        print(wheels())
        return
    if args.list:
        print("\n".join(f"{c.limit:4.0f} s  {c.name:24} {c.question}" for c in checks()))
        return
    if args.out is None:
        parser.error("give --out FOLDER")
    import torch  # only now: --help answers at once
    from gpu import Run

    from phasegpt.core.files import check_output

    chosen = [c for c in checks() if not args.only or c.name.startswith(tuple(args.only))]
    for word in args.only or ():
        if not any(check.name.startswith(word) for check in checks()):
            parser.error(f"--only {word}: no check begins so; --list names them")
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes} must be above 0")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --dry-run tries the checks on a CPU")
    check_output(args.out / "checks.json", "--out")
    run = Run("cpu" if args.dry_run else "cuda", args.dry_run, args.out)
    sys.exit(take(run, chosen, args.minutes, keep=bool(args.only)) > 0)


if __name__ == "__main__":
    from phasegpt.cli import guarded

    guarded(main)
