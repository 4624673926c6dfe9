"""The first page of the leaderboard in Markdown, and the parts that pages of tasks share."""

from __future__ import annotations

import statistics as plain
from collections.abc import Callable, Iterable, Iterator, Sequence

from phasegpt.analysis.leaderboard.board import (
    CANDIDATE,
    CONFIRMED,
    DROPPED,
    HOLDS,
    REFUTED,
    Board,
    Column,
)
from phasegpt.analysis.leaderboard.cells import (
    ARCHITECTURE,
    OWN_PART,
    RIVALS,
    UNCOUPLED,
    WORSE,
    Cell,
    has_pairs,
)
from phasegpt.analysis.leaderboard.costs import COSTS, equal_flops, relative_costs
from phasegpt.analysis.leaderboard.gaps import missing
from phasegpt.analysis.leaderboard.runs import STAGES, Run, human, human_task
from phasegpt.analysis.statistics import MINIMUM, Comparison
from phasegpt.analysis.text_table import markdown, number

_TOLD = {HOLDS: "holds on new seeds, ten more decide", CANDIDATE: "candidate, ten new seeds decide"}

#: What its control leaves out, where that is not all coupling.
_BY = {"fsn": ", by its delay and harmonics; its control couples too"}

FIRST = """\
# Leaderboard: where does coupling help?

{claim}
{followed}
{evidence}

{claims}

- **By coupling**: better than softmax + RoPE, and than its own off control. Its p is the larger of
  both tests, after Holm over the mechanisms with a run at that stage. fsn must beat softmax with
  token shift too.
- The off control leaves out what couples, and keeps the rest: of torus the step. That of fsn leaves
  out delay and harmonics: what fsn wins, it wins by them. Without coupling phase_sync and lohe mix
  no tokens, and fixed_query mixes all alike: there coupling and mixing are one, and a win says that
  they mix better than softmax.
- **By architecture**: better than softmax + RoPE, but not clearly better than its own off control,
  or fsn than token shift.
- **Coupling, but not past softmax**: better than its own off control alone.
- A mechanism of which a run collapsed at a stage wins nothing there.
- **Missed below**: four of five such studies find a true difference of this size; smaller ones are
  found less often. Median over mechanisms, before Holm.

## Scores

{scores}

- A cell is mean, 95% interval and n. Accuracy: higher is better. Bits per byte of a text: lower is.
- *Beyond*: at lengths or loads beyond those trained on. n/a: the model takes no such length.
- **both**: both tests hold. **softmax**: that against softmax + RoPE alone. **off**: that against
  the off control alone. With n < {minimum} there is no verdict.
- A cell whose runs are counted as solved or not has their number in place of the interval.
- Parameters, FLOPs, state and time are ratios to softmax + RoPE, medians over tasks. State: bytes
  that decoding remembers of a full context.
{figure}
## At most equal FLOPs

The same runs, cut at the last validation before the FLOPs at which the cheapest arm ends. An arm
may have used less, and its schedule of the learning rate is cut there too: a dearer arm is shown
before its last steps, which are often its best.

{equal}

## Keep in mind

- Weights of equal name and shape start equal within a seed, and batches come in the same order.
  The width of the MLP evens out parameters, so the MLPs of ssa and selective_rope are narrower than
  those of their off controls. Learned positions are not evened out, nor the anchors of fixed_query
  at positions that are never trained, nor anything where a model has no MLP: there parameters
  differ as shown.
- Learning rates are chosen on seed 0, which no other table has; of two the better one is always at
  an edge. Stages have seeds of their own: {stages}.
- A score is that of the last validation. A learning rate is chosen by its best validation.
- A task that is not in the first table has no run.
- Time was not taken on a quiet machine. A layer alone: [attention](../attention/README.md).
- A run has solved a task at 99% of the best accuracy there is. Runs are counted, in place of a
  t-test, in three cases: of an arm, or of what it is compared with, some solve and some do not;
  its runs are in two groups more than a third of the way from chance to the ceiling apart;
  softmax + RoPE always solves.
- Counts are compared by McNemar's exact test, for which five seeds are too few. A candidate there
  solves with every seed what softmax + RoPE and its off control solve with none.
{gaps}
## Again

```bash
make study NAME=leaderboard SCALE=small
python scripts/analyze_results.py results/leaderboard
```

The second command writes this page, those of the tasks, the pictures, and `report.html`, whose
tables can be sorted, from `runs/*.json` alone.
"""


