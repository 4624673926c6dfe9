"""The leaderboard in numbers, from run records alone: what wins where, and by what part of it.

An arm is a mechanism, NAME_off without what makes it one, or a control; the stage of a run follows
from its seed. Differences are paired by seed within a stage, and a cell's p is the largest of its
comparisons: to softmax + RoPE, to the mechanism's own off control, and of fsn to token shift.

    found = board(read_records(study))
    found.columns[0].standing("torus")

Sources: Holm (1979), over the mechanisms of a column; a win is an intersection-union test, Berger,
Technometrics 24 (1982).
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from phasegpt.analysis import statistics
from phasegpt.analysis.leaderboard_runs import (
    COLLAPSED,
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
#: The control without coupling that a mechanism's win is shown beside.
RIVALS = {"fsn": "token_shift", "kope": "selective_rope"}
#: Those that must beat it too: token shift has fsn's delay, a ready-made induction head.
DECIDED_BY_RIVAL = ("fsn",)

#: A run has solved a task at this share of the best accuracy there is.
SOLVED = 0.99
#: Runs of one arm are of two groups where neighbours are further apart than this share of the way
#: from chance to the ceiling.
APART = 1 / 3

#: With fewer pairs McNemar's exact two-sided p cannot be below ALPHA.
EXACT_MINIMUM = 6

#: What a cell of enough pairs (Cell.least) says; one of fewer says nothing.
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
    seeds. `p` is the largest of those that decide, `holm` the same after Holm. `missed` is the
    least true difference, in the column's unit, that the test of the wider spread would find with
    80% power at 5% before Holm. `lost` runs are excluded, `collapsed` of them had a loss that was
    not finite or fell out. `counted` says by comparison, and under "own" for the arm's runs alone,
    why runs count as solved or not, so that no t-test and no interval is given.
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
    collapsed: int = 0
    counted: dict[str, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Runs."""
        return len(self.scores)

    @property
    def groups(self) -> str | None:
        """Why runs are counted, of the arm or of a comparison that decides."""
        return next((self.counted[k] for k in ("own", *self.keys) if k in self.counted), None)

    def least(self, key: str) -> int:
        """Pairs from which on the test of a comparison can decide."""
        return EXACT_MINIMUM if key in self.counted else MINIMUM

    @property
    def keys(self) -> tuple[str, ...]:
        """The comparisons that decide."""
        return ("softmax", "off") + ("rival",) * (self.arm in DECIDED_BY_RIVAL)

    @property
    def pairs(self) -> int:
        """Those that every comparison that decides has."""
        return min((self.against[k].n if k in self.against else 0) for k in self.keys)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measure of one task: of a generated one its accuracy, or that beyond what it trained on.

    `collapsed` counts such runs by stage and arm, also where an arm has no other.
    """

    task: str
    metric: str
    higher: bool  # is better
    chance: float | None
    ceiling: float | None
    stages: dict[str, dict[str, Cell]]
    collapsed: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """TASK, or TASK/beyond."""
        return self.task + ("/beyond" if self.metric.endswith("beyond") else "")

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

        Only a complete confirmation, ten pairs, confirms; that and a run that collapsed refute.
        """
        if not is_mechanism(arm) or arm in UNCOUPLED:
            return None
        stages = ("screening", "verdict", "confirmation")
        screened, tested, last = (self.stages.get(name, {}).get(arm) for name in stages)
        hoped = bool((screened and screened.candidate) or (tested and tested.candidate))
        if self.collapsed.get(("verdict", arm)):
            return DROPPED if hoped else None
        if self.collapsed.get(("confirmation", arm)):
            return REFUTED
        if last and last.pairs == len(STAGES["confirmation"]):
            return CONFIRMED if last.word == COUPLING else REFUTED
        if tested and tested.pairs >= MINIMUM:
            if tested.word == COUPLING or (tested.groups and tested.candidate):
                return HOLDS  # of counted runs five pairs are too few for a test
            return CANDIDATE if tested.candidate else DROPPED if hoped else None
        return CANDIDATE if screened and screened.candidate else None

    def survivors(self) -> list[str]:
        """Mechanisms whose mean of the screening is better than those they are compared with."""
        sign = 1 if self.higher else -1
        screened = self.stages.get("screening", {})
        return [
            arm
            for arm, cell in screened.items()
            if is_mechanism(arm)
            and all(
                key in cell.against and cell.against[key].n >= len(STAGES["screening"])
                for key in ("softmax", "off")
            )
            and all(
                sign * cell.mean > sign * screened[other].mean for other in (BASELINE, f"{arm}_off")
            )
        ]


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
    lost, collapsed = _lost(found.excluded, task)
    column = Column(
        task=task, metric=metric, higher=higher, chance=chance, ceiling=ceiling,
        stages={}, collapsed=collapsed,
    )  # fmt: skip
    scores = {
        stage: {arm: kept for arm, by in arms.items() if (kept := _scores(by, metric))}
        for stage, arms in stages.items()
    }
    for stage, arms in scores.items():
        if arms:
            cells = {arm: _cell(column, arm, arms) for arm in arms_in_order(arms)}
            cells = {
                a: replace(c, lost=lost[stage, a], collapsed=collapsed.get((stage, a), 0))
                for a, c in cells.items()
            }
            column.stages[stage] = _judged(column, cells, stage)
    return column


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


