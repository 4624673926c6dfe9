"""What pages that look into a win of the leaderboard share: its records, means, differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phasegpt.analysis.leaderboard.runs import STAGES
from phasegpt.analysis.statistics import MINIMUM, differ, interval, sign_flip
from phasegpt.analysis.study import read_records
from phasegpt.analysis.text_table import number

Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]  # records by arm and seed


def runs(study: Path, task: str) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Records of a task by arm and seed, without those that choose a learning rate."""
    found: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for name, record in read_records(study).items():
        arm, _, seed = name.removeprefix(f"leaderboard-{task}-").rpartition("-seed")
        corpus = record["config"]["data"]["corpus"]
        if corpus == task and "-lr" not in arm:
            found[arm][int(seed)] = record
    return found


def stage(of: Runs, name: str) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Those of the seeds of a stage; arms without one are left out."""
    found = {a: {s: r for s, r in by.items() if s in STAGES[name]} for a, by in of.items()}
    return {arm: by for arm, by in found.items() if by}


def scores(of: Mapping[int, Mapping[str, Any]], metric: str) -> dict[int, float]:
    """A measure of the last validation by seed."""
    return {seed: record["final"][metric] for seed, record in sorted(of.items())}


def middle(values: Iterable[float]) -> float:
    """Their mean."""
    found = list(values)
    return sum(found) / len(found)


def mean(values: Iterable[float]) -> str:
    """With its 95% interval, cut at what a share can be, from five values on."""
    found = list(values)
    centre, _, low, high = interval(found)
    if low is None or high is None or len(found) < MINIMUM:
        return number(centre)
    return f"{centre:.3f} [{max(low, 0):.3f}, {min(high, 1):.3f}]"


def told(of: Mapping[int, float], than: Mapping[int, float]) -> tuple[str, str]:
    """A difference paired by seed, with its interval and exact sign-flip p from five pairs on."""
    both = sorted(of.keys() & than.keys())
    pairs = [of[s] for s in both], [than[s] for s in both]
    found = differ(*pairs)
    if found.low is None or len(both) < MINIMUM:
        return f"{found.effect:+.3f}", ""
    differences = [a - b for a, b in zip(*pairs, strict=True)]
    p = 2 * min(sign_flip(differences), sign_flip([-d for d in differences]))
    return f"{found.effect:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", f"{min(p, 1):.3f}"


def by_stage(
    board: Runs, arm: str, metric: str, rivals: Sequence[str]
) -> Iterator[tuple[str, dict[int, float], list[str], str]]:
    """Of every stage with seeds of its own its name, an arm's scores, its differences to the
    rivals, and the largest p of them."""
    for name in ("screening", "verdict", "confirmation"):
        of = stage(board, name)
        mine = scores(of[arm], metric)
        found = [told(mine, scores(of[rival], metric)) for rival in rivals]
        yield name, mine, [difference for difference, _ in found], max(p for _, p in found)
