"""The cells of the leaderboard: runs of one arm at one stage, their comparisons, tests and word.

Differences are paired by seed within a stage, and a cell's p is the largest of its comparisons: to
softmax + RoPE, to the mechanism's own off control, and of fsn to token shift.

Sources: Holm (1979), over the mechanisms of a column; a win is an intersection-union test, Berger,
Technometrics 24 (1982).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from phasegpt.analysis import statistics
from phasegpt.analysis.leaderboard.runs import CONTROLS, STAGES, human
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
COUPLING, ARCHITECTURE, OWN_PART = "both tests", "softmax only", "off control only"
HARMED = "softmax only, worse than off control"
WORSE, BELOW_SOFTMAX, BELOW_OFF = "worse than both", "worse than softmax", "worse than off control"
OPEN, FELL, AT_CHANCE = "no difference seen", "a run collapsed", "at chance"
WINS = (COUPLING, ARCHITECTURE, OWN_PART, HARMED)
LOSSES = (HARMED, WORSE, BELOW_SOFTMAX, BELOW_OFF)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of one arm in one column at one stage, and what they are compared with.

    `against` has Comparisons to "softmax", "off" and "rival", where there are runs of common
    seeds. `p` is the largest of those that decide, 1 where they point in different directions,
    `holm` the same after Holm. `missed` is the
    least true difference, in the column's unit, that the t-test of the widest spread would find
    with 80% power at 5% before Holm; None where a comparison that decides has no such test.
    `lost` runs are excluded, `collapsed` of them had a loss that was not finite or fell out.
    `counted` says by comparison, and under "own" for the arm's runs alone, why runs count as
    solved or not, so that no t-test and no interval is given; `solvers` how many of a counted
    comparison's runs do, the arm's and the other's.
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
    solvers: dict[str, tuple[int, int]] = field(default_factory=dict)

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

    @property
    def undecided(self) -> bool:
        """Whether no loss is seen, and no win could be: a comparison is of counts without a p."""
        counts = [p_of(self.against[k]) for k in self.keys if k in self.counted]
        return self.word not in LOSSES and any(p > ALPHA for p in counts)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of one task: of a generated one its accuracy, or that beyond what it trained on.

    `floor` is chance and two standard errors of it in as many answers as validation has rows: all
    seeds have the same ones, so no interval over seeds holds that error. `collapsed` counts such
    runs by stage and arm, also where an arm has no other.
    """

    task: str
    metric: str
    higher: bool  # is better
    chance: float | None
    ceiling: float | None
    floor: float | None = None
    collapsed: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """TASK, or TASK/beyond."""
        return self.task + ("/beyond" if self.metric.endswith("beyond") else "")


def is_mechanism(arm: str) -> bool:
    """Whether an arm is neither a control nor an off control."""
    return arm not in CONTROLS and not arm.endswith("_off")


def compared_with(arm: str) -> dict[str, str]:
    """What an arm is compared with, by the name of the comparison; it need not have run."""
    return {"softmax": BASELINE, "off": f"{arm}_off", "rival": RIVALS.get(arm, "")}


def solved(value: float, ceiling: float | None) -> bool:
    """Whether an accuracy is SOLVED of the best there is."""
    return value >= SOLVED * (ceiling or 1.0)


def _groups(
    measure: Measure, arms: Mapping[str, Mapping[int, float]], compared: Sequence[str]
) -> str | None:
    """Why the runs of some arms at one stage are solved or not: of one of them some are and some
    are not, or its runs are APART, or softmax + RoPE always solves it; None where nothing of this
    is so."""
    if not measure.higher:
        return None
    whole = (measure.ceiling or 1.0) - (measure.chance or 0.0)
    base = arms.get(BASELINE, {}).values()
    if base and all(solved(value, measure.ceiling) for value in base):
        return f"every run of {human(BASELINE)} solved it, so none can be better"
    for arm in (arm for arm in compared if arm in arms):
        values = sorted(arms[arm].values())
        done = [solved(value, measure.ceiling) for value in values]
        if any(done) and not all(done):
            return f"{sum(done)} of {len(done)} runs of {human(arm)} solved it"
        widest = max((b - a for a, b in pairwise(values)), default=0.0)
        if widest > APART * whole:
            return f"two runs of {human(arm)} are {widest:.2f} apart with none between them"
    return None


def cell_of(measure: Measure, arm: str, arms: Mapping[str, Mapping[int, float]]) -> Cell:
    """The numbers of an arm and its comparisons within one stage."""
    own = dict(arms[arm])
    mean, sd, low, high = statistics.interval(list(own.values()))
    others = compared_with(arm)
    deciding = Cell(arm=arm, scores=own, mean=0.0, median=0.0).keys
    why = {"own": _groups(measure, arms, [arm])}
    against, solvers, spreads = {}, {}, []
    for key, other in others.items():
        seeds = [seed for seed in own if seed in arms.get(other, {})]
        if arm == other or not seeds:
            continue
        pair = [own[s] for s in seeds], [arms[other][s] for s in seeds]
        why[key] = _groups(measure, arms, [arm, other])
        if why[key]:
            mine, theirs = ([solved(v, measure.ceiling) for v in values] for values in pair)
            against[key] = statistics.solve(mine, theirs)
            solvers[key] = sum(mine), sum(theirs)
        else:
            against[key] = statistics.differ(*pair)
            differences = [a - b for a, b in zip(*pair, strict=True)]
            if len(seeds) >= MINIMUM and key in deciding:
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
        solved=sum(solved(v, measure.ceiling) for v in own.values()) if measure.higher else None,
        against=against,
        missed=max(spreads) if len(spreads) == len(deciding) else None,
        counted={key: reason for key, reason in why.items() if reason},
        solvers=solvers,
    )
    able = is_mechanism(arm) and arm not in UNCOUPLED and cell.pairs >= len(STAGES["screening"])
    able = able and not at_chance(measure, cell)
    clear = able and all(_clear(measure, cell, key) for key in cell.keys)
    return replace(cell, candidate=clear)


