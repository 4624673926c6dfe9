"""What the comparisons of the leaderboard lack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from phasegpt.analysis.leaderboard.board import Board
from phasegpt.analysis.leaderboard.cells import BASELINE, DECIDED_BY_RIVAL, RIVALS, is_mechanism
from phasegpt.analysis.leaderboard.runs import (
    COLLAPSED,
    STAGES,
    Run,
    arms_in_order,
    human,
    human_task,
)

#: Mechanisms of the decisive pairs of PREREGISTRATION.md, by task: their verdict is due.
DECISIVE = {
    "copying": ("fsn",),
    "induction": ("fsn",),
    "cycle_navigation": ("kope", "selective_rope"),
}


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
        for stage, arms in scored.items():
            if arms:
                due = ran if stage == "screening" else arms
                gaps = _of_stage(stage, arms, due, _collapsed(found, name))
                yield from (f"{told}, {stage}: {gap}" for gap in gaps)
        tested = scored["verdict"].keys() | scored["confirmation"].keys()
        survivors = {arm for c in found.columns if c.task == name for arm in c.survivors()}
        if waiting := survivors - tested:
            names = _listed(arms_in_order(waiting))
            yield f"{told}, verdict: not run for {names}, which survive the screening"
        if waiting := set(DECISIVE.get(name, ())) & set(every) - tested - survivors:
            names = _listed(arms_in_order(waiting))
            yield f"{told}, verdict: not run for {names}, which the registration names"


def _of_stage(
    stage: str,
    arms: Mapping[str, Mapping[int, Run]],
    due: Iterable[str],
    collapsed: set[tuple[str, int]],
) -> Iterator[str]:
    """What the arms of a stage are to be compared with, and the seeds of those that are due; runs
    that collapsed, by arm and seed, did run."""
    if BASELINE not in arms:
        yield f"no run of {human(BASELINE)}, so no mechanism is compared"
    own = [arm for arm in arms_in_order(arms) if is_mechanism(arm)]
    if alone := [arm for arm in own if f"{arm}_off" not in arms]:
        yield f"no off control of {_listed(alone)}, so nothing credits their coupling"
    for arm in (arm for arm in own if arm in DECIDED_BY_RIVAL and RIVALS[arm] not in arms):
        yield f"no run of {human(RIVALS[arm])}, which {human(arm)} must beat"
    lacking: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for arm in arms_in_order(due):
        ran = {*arms.get(arm, {}), *(seed for other, seed in collapsed if other == arm)}
        if seeds := tuple(seed for seed in STAGES[stage] if seed not in ran):
            lacking[seeds].append(arm)
    for seeds, names in lacking.items():
        which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        yield f"{which} of {_listed(names)}"


def _collapsed(found: Board, task: str) -> set[tuple[str, int]]:
    """Arms and seeds of the runs of a task that collapsed."""
    runs = [Run.named(name, {}) for name in found.excluded.get(COLLAPSED, ())]
    return {(run.arm, run.seed) for run in runs if run and run.task == task}


def _listed(arms: list[str]) -> str:
    return ", ".join(map(human, arms))
