"""The leaderboard in numbers, from run records alone: what wins where, and by what part of it.

An arm is a mechanism, NAME_off without what makes it one, or a control; the stage of a run follows
from its seed.

    found = board(read_records(study))
    found.columns[0].standing("torus")
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from phasegpt.analysis.leaderboard.cells import (
    COUPLING,
    UNCOUPLED,
    Cell,
    Measure,
    cell_of,
    compared_with,
    is_mechanism,
    judged,
    survivors,
)
from phasegpt.analysis.leaderboard.runs import COLLAPSED, STAGES, Run, admit, arms_in_order
from phasegpt.analysis.statistics import MINIMUM

#: How far a win by both tests has come.
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "not confirmed", "not decided on new seeds"
HOLDS, DROPPED, CANDIDATE = "holds on new seeds", "did not hold on new seeds", "candidate"


@dataclass(frozen=True, kw_only=True)
class Column(Measure):
    """A measure with the cells of its arms, by stage."""

    stages: dict[str, dict[str, Cell]]

    @property
    def shown(self) -> str | None:
        """The stage with most arms, of equal ones the later: one set of seeds for all; or None."""
        by = self.stages
        return max(by, key=lambda stage: (len(by[stage]), list(STAGES).index(stage)), default=None)

    def cell(self, arm: str) -> Cell | None:
        """That of the stage `shown`; None where the arm has no run there."""
        return None if self.shown is None else self.stages[self.shown].get(arm)

    def farthest(self, arm: str) -> tuple[str, Cell] | None:
        """The stage that has most runs of an arm, of equal ones the later, and the arm's cell."""
        there = [(name, cells[arm]) for name, cells in self.stages.items() if arm in cells]
        return max(there, key=lambda x: (x[1].n, list(STAGES).index(x[0])), default=None)

    def word(self, arm: str) -> str | None:
        """What its farthest cell says."""
        return None if (found := self.farthest(arm)) is None else found[1].word

    def standing(self, arm: str) -> str | None:
        """How far a win of a mechanism by both tests has come; None where none is in sight.

        Only a candidate of the screening or the verdict has one. Only a complete confirmation, ten
        pairs, confirms; that and a run that collapsed refute. Where runs are counted and the counts
        decide nothing, or a control lost a run for good, nothing is decided.
        """
        if not is_mechanism(arm) or arm in UNCOUPLED:
            return None
        stages = ("screening", "verdict", "confirmation")
        screened, tested, last = (self.stages.get(name, {}).get(arm) for name in stages)
        if not ((screened and screened.candidate) or (tested and tested.candidate)):
            return None
        if self.collapsed.get(("verdict", arm)):
            return DROPPED
        if self.collapsed.get(("confirmation", arm)):
            return REFUTED
        if last and last.n == (ten := len(STAGES["confirmation"])):
            others = [compared_with(arm)[key] for key in last.keys]
            if any(self.collapsed.get(("confirmation", other)) for other in others):
                return UNDECIDED
            if last.pairs == ten and last.word != COUPLING:
                return UNDECIDED if last.undecided else REFUTED
            if last.pairs == ten:
                return CONFIRMED
        if tested and tested.pairs >= MINIMUM:
            if tested.word == COUPLING or (tested.groups and tested.candidate):
                return HOLDS  # of counted runs five pairs are too few for a test
            return CANDIDATE if tested.candidate else DROPPED
        return CANDIDATE

    def survivors(self) -> list[str]:
        """Mechanisms whose mean of the screening is better than those they are compared with."""
        return survivors(self, self.stages.get("screening", {}))


@dataclass(frozen=True)
class Board:
    """Every run that counts, why others do not (names by reason), and the columns."""

    runs: list[Run]
    excluded: dict[str, list[str]]
    columns: list[Column]

    @property
    def tasks(self) -> list[str]:
        """Tasks by name."""
        return list(dict.fromkeys(column.task for column in self.columns))

    @property
    def arms(self) -> list[str]:
        """Arms with a run in a column, or one that collapsed; controls first."""
        ran = [arm for c in self.columns for cells in c.stages.values() for arm in cells]
        fell = [arm for c in self.columns for stage, arm in c.collapsed if stage != "rates"]
        return arms_in_order([*ran, *fell])

    @property
    def mechanisms(self) -> list[str]:
        """Arms that claims are made for."""
        return [arm for arm in self.arms if is_mechanism(arm)]

    @property
    def every_arm(self) -> list[str]:
        """Also those of which only the learning rate was chosen."""
        return arms_in_order(run.arm for run in self.runs)

    def of(self, task: str, stage: str) -> dict[str, dict[int, Run]]:
        """Runs of a task and stage, by arm and seed."""
        found: dict[str, dict[int, Run]] = defaultdict(dict)
        for run in self.runs:
            if (run.task, run.stage) == (task, stage):
                found[run.arm][run.seed] = run
        return dict(found)


def board(records: Mapping[str, Mapping[str, Any]]) -> Board:
    """The leaderboard of records by name, `phasegpt.analysis.study.read_records`."""
    runs, excluded = admit(records)
    found = Board(runs, excluded, [])
    for task in dict.fromkeys(run.task for run in runs):
        for metric in dict.fromkeys(m for r in runs if r.task == task for m in r.metrics):
            found.columns.append(_column(found, task, metric))
    return found


def _column(found: Board, task: str, metric: str) -> Column:
    first = next(run for run in found.runs if run.task == task)
    data = first.record.get("data", {})
    chance, ceiling = data.get("chance"), data.get("ceiling")
    if metric.endswith("beyond"):
        ceiling = data.get("ceiling_beyond", ceiling)
    lost, collapsed = _lost(found.excluded, task)
    floor, rows = None, max(run.rows(metric) or 0 for run in found.runs if run.task == task)
    if chance is not None and rows:
        floor = chance + 2 * math.sqrt(chance * (1 - chance) / rows)
    measure = Measure(
        task=task, metric=metric, higher=metric != "val/bpb", chance=chance, ceiling=ceiling,
        floor=floor, collapsed=collapsed,
    )  # fmt: skip
    stages: dict[str, dict[str, Cell]] = {}
    for stage in STAGES:
        by_arm = {} if stage == "rates" else found.of(task, stage)
        arms = {arm: kept for arm, by in by_arm.items() if (kept := _scores(by, metric))}
        if arms:
            cells = {arm: cell_of(measure, arm, arms) for arm in arms_in_order(arms)}
            cells = {
                a: replace(c, lost=lost[stage, a], collapsed=collapsed.get((stage, a), 0))
                for a, c in cells.items()
            }
            due = survivors(measure, stages.get("screening", {})) if stage == "verdict" else ()
            stages[stage] = judged(measure, cells, stage, due)
    return Column(**vars(measure), stages=stages)


def _scores(by_seed: Mapping[int, Run], metric: str) -> dict[int, float]:
    found = {seed: run.score(metric) for seed, run in sorted(by_seed.items())}
    return {seed: value for seed, value in found.items() if value is not None}


def _lost(
    excluded: Mapping[str, list[str]], task: str
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
    """Excluded runs by stage and arm; those of them that collapsed."""
    lost: dict[tuple[str, str], int] = defaultdict(int)
    collapsed: dict[tuple[str, str], int] = defaultdict(int)
    for reason, names in excluded.items():
        for run in (Run.named(name, {}) for name in names):
            if run and run.task == task and run.stage:
                lost[run.stage, run.arm] += 1
                collapsed[run.stage, run.arm] += reason == COLLAPSED
    return lost, {key: count for key, count in collapsed.items() if count}