@functools.cache
def _detectable(n: int) -> float:
    return statistics.detectable(n, alpha=ALPHA, two_sided=True)


def better(measure: Measure, difference: Comparison) -> bool:
    """Whether a difference is in the arm's favour."""
    return difference.effect > 0 if measure.higher else difference.effect < 0


def at_chance(measure: Measure, cell: Cell) -> bool:
    """Whether a mean is no better than chance can be in these validation rows."""
    return measure.floor is not None and cell.mean <= measure.floor


def survivors(measure: Measure, screened: Mapping[str, Cell]) -> list[str]:
    """Mechanisms whose mean of the screening is better than those they are compared with."""
    sign, seeds = 1 if measure.higher else -1, len(STAGES["screening"])

    def better_in_the_mean(arm: str, cell: Cell) -> bool:
        others = {key: compared_with(arm)[key] for key in ("softmax", "off")}
        return all(
            key in cell.against
            and cell.against[key].n >= seeds
            and sign * cell.mean > sign * screened[other].mean
            for key, other in others.items()
        )

    return [
        arm
        for arm, cell in screened.items()
        if is_mechanism(arm) and not at_chance(measure, cell) and better_in_the_mean(arm, cell)
    ]


def _clear(measure: Measure, cell: Cell, key: str) -> bool:
    """Whether a difference is in favour and its 95% interval excludes 0; of runs that solve or do
    not, whether all do where none of the others does."""
    difference = cell.against[key]
    if key in cell.counted:
        return difference.effect == 1.0
    return better(measure, difference) and p_of(difference) <= ALPHA


def judged(
    measure: Measure, cells: dict[str, Cell], stage: str, due: Sequence[str] = ()
) -> dict[str, Cell]:
    """The cells of a stage with p, Holm's p over mechanisms, and a word where n suffices.

    Holm's family is every mechanism with a run at the stage, also where all of them collapsed, and
    those that are `due` there; one that has too few runs has p = 1.
    """
    lost = [arm for at, arm in measure.collapsed if at == stage]
    family = [arm for arm in dict.fromkeys([*cells, *lost, *due]) if is_mechanism(arm)]

    def tested(keys: Callable[[Cell], Sequence[str]]) -> dict[str, float]:
        """Of each mechanism with enough pairs the largest p of its comparisons, after Holm."""
        p = dict.fromkeys(family, 1.0)
        able = [arm for arm in family if arm in cells and has_pairs(cells[arm], keys(cells[arm]))]
        for arm in able:
            p[arm] = _largest(measure, cells[arm], keys(cells[arm]))
        after = dict(zip(p, statistics.holm(list(p.values())), strict=True))
        return {arm: after[arm] for arm in able}

    both = tested(lambda cell: cell.keys)
    softmax, off = tested(lambda _: ["softmax"]), tested(lambda _: ["off"])
    found = {}
    for arm, cell in cells.items():
        p = word = None
        if arm in family and all(key in cell.against for key in cell.keys):
            p = _largest(measure, cell, cell.keys)
            holds = {"both": both.get(arm), "softmax": softmax.get(arm), "off": off.get(arm)}
            word = _word(measure, cell, {k: h for k, h in holds.items() if h is not None})
        found[arm] = replace(cell, p=p, holm=both.get(arm), word=word)
    return found


def _largest(measure: Measure, cell: Cell, keys: Sequence[str]) -> float:
    """The p of "better than all" or "worse than all"; 1 where it is better than some alone."""
    ways = {better(measure, cell.against[key]) for key in keys}
    return max(p_of(cell.against[key]) for key in keys) if len(ways) == 1 else 1.0


def _word(measure: Measure, cell: Cell, holm: Mapping[str, float]) -> str | None:
    """What a cell with all its comparisons says by the tests it has pairs for, after Holm."""
    up = {key: better(measure, cell.against[key]) for key in cell.keys}
    found = {key for key, p in holm.items() if p <= ALPHA}
    if not holm:
        return None
    if "both" in found:
        word = (ARCHITECTURE if cell.arm in UNCOUPLED else COUPLING) if up["softmax"] else WORSE
    elif "softmax" in found and up["softmax"]:
        word = HARMED if "off" in found and not up["off"] else ARCHITECTURE
    elif "off" in found and up["off"]:
        word = OWN_PART
    elif "softmax" in found:
        word = BELOW_SOFTMAX
    else:
        word = BELOW_OFF if "off" in found else OPEN
    if word in WINS and cell.collapsed:
        return FELL  # what is better in the runs that did not collapse is no better mechanism
    return AT_CHANCE if word in WINS and at_chance(measure, cell) else word


def has_pairs(cell: Cell, keys: Sequence[str]) -> bool:
    """Whether comparisons have pairs enough for a test."""
    return all(key in cell.against and cell.against[key].n >= cell.least(key) for key in keys)


def p_of(difference: Comparison) -> float:
    """Its p; one that a test did not give speaks for nothing."""
    p = difference.p
    return 1.0 if p is None or math.isnan(p) else p