def solved(value: float, ceiling: float | None) -> bool:
    """Whether an accuracy is SOLVED of the best there is."""
    return value >= SOLVED * (ceiling or 1.0)


def _groups(
    column: Column, arms: Mapping[str, Mapping[int, float]], compared: Sequence[str]
) -> str | None:
    """Why the runs of some arms at one stage are solved or not: of one of them some are and some
    are not, or its runs are APART, or softmax + RoPE always solves it; None where nothing of this
    is so."""
    if not column.higher:
        return None
    whole = (column.ceiling or 1.0) - (column.chance or 0.0)
    base = arms.get(BASELINE, {}).values() if BASELINE in compared else ()
    if base and all(solved(value, column.ceiling) for value in base):
        return f"every run of {human(BASELINE)} solved it, so none can be better"
    for arm in (arm for arm in compared if arm in arms):
        values = sorted(arms[arm].values())
        done = [solved(value, column.ceiling) for value in values]
        if any(done) and not all(done):
            return f"{sum(done)} of {len(done)} runs of {human(arm)} solved it"
        widest = max((b - a for a, b in pairwise(values)), default=0.0)
        if widest > APART * whole:
            return f"two runs of {human(arm)} are {widest:.2f} apart with none between them"
    return None


def _cell(column: Column, arm: str, arms: Mapping[str, Mapping[int, float]]) -> Cell:
    """The numbers of an arm and its comparisons within one stage."""
    own = dict(arms[arm])
    mean, sd, low, high = statistics.interval(list(own.values()))
    others = {"softmax": BASELINE, "off": f"{arm}_off", "rival": RIVALS.get(arm, "")}
    deciding = Cell(arm=arm, scores=own, mean=0.0, median=0.0).keys
    why = {"own": _groups(column, arms, [arm])}
    against, spreads = {}, []
    for key, other in others.items():
        seeds = [seed for seed in own if seed in arms.get(other, {})]
        if arm == other or not seeds:
            continue
        pair = [own[s] for s in seeds], [arms[other][s] for s in seeds]
        why[key] = _groups(column, arms, [arm, other])
        if why[key]:
            done = ([solved(v, column.ceiling) for v in values] for values in pair)
            against[key] = statistics.solve(*done)
        else:
            against[key] = statistics.differ(*pair)
            differences = [a - b for a, b in zip(*pair, strict=True)]
            if len(seeds) >= 3 and key in deciding:
                spread = float(np.std(differences, ddof=1))
                spreads.append(_detectable(len(seeds)) * spread)
    cell = Cell(
        arm=arm,
        scores=own,
        mean=float(mean or 0.0),
        median=float(np.median(list(own.values()))),
        sd=None if why["own"] else sd,
        low=None if why["own"] else low,
        high=None if why["own"] else high,
        solved=sum(solved(v, column.ceiling) for v in own.values()) if column.higher else None,
        against=against,
        missed=max(spreads, default=None),
        counted={key: reason for key, reason in why.items() if reason},
    )
    able = is_mechanism(arm) and arm not in UNCOUPLED and cell.pairs >= len(STAGES["screening"])
    clear = able and all(_clear(column, cell, key) for key in cell.keys)
    return replace(cell, candidate=clear)


