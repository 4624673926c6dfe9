"""Deliberate mistakes, one at a time, in a copy of the code: the tests must notice each.

    make mutations                              all of them
    make mutations ARGS="'noise without'"       those whose names contain a text

A mistake is found by its text, which must occur exactly once under phasegpt/, in whatever file.
The status is 1 if a mistake turns no test red.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NOISE = "keyed_seed(kind, {}, {}, {}, {})"
DRAWN = ("key.seed", "key.step", "layer", "int(sample)")
CONTRACT = "tests/attention/test_contract.py"
LAWS = "tests/physics"
REFERENCE = "tests/ops/test_reference.py"
TRAINED = "tests/training/test_run.py"
BOARD = tuple(f"tests/analysis/test_leaderboard_{name}.py" for name in ("wins", "counts", "pages"))


class Mistake(NamedTuple):
    """`text` becomes `wrong`; `tests` are paths, and a word for -k where only some are needed."""

    text: str
    wrong: str
    tests: tuple[str, ...]
    only: str = ""


def noise_without(position: int) -> Mistake:
    drawn = [("0" if i == position else name) for i, name in enumerate(DRAWN)]
    return Mistake(NOISE.format(*DRAWN), NOISE.format(*drawn), (CONTRACT,), "noise")


MISTAKES = {
    "coupling has the wrong sign, rows": Mistake(
        "coupling * (mean_sin * cos - mean_cos * sin)",
        "coupling * (mean_cos * sin - mean_sin * cos)",
        (LAWS, REFERENCE),
    ),
    "coupling has the wrong sign, scan": Mistake(
        "force = (sin_sum * cos - cos_sum * sin) / weight",
        "force = (cos_sum * sin - sin_sum * cos) / weight",
        (LAWS, REFERENCE),
    ),
    "coupling without 1/N, rows": Mistake(
        "cos.mean(-1, keepdim=True), sin.mean(-1, keepdim=True)",
        "cos.sum(-1, keepdim=True), sin.sum(-1, keepdim=True)",
        (LAWS, REFERENCE),
    ),
    "coupling without 1/N, scan": Mistake(
        "force = (sin_sum * cos - cos_sum * sin) / weight",
        "force = sin_sum * cos - cos_sum * sin",
        (LAWS, REFERENCE),
    ),
    "coupling as coded has the other sign": Mistake(
        "omega_NH1.expand_as(theta_BNHT), -oscillators.coupling",
        "omega_NH1.expand_as(theta_BNHT), oscillators.coupling",
        ("tests/attention",),
        "as_coded",
    ),
    "coupling between layers has the wrong sign, kope": Mistake(
        "force = theta.cos() * P_sin - theta.sin() * P_cos",
        "force = theta.sin() * P_cos - theta.cos() * P_sin",
        ("tests/attention/test_kope.py",),
    ),
    "the link reads attention's output, not the block's": Mistake(
        'carry = link(x_BTD, carry, cache=None if cache is None else cache.child("link"))',
        'carry = link(mixed.y, carry, cache=None if cache is None else cache.child("link"))',
        ("tests/attention/test_carried_phases.py",),
    ),
    "attention sees the future": Mistake(
        "is_causal=not past", "is_causal=False", (CONTRACT, "tests/model/test_gpt.py")
    ),
    "attention behind a cache sees the future": Mistake(
        "device=q.device).tril(past)", "device=q.device)", (CONTRACT,)
    ),
    "noise without seed": noise_without(0),
    "noise without step": noise_without(1),
    "noise without layer": noise_without(2),
    "noise without sample": noise_without(3),
    "training noise without the run's seed": Mistake(
        "NoiseKey(self.run.seed, ", "NoiseKey(0, ", (TRAINED,), "noise"
    ),
    "learned positions of a cache are off by one": Mistake(
        "torch.arange(start, start + T, device=idx_BT.device)",
        "torch.arange(start, start + T, device=idx_BT.device) + (cache is not None and start > 0)",
        (CONTRACT,),
        "decoding",
    ),
    "rotary positions of a cache are off by one": Mistake(
        "rotary(start, time, E // 2",
        "rotary(start + (start > 0), time, E // 2",
        (CONTRACT,),
        "decoding",
    ),
    "validation loss per token and one": Mistake(
        'loss": total / tokens', 'loss": total / (tokens + 1)', (TRAINED,), "validation"
    ),
    "loss of a score per token and one": Mistake(
        "return self.nats / self.tokens",
        "return self.nats / (self.tokens + 1)",
        ("tests/model/test_scoring.py",),
    ),
    "bits per byte are nats per byte": Mistake(
        "return self.nats / math.log(2) / self.bytes",
        "return self.nats / self.bytes",
        ("tests/model/test_scoring.py",),
    ),
    "the adjoint has the wrong sign, rows": Mistake(
        "const Vec gFs = dt * A, gFc = -dt * D;",
        "const Vec gFs = dt * A, gFc = dt * D;",
        ("tests/ops/test_cpu_kernels.py",),
    ),
    "the adjoint has the wrong sign, scan": Mistake(
        "aj.cos -= pulled * unit.sin;",
        "aj.cos += pulled * unit.sin;",
        ("tests/ops/test_cpu_kernels.py",),
    ),
    "resume skips a batch": Mistake(
        'self.consumed = arguments.whole("consumed", state_dict["consumed"], 0)',
        'self.consumed = arguments.whole("consumed", state_dict["consumed"], 0) + 1',
        ("tests/training/test_resume.py",),
        "crash_and_resume",
    ),
    "leaderboard: the smaller p of the comparisons decides": Mistake(
        "return max(p_of(cell.against[key]) for key in keys) if len(ways)",
        "return min(p_of(cell.against[key]) for key in keys) if len(ways)",
        BOARD,
    ),
    "leaderboard: a gain and a loss have a small p": Mistake(
        "for key in keys) if len(ways) == 1 else 1.0", "for key in keys)", BOARD
    ),
    "leaderboard: of a text higher is better": Mistake(
        "difference.effect > 0 if measure.higher else difference.effect < 0",
        "difference.effect > 0",
        BOARD,
    ),
    "leaderboard: runs are not paired by seed": Mistake(
        "[arms[other][s] for s in seeds]", "[arms[other][s] for s in reversed(seeds)]", BOARD
    ),
    "leaderboard: chance wins": Mistake(
        "measure.floor is not None and cell.mean <= measure.floor", "False", BOARD
    ),
    "leaderboard: Holm without the survivors": Mistake(
        "dict.fromkeys([*cells, *lost, *due])", "dict.fromkeys([*cells, *lost])", BOARD
    ),
    "leaderboard: fsn need not beat token shift": Mistake(
        '("rival",) * (self.arm in DECIDED_BY_RIVAL)', "()", BOARD
    ),
    "leaderboard: a mechanism without coupling wins by it": Mistake(
        "word = (ARCHITECTURE if cell.arm in UNCOUPLED else COUPLING)", "word = (COUPLING)", BOARD
    ),
    "leaderboard: a collapsed mechanism wins": Mistake(
        "if word in WINS and cell.collapsed:", "if False:", BOARD
    ),
    "leaderboard: nine seeds confirm": Mistake(
        'last.n == (ten := len(STAGES["confirmation"]))',
        'last.n >= (ten := len(STAGES["confirmation"]) - 1)',
        BOARD,
    ),
    "leaderboard: a run that sees the future counts": Mistake(
        'if record.get("leaky"):', "if False:", BOARD
    ),
    "leaderboard: a run of a changed checkout counts": Mistake(
        'if changed(record):\n        return "not', 'if False:\n        return "not', BOARD
    ),
}


def place_of(text: str, tree: Path) -> Path:
    """The one file under phasegpt/ that has `text`, once."""
    files = [p for p in sorted((tree / "phasegpt").rglob("*")) if p.suffix in {".py", ".cpp", ".h"}]
    found = [path for path in files for _ in range(path.read_text().count(text))]
    if len(found) != 1:
        raise SystemExit(f"{text!r} occurs {len(found)} times under phasegpt/; it must once")
    return found[0]


def outcome(tree: Path, mistake: Mistake) -> tuple[int, str]:
    """Status of pytest (0 passed, 1 failed, others: it did not run) and its last line or so."""
    only = ["-k", mistake.only] if mistake.only else []
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no"]
    command += ["-p", "no:cacheprovider", "-m", "not slow", *mistake.tests, *only]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return done.returncode, failed[0] if failed else (done.stdout + done.stderr)[-300:].strip()


def main(words: list[str]) -> int:
    chosen = {k: v for k, v in MISTAKES.items() if not words or any(word in k for word in words)}
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("phasegpt", "conf", "tests", "examples", "scripts", "results", "docs"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        for name in (*(p.name for p in ROOT.glob("*.md")), "pyproject.toml", "Makefile"):
            shutil.copy(ROOT / name, tree / name)
        for name, mistake in chosen.items():
            place = place_of(mistake.text, tree)
            right = place.read_text()
            place.write_text(right.replace(mistake.text, mistake.wrong))
            status, told = outcome(tree, mistake)
            place.write_text(right)
            if status != 1:
                unnoticed.append(name)
            print(f"{'noticed' if status == 1 else 'NOT NOTICED':<12}{name}\n            {told}")
            sys.stdout.flush()
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} mistakes turn a test red")
    return 1 if unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