def first_page(found: Board, followed: Sequence[str] = ()) -> str:
    """README.md of a leaderboard; `followed` are folders beside it that look into its wins."""
    said = "".join(
        f"\nWhich part of a win does it, what it does not show: [{name}](../{name}/README.md).\n"
        for name in followed
    )
    scored = any(column.stages for column in found.columns)
    return FIRST.format(
        claim=claim(found, found.columns),
        followed=said,
        evidence=_evidence(found),
        claims="\n".join(_claims(found)),
        scores="\n".join(_scores(found)),
        minimum=MINIMUM,
        figure="\n![Scores of every run](scores.png)\n" if scored else "",
        equal="\n".join(equal(found, found.columns)),
        stages="; ".join(f"{stage} {seeds(numbers)}" for stage, numbers in STAGES.items()),
        gaps="\n".join(gaps(found)),
    )


def seeds(seeds: Sequence[int]) -> str:
    """The seeds of a stage as text."""
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def claim(found: Board, columns: Sequence[Column]) -> str:
    """What may be said of some columns, in bold, and what is to be confirmed; nothing more."""
    by_status: dict[str, list[str]] = {}
    architecture, worse = [], []
    for column in columns:
        for arm in found.mechanisms:
            cell = column.cell(arm)
            text = f"{human(arm)} on {human_task(column.key)}"
            if status := column.standing(arm):
                by_status.setdefault(status, []).append(
                    text + _BY.get(arm, "") + _beside_rival(column, arm)
                )
            if cell and cell.word == ARCHITECTURE:
                architecture.append(text)
            if cell and cell.word == WORSE:
                worse.append(text)
    if not any(column.stages for column in columns):
        what = "only runs that choose learning rates are there" if found.runs else "no run counts"
        return f"**Nothing is claimed: {what}.**"
    tested = [
        arm
        for column in columns
        for arm in found.mechanisms
        if (cell := column.cell(arm)) and cell.holm is not None
    ]
    survivors = [
        f"{', '.join(map(human, arms))} on {human_task(column.key)}"
        for column in columns
        if (arms := column.survivors())
    ]
    if won := by_status.get(CONFIRMED):
        over = "Confirmed on ten new seeds, over softmax + RoPE and its own control"
        head = f"**{over}: {'; '.join(won)}.**"
    elif tested:
        head = (
            f"**None of {len(set(tested))} tested mechanisms is confirmed to win by its coupling.**"
        )
    else:
        head = "**No verdict yet: no comparison has seeds enough.** Numbers are descriptive."
    lines = {
        "Hold both tests on five new seeds, and wait for ten more": by_status.get(HOLDS),
        "Candidates, to be confirmed on ten new seeds": by_status.get(CANDIDATE),
        "Survive the screening, by their means": survivors,
        "Candidates that did not hold on new seeds": [
            *by_status.get(DROPPED, []), *by_status.get(REFUTED, [])
        ],
        "Better than softmax + RoPE by architecture": architecture,
        "Worse than softmax + RoPE and than their own off control": worse,
    }  # fmt: skip
    bullets = [f"- {what}: {'; '.join(names)}." for what, names in lines.items() if names]
    return "\n".join([head, "", *bullets]).rstrip() if bullets else head


def _beside_rival(column: Column, arm: str) -> str:
    """What a mechanism's win is worth beside the control that decides."""
    cell = column.cell(arm)
    rival = cell.against.get("rival") if cell else None
    return f" (minus {human(RIVALS[arm])} {difference(rival)})" if rival else ""


def _evidence(found: Board) -> str:
    arms = len({run.arm for run in found.runs})
    tasks = f"{len(found.tasks)} task{'s' * (len(found.tasks) > 1)}"
    text = f"{len(found.runs)} runs count, of {arms} arms on {tasks}."
    sizes = sorted({size(run) for run in found.runs if run.stage != "rates"})
    return text + (f" Sizes: {'; '.join(sizes)}." if sizes else "")


def size(run: Run) -> str:
    """Model and steps of a run, as text."""
    config = run.record["config"]
    model = f"{config['model']['n_layer']} layers x {config['model']['n_embd']}"
    return f"{model}, {config['trainer']['max_steps']:,} steps of {run.tokens_per_step:,.0f} tokens"


