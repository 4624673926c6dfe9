"""What the arms of the leaderboard cost, what they score at equal FLOPs, and at which rates."""

from __future__ import annotations

import statistics as plain
from dataclasses import dataclass

from phasegpt.analysis import statistics
from phasegpt.analysis.leaderboard.board import Board, Column
from phasegpt.analysis.leaderboard.cells import BASELINE
from phasegpt.analysis.leaderboard.runs import STAGES, Run
from phasegpt.analysis.statistics import Comparison

#: What an arm costs, and what the pages call it.
COSTS = {"parameters": "parameters", "flops": "FLOPs", "state": "state", "time": "time"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of an arm on a task: all parameters, training FLOPs of a token (causal products), bytes that
    decoding remembers of a full context, and tokens a second, the median over runs as they ran: no
    machine was kept quiet for it."""

    parameters: int | None
    flops: float | None
    state: int | None
    speed: float | None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The score of an arm within a budget of FLOPs: runs of one stage, where their last step was.

    `share` of its own schedule had been run there. `difference` is to softmax + RoPE; without
    it and the interval where runs count as solved or not.
    """

    scores: dict[int, float]  # by seed
    step: int
    share: float
    mean: float
    low: float | None = None
    high: float | None = None
    difference: Comparison | None = None


def shown_runs(found: Board, column: Column) -> dict[str, dict[int, Run]]:
    """By arm and seed the runs that a column shows: those of Column.shown."""
    if column.shown is None:
        return {}
    runs, cells = found.of(column.task, column.shown), column.stages[column.shown]
    return {a: {s: runs[a][s] for s in cells[a].scores} for a in found.arms if a in cells}


def costs(found: Board, task: str) -> dict[str, Cost]:
    """By arm, of all runs of a task."""
    told = {}
    for arm in found.every_arm:
        runs = [run for run in found.runs if (run.task, run.arm) == (task, arm)]
        speeds = [s for run in runs if (s := run.record.get("tokens_per_s"))]
        if runs:
            told[arm] = Cost(
                parameters=(runs[0].record.get("parameters") or {}).get("all"),
                flops=runs[0].flops,
                state=runs[0].state,
                speed=plain.median(speeds) if speeds else None,
            )
    return told


def cost_ratios(found: Board, arm: str) -> dict[str, list[float]]:
    """An arm's COSTS as ratios to softmax + RoPE, one for each task with a score."""
    ratios: dict[str, list[float]] = {name: [] for name in COSTS}
    for task in dict.fromkeys(column.task for column in found.columns if column.stages):
        every = costs(found, task)
        if arm not in every or BASELINE not in every:
            continue
        own, base = every[arm], every[BASELINE]
        for name in ("parameters", "flops", "state"):
            mine, other = getattr(own, name), getattr(base, name)
            if mine is not None and other:
                ratios[name].append(mine / other)
        if own.speed and base.speed:
            ratios["time"].append(base.speed / own.speed)
    return ratios


def relative_costs(found: Board, arm: str) -> dict[str, float]:
    """The medians of `cost_ratios`."""
    ratios = cost_ratios(found, arm)
    return {name: plain.median(values) for name, values in ratios.items() if values}


def equal_flops(found: Board, column: Column) -> tuple[float | None, dict[str, Cut]]:
    """The whole budget of the cheapest arm, in training FLOPs, and what each arm has within it.

    Off controls are left out. An arm without a validation within it is not in the answer, which
    is empty where a record has no FLOPs.
    """
    runs = {a: by for a, by in shown_runs(found, column).items() if not a.endswith("_off")}
    budgets = [run.budget for by_seed in runs.values() for run in by_seed.values()]
    known = [budget for budget in budgets if budget is not None]
    if not known or len(known) < len(budgets):
        return None, {}
    budget = min(known)
    ends = {
        arm: {
            seed: end
            for seed, run in by_seed.items()
            if (end := run.score_within(column.metric, budget))
        }
        for arm, by_seed in runs.items()
    }
    base = ends.get(BASELINE, {})
    cuts = {}
    for arm, by_seed in ends.items():
        if not by_seed:
            continue
        scores = {seed: score for seed, (_, score) in by_seed.items()}
        mean, _, low, high = statistics.interval(list(scores.values()))
        step = max(step for step, _ in by_seed.values())
        shared = [seed for seed in scores if seed in base and arm != BASELINE]
        pair = [scores[s] for s in shared], [base[s][1] for s in shared]
        shown = column.cell(arm)
        counted = shown is not None and shown.groups is not None
        cuts[arm] = Cut(
            scores=scores,
            step=step,
            share=step / next(iter(runs[arm].values())).record["config"]["trainer"]["max_steps"],
            mean=float(mean or 0.0),
            low=None if counted else low,
            high=None if counted else high,
            difference=statistics.differ(*pair) if shared and not counted else None,
        )
    return budget, cuts


def rates(found: Board, column: Column) -> dict[str, dict[float, float]]:
    """Score by learning rate of every arm of the stage that chose them, one seed."""
    (seed,) = STAGES["rates"]
    curves: dict[str, dict[float, float]] = {}
    for run in sorted(found.runs, key=lambda r: r.lr):
        score = run.score(column.metric)
        if (run.task, run.seed) == (column.task, seed) and score is not None:
            curves.setdefault(run.arm, {})[run.lr] = score
    return {arm: curves[arm] for arm in found.every_arm if arm in curves}


def used_rates(found: Board, task: str) -> dict[str, float]:
    """The learning rate of every arm's later runs."""
    return {run.arm: run.lr for run in found.runs if run.task == task and run.stage != "rates"}
