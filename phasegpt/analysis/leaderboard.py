"""The leaderboard in numbers, from run records alone: what wins where, and by what part of it.

An arm is a mechanism, NAME_off without what makes it one, or a control; the stage of a run follows
from its seed. Differences are paired by seed within a stage, and a cell's p is the larger of two:
to softmax + RoPE and to the mechanism's own off control.

    found = board(read_records(study))
    found.columns[0].standing("torus")

Sources: Holm (1979), over the mechanisms of a column; a win is an intersection-union test, Berger,
Technometrics 24 (1982).
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from phasegpt.analysis import statistics
from phasegpt.analysis.leaderboard_runs import (
    CONTROLS,
    STAGES,
    Run,
    admit,
    arms_in_order,
    human,
)
from phasegpt.analysis.statistics import MINIMUM, Comparison

ALPHA = 0.05
BASELINE = "softmax"
#: A mechanism without coupling: where it wins, its architecture does.
UNCOUPLED = ("selective_rope",)
#: The control that decides beside softmax what a mechanism's win is worth.
RIVALS = {"fsn": "token_shift"}

#: A run has solved a task at this share of the best accuracy there is.
SOLVED = 0.99
#: Runs of one arm are of two groups where neighbours are further apart than this share of the way
#: from chance to the ceiling.
APART = 1 / 3

#: With fewer pairs McNemar's exact two-sided p cannot be below ALPHA.
EXACT_MINIMUM = 6

#: What a cell of enough runs (Column.least) says; one of fewer says nothing.
COUPLING, ARCHITECTURE, OWN_PART, WORSE, OPEN = (
    *("both tests", "softmax only", "off control only", "worse than both", "no difference seen"),
)
#: How far a win by both tests has come.
CONFIRMED, REFUTED, HOLDS, DROPPED, CANDIDATE = (
    *("confirmed", "not confirmed", "holds on new seeds", "did not hold on new seeds", "candidate"),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of one arm in one column at one stage, and what they are compared with.

    `against` has Comparisons to "softmax", "off" and "rival", where there are runs of common
    seeds. `p` is the larger of the first two, `holm` the same after Holm. `missed` is the least
    true difference, in the column's unit, that the test of the wider spread would find with 80%
    power at 5% before Holm. `lost` runs are excluded.
    """

    arm: str
    scores: dict[int, float]  # by seed
    mean: float
    median: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    solved: int | None = None  # runs; None for a text
    against: dict[str, Comparison] = field(default_factory=dict)
    p: float | None = None
    holm: float | None = None
    missed: float | None = None
    word: str | None = None
    candidate: bool = False
    lost: int = 0

    @property
    def n(self) -> int:
        """Runs."""
        return len(self.scores)

    @property
    def pairs(self) -> int:
        """Those that both comparisons have."""
        both = [self.against[key].n for key in ("softmax", "off") if key in self.against]
        return min(both) if len(both) == 2 else 0


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measure of one task: of a generated one its accuracy, or that beyond what it trained on.

    `groups` says why runs count as solved or not, where no t-test is made; None: t-tests.
    """

    task: str
    metric: str
    higher: bool  # is better
    chance: float | None
    ceiling: float | None
    groups: str | None
    stages: dict[str, dict[str, Cell]]

    @property
    def key(self) -> str:
        """TASK, or TASK/beyond."""
        return self.task + ("/beyond" if self.metric.endswith("beyond") else "")

    @property
    def least(self) -> int:
        """Pairs from which on a test can decide."""
        return EXACT_MINIMUM if self.groups else MINIMUM

    def stage(self, arm: str) -> str | None:
        """The stage that has most runs of an arm, of equal ones the later; None without a run."""
        there = [name for name in self.stages if arm in self.stages[name]]
        return max(
            there, key=lambda s: (self.stages[s][arm].n, list(STAGES).index(s)), default=None
        )

    def cell(self, arm: str) -> Cell | None:
        """That of `stage`."""
        stage = self.stage(arm)
        return None if stage is None else self.stages[stage][arm]

    def standing(self, arm: str) -> str | None:
        """How far a win of a mechanism by both tests has come; None where none is in sight.

        Only a complete confirmation, ten pairs, confirms or refutes.
        """
        screened, tested, last = (
            self.stages.get(name, {}).get(arm) for name in ("screening", "verdict", "confirmation")
        )
        if last and last.pairs == len(STAGES["confirmation"]):
            return CONFIRMED if last.word == COUPLING else REFUTED
        if tested and tested.pairs >= MINIMUM:
            if tested.word == COUPLING or (self.groups and tested.candidate):
                return HOLDS
            return DROPPED if screened and screened.candidate else None
        return CANDIDATE if screened and screened.candidate else None


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
        """Arms with a run in a column, a mechanism before its off control; controls first."""
        return arms_in_order(a for c in self.columns for s in c.stages.values() for a in s)

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


def is_mechanism(arm: str) -> bool:
    """Whether an arm is neither a control nor an off control."""
    return arm not in CONTROLS and not arm.endswith("_off")


def board(records: Mapping[str, Mapping[str, Any]]) -> Board:
    """The leaderboard of records by name, `phasegpt.analysis.study.read_records`."""
    runs, excluded = admit(records)
    found = Board(runs, excluded, [])
    for task in dict.fromkeys(run.task for run in runs):
        for metric in dict.fromkeys(m for r in runs if r.task == task for m in r.metrics):
            found.columns.append(_column(found, task, metric))
    return found


def _column(found: Board, task: str, metric: str) -> Column:
    stages = {stage: found.of(task, stage) for stage in STAGES if stage != "rates"}
    record = next(run.record for run in found.runs if run.task == task)
    chance, ceiling = (record.get("data", {}).get(key) for key in ("chance", "ceiling"))
    higher = metric != "val/bpb"
    column = Column(
        task=task, metric=metric, higher=higher, chance=chance, ceiling=ceiling, groups=None,
        stages={},
    )  # fmt: skip
    scores = {
        stage: {arm: kept for arm, by in arms.items() if (kept := _scores(by, metric))}
        for stage, arms in stages.items()
    }
    column = replace(column, groups=_groups(column, scores))
    lost = _lost(found.excluded, task)
    for stage, arms in scores.items():
        if arms:
            cells = {arm: _cell(column, arm, arms) for arm in arms_in_order(arms)}
            cells = {a: replace(c, lost=lost[stage, a]) for a, c in cells.items()}
            column.stages[stage] = _judged(column, cells)
    return column


def _scores(by_seed: Mapping[int, Run], metric: str) -> dict[int, float]:
    found = {seed: run.score(metric) for seed, run in sorted(by_seed.items())}
    return {seed: value for seed, value in found.items() if value is not None}


def _lost(excluded: Mapping[str, list[str]], task: str) -> dict[tuple[str, str], int]:
    """Excluded runs by stage and arm."""
    lost: dict[tuple[str, str], int] = defaultdict(int)
    for name in (name for names in excluded.values() for name in names):
        run = Run.named(name, {})
        if run and run.task == task and run.stage:
            lost[run.stage, run.arm] += 1
    return lost


def solved(value: float, ceiling: float | None) -> bool:
    """Whether an accuracy is SOLVED of the best there is."""
    return value >= SOLVED * (ceiling or 1.0)


def _groups(column: Column, scores: Mapping[str, Mapping[str, Mapping[int, float]]]) -> str | None:
    """Why the runs of a column are solved or not: an arm of which some are and some are not, or
    whose runs are APART, or softmax + RoPE always solves it; None where nothing of this is so."""
    if not column.higher:
        return None
    whole = (column.ceiling or 1.0) - (column.chance or 0.0)
    values: dict[str, list[float]] = defaultdict(list)
    for arms in scores.values():
        for arm, by_seed in arms.items():
            values[arm] += by_seed.values()
    if values[BASELINE] and all(solved(value, column.ceiling) for value in values[BASELINE]):
        return f"every run of {human(BASELINE)} solved it, so none can be better"
    for arm in arms_in_order(values):
        done = [solved(value, column.ceiling) for value in values[arm]]
        if any(done) and not all(done):
            return f"{sum(done)} of {len(done)} runs of {human(arm)} solved it"
        widest = max((b - a for a, b in pairwise(sorted(values[arm]))), default=0.0)
        if widest > APART * whole:
            return f"two runs of {human(arm)} are {widest:.2f} apart with none between them"
    return None


def _cell(column: Column, arm: str, arms: Mapping[str, Mapping[int, float]]) -> Cell:
    """The numbers of an arm and its comparisons within one stage."""
    own = dict(arms[arm])
    mean, sd, low, high = statistics.interval(list(own.values()))
    others = {"softmax": BASELINE, "off": f"{arm}_off", "rival": RIVALS.get(arm, "")}
    against, spreads = {}, []
    for key, other in others.items():
        seeds = [seed for seed in own if seed in arms.get(other, {})]
        if arm == other or not seeds:
            continue
        pair = [own[s] for s in seeds], [arms[other][s] for s in seeds]
        if column.groups:
            done = ([solved(v, column.ceiling) for v in values] for values in pair)
            against[key] = statistics.solve(*done)
        else:
            against[key] = statistics.differ(*pair)
            differences = [a - b for a, b in zip(*pair, strict=True)]
            if len(seeds) >= 3 and key != "rival":
                spread = float(np.std(differences, ddof=1))
                spreads.append(_detectable(len(seeds)) * spread)
    cell = Cell(
        arm=arm,
        scores=own,
        mean=float(mean or 0.0),
        median=float(np.median(list(own.values()))),
        sd=None if column.groups else sd,
        low=None if column.groups else low,
        high=None if column.groups else high,
        solved=sum(solved(v, column.ceiling) for v in own.values()) if column.higher else None,
        against=against,
        missed=max(spreads, default=None),
    )
    able = is_mechanism(arm) and arm not in UNCOUPLED and cell.pairs >= len(STAGES["screening"])
    clear = able and all(_clear(column, against[key]) for key in ("softmax", "off"))
    return replace(cell, candidate=clear)


@functools.cache
def _detectable(n: int) -> float:
    return statistics.detectable(n, alpha=ALPHA, two_sided=True)


def better(column: Column, difference: Comparison) -> bool:
    """Whether a difference is in the arm's favour."""
    return difference.effect > 0 if column.higher else difference.effect < 0


