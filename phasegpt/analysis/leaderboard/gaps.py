"""What the comparisons of the leaderboard lack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from phasegpt.analysis.leaderboard.board import Board
from phasegpt.analysis.leaderboard.cells import BASELINE, is_mechanism
from phasegpt.analysis.leaderboard.runs import STAGES, arms_in_order, human, human_task


def missing(found: Board, task: str | None = None) -> Iterator[str]:
    """Sentences without their full stop, of one task or of all."""
    every = found.every_arm
    for name in found.tasks if task is None else [task]:
        ran = {run.arm for run in found.runs if run.task == name}
        told, scored = human_task(name), {s: found.of(name, s) for s in STAGES if s != "rates"}
        if not any(scored.values()):
            chosen = f"only runs that choose learning rates, of {len(found.of(name, 'rates'))} arms"
            yield f"{told}: {chosen}; nothing is compared"
            continue
        if absent := [arm for arm in every if arm not in ran]:
            yield f"{told}: no run of {_listed(absent)}"
        if alone := [a for a in every if a in ran and is_mechanism(a) and f"{a}_off" not in ran]:
            yield f"{told}: no off control of {_listed(alone)}, so nothing credits their coupling"
        for stage, arms in scored.items():
            if arms and BASELINE not in arms:
                yield f"{told}, {stage}: no run of {human(BASELINE)}, so no mechanism is compared"
            lacking: dict[tuple[int, ...], list[str]] = defaultdict(list)
            for arm in arms_in_order(arms):
                if seeds := tuple(s for s in STAGES[stage] if s not in arms[arm]):
                    lacking[seeds].append(arm)
            for seeds, names in lacking.items():
                which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
                yield f"{told}, {stage}: {which} of {_listed(names)}"


def _listed(arms: list[str]) -> str:
    return ", ".join(map(human, arms))