@functools.cache
def _detectable(n: int) -> float:
    return statistics.detectable(n, alpha=ALPHA, two_sided=True)


def better(column: Column, difference: Comparison) -> bool:
    """Whether a difference is in the arm's favour."""
    return difference.effect > 0 if column.higher else difference.effect < 0


def _clear(column: Column, cell: Cell, key: str) -> bool:
    """Whether a difference is in favour and its 95% interval clear of 0; of runs that solve or do
    not, whether all do where none of the others does."""
    difference = cell.against[key]
    if key in cell.counted:
        return difference.effect == 1.0
    near = difference.low if column.higher else difference.high
    return near is not None and (near > 0 if column.higher else near < 0)


def _judged(column: Column, cells: dict[str, Cell], stage: str) -> dict[str, Cell]:
    """The cells of a stage with p, Holm's p over mechanisms, and a word where n suffices.

    Holm's family is every mechanism with a run at the stage, also where all of them collapsed; one
    that has too few has p = 1.
    """
    lost = [arm for at, arm in column.collapsed if at == stage and arm not in cells]
    family = [arm for arm in (*cells, *lost) if is_mechanism(arm)]

    def tested(keys: Callable[[Cell], Sequence[str]]) -> dict[str, float]:
        """Of each mechanism with enough pairs the largest p of its comparisons, after Holm."""
        p = dict.fromkeys(family, 1.0)
        able = [arm for arm in family if arm in cells and has_pairs(cells[arm], keys(cells[arm]))]
        for arm in able:
            p[arm] = max(p_of(cells[arm].against[key]) for key in keys(cells[arm]))
        after = dict(zip(p, statistics.holm(list(p.values())), strict=True))
        return {arm: after[arm] for arm in able}

    both = tested(lambda cell: cell.keys)
    softmax, off = tested(lambda _: ["softmax"]), tested(lambda _: ["off"])
    found = {}
    for arm, cell in cells.items():
        sides = {k: better(column, c) for k, c in cell.against.items()}
        known = [cell.against[k] for k in cell.keys if k in cell.against]
        p = max(map(p_of, known)) if arm in family and len(known) == len(cell.keys) else None
        word = OPEN if arm in softmax or arm in off else None
        if both.get(arm, 1.0) <= ALPHA and len({sides[key] for key in cell.keys}) == 1:
            word = COUPLING if sides["softmax"] else WORSE
        elif softmax.get(arm, 1.0) <= ALPHA and sides["softmax"]:
            word = ARCHITECTURE
        elif off.get(arm, 1.0) <= ALPHA and sides["off"]:
            word = OWN_PART
        if arm in UNCOUPLED and word == COUPLING:
            word = ARCHITECTURE
        if cell.collapsed and word in (COUPLING, ARCHITECTURE, OWN_PART):
            word = OPEN  # what is better in the runs that ended is no better mechanism
        found[arm] = replace(cell, p=p, holm=both.get(arm), word=word)
    return found


def has_pairs(cell: Cell, keys: Sequence[str]) -> bool:
    """Whether comparisons have pairs enough for a test."""
    return all(key in cell.against and cell.against[key].n >= cell.least(key) for key in keys)


def p_of(difference: Comparison) -> float:
    """Its p; one that a test did not give speaks for nothing."""
    p = difference.p
    return 1.0 if p is None or math.isnan(p) else p