def _claims(found: Board) -> list[str]:
    """A row for each column: which mechanisms win, by what, and what could have been seen."""
    header = ["task", "by coupling", "by architecture", "coupling, but not past softmax",
              "n", "missed below"]  # fmt: skip
    rows = []
    for column in found.columns:
        cells = [(arm, column.cell(arm)) for arm in found.mechanisms]
        there = [(arm, cell) for arm, cell in cells if cell]
        coupling = [
            human(arm) + ("" if status == CONFIRMED else f" ({_TOLD[status]})")
            for arm in found.mechanisms
            if (status := column.standing(arm)) in (CONFIRMED, HOLDS, CANDIDATE)
        ]
        missed = [cell.missed for _, cell in there if cell.missed is not None]
        seeds = sorted({cell.n for _, cell in there})
        rows.append(
            [
                _task_link(column),
                ", ".join(coupling) or _none(there, lambda cell: cell.keys),
                _with(there, ARCHITECTURE) or _none(there, lambda _: ["softmax"]),
                _with([x for x in there if x[0] not in UNCOUPLED], OWN_PART)
                or _none(there, lambda _: ["off"]),
                " to ".join(dict.fromkeys(map(str, (seeds[0], seeds[-1])))) if seeds else "0",
                number(plain.median(missed)) if missed else "no t-test" if there else "",
            ]
        )
    return markdown(header, rows)


def _with(cells: Sequence[tuple[str, Cell]], word: str) -> str:
    return ", ".join(human(arm) for arm, cell in cells if cell.word == word)


def _none(cells: Sequence[tuple[str, Cell]], against: Callable[[Cell], Sequence[str]]) -> str:
    """Of mechanisms that were tested none; without a test nothing can be said."""
    tested = sum(has_pairs(cell, against(cell)) for _, cell in cells)
    return f"none of {tested} tested" if tested else "no verdict"


def _task_link(column: Column) -> str:
    return f"[{human_task(column.key)}]({column.task}.md)"


def _scores(found: Board) -> list[str]:
    header = ["", *map(_task_link, found.columns), *COSTS.values()]
    arms = [arm for arm in found.arms if not arm.endswith("_off")]
    rows = []
    for arm in arms:
        ratios = relative_costs(found, arm)
        told = [number(ratios.get(name), "{:.2f}") for name in COSTS]
        rows.append([human(arm), *(_score(column, arm) for column in found.columns), *told])
    return markdown(header, rows)


def _score(column: Column, arm: str) -> str:
    """Mean, interval and n of a cell, or how many runs solved it, and what it holds."""
    cell = column.cell(arm)
    if cell is None:
        return "n/a" if column.key != column.task else ""
    text = number(cell.mean)
    if cell.groups:
        text += f", {cell.solved} of {cell.n} solved"
    elif cell.low is not None:
        text += f" [{number(cell.low)}, {number(cell.high)}], {cell.n}"
    else:
        text += f", {cell.n}"
    text += f" ({cell.lost} lost)" if cell.lost else ""
    held = {"both tests": "both", ARCHITECTURE: "softmax", OWN_PART: "off"}.get(cell.word or "")
    return f"{text} **{held}**" if held else text


def equal(found: Board, columns: Iterable[Column]) -> list[str]:
    """The table at equal FLOPs: arms against columns."""
    cuts = {column.key: equal_flops(found, column)[1] for column in columns}
    cuts = {key: cut for key, cut in cuts.items() if cut}
    if not cuts:
        return ["Nothing to show."]

    def cell(key: str, arm: str) -> str:
        if not (cut := cuts[key].get(arm)):
            return ""
        ends = f" [{number(cut.low)}, {number(cut.high)}]" if cut.low is not None else ""
        return f"{number(cut.mean)}{ends}, {len(cut.scores)}, at {100 * cut.share:.0f}%"

    arms = [a for a in found.arms if not a.endswith("_off") and any(a in c for c in cuts.values())]
    rows = [[human(arm), *(cell(key, arm) for key in cuts)] for arm in arms]
    text = "A cell is mean, 95% interval, n, and how much of its schedule the arm had then run."
    return [*markdown(["", *map(human_task, cuts)], rows), "", text]


def gaps(found: Board, task: str | None = None) -> Iterator[str]:
    """What was left out, grouped and counted, and what is missing; of one task with names."""
    for title, lines in (("What was left out", list(_left_out(found, task))),
                         ("What is missing", list(missing(found, task)))):  # fmt: skip
        if lines:
            yield from ("", f"## {title}", "", *(f"- {line}." for line in lines))
    yield ""


def _left_out(found: Board, task: str | None) -> Iterator[str]:
    for reason, names in found.excluded.items():
        own = [name for name in names if task is None or name.startswith(f"leaderboard-{task}-")]
        if own:
            some = f": {', '.join(own)}" if task else ""
            yield f"{len(own)} run{'s' * (len(own) > 1)}: {reason}{some}"


def difference(found: Comparison | None) -> str:
    """A difference and its interval as text."""
    if found is None:
        return ""
    ends = (
        ""
        if found.low is None
        else f" [{number(found.low, '{:+.3f}')}, {number(found.high, '{:+.3f}')}]"
    )
    return number(found.effect, "{:+.3f}") + ends  # fmt: skip