def _clear(column: Column, difference: Comparison) -> bool:
    """Whether a difference is in favour and its 95% interval clear of 0; of runs that solve or do
    not, whether all do where none of the others does."""
    if column.groups:
        return difference.effect == 1.0
    near = difference.low if column.higher else difference.high
    return near is not None and (near > 0 if column.higher else near < 0)


def _judged(column: Column, cells: dict[str, Cell]) -> dict[str, Cell]:
    """The cells of a stage with p, Holm's p over mechanisms, and a word where n suffices."""

    def tested(*keys: str) -> dict[str, float]:
        """Of each mechanism with enough pairs the larger p of its comparisons, after Holm."""
        p = {
            arm: max(p_of(cell.against[key]) for key in keys)
            for arm, cell in cells.items()
            if is_mechanism(arm)
            and all(key in cell.against and cell.against[key].n >= column.least for key in keys)
        }
        return dict(zip(p, statistics.holm(list(p.values())), strict=True))

    both, softmax, off = tested("softmax", "off"), tested("softmax"), tested("off")
    found = {}
    for arm, cell in cells.items():
        sides = {k: better(column, c) for k, c in cell.against.items()}
        known = [cell.against[k] for k in ("softmax", "off") if k in cell.against]
        p = max(map(p_of, known)) if is_mechanism(arm) and len(known) == 2 else None
        word = OPEN if arm in softmax or arm in off else None
        if both.get(arm, 1.0) <= ALPHA and sides["softmax"] == sides["off"]:
            word = COUPLING if sides["softmax"] else WORSE
        elif softmax.get(arm, 1.0) <= ALPHA and sides["softmax"]:
            word = ARCHITECTURE
        elif off.get(arm, 1.0) <= ALPHA and sides["off"]:
            word = OWN_PART
        if arm in UNCOUPLED and word == COUPLING:
            word = ARCHITECTURE
        found[arm] = replace(cell, p=p, holm=both.get(arm), word=word)
    return found


def p_of(difference: Comparison) -> float:
    """Its p; one that a test did not give speaks for nothing."""
    p = difference.p
    return 1.0 if p is None or math.isnan(p) else p
