"""What the leaderboard claims, in words: who wins where and by what, and what is not decided."""

from __future__ import annotations

import statistics as plain
from collections.abc import Callable, Sequence

from phasegpt.analysis.leaderboard.board import (
    CANDIDATE,
    CONFIRMED,
    DROPPED,
    HOLDS,
    REFUTED,
    UNDECIDED,
    Board,
    Column,
)
from phasegpt.analysis.leaderboard.cells import (
    ARCHITECTURE,
    BELOW_SOFTMAX,
    DECIDED_BY_RIVAL,
    HARMED,
    OWN_PART,
    RIVALS,
    UNCOUPLED,
    WORSE,
    Cell,
    compared_with,
    has_pairs,
    p_of,
)
from phasegpt.analysis.leaderboard.runs import human, human_task
from phasegpt.analysis.statistics import MINIMUM
from phasegpt.analysis.text_table import markdown, number

_TOLD = {HOLDS: "holds on new seeds, ten more decide", CANDIDATE: "candidate, ten new seeds decide"}


def claim(found: Board, columns: Sequence[Column]) -> str:
    """What may be said of some columns, in bold, and what is to be confirmed; nothing more."""
    if not any(column.stages for column in columns):
        what = "only runs that choose learning rates are there" if found.runs else "no run counts"
        return f"**Nothing is claimed: {what}.**"
    there = [
        (column, arm, *farthest)
        for column in columns
        for arm in found.mechanisms
        if (farthest := column.farthest(arm))
    ]
    tested = {arm for _, arm, _, cell in there if cell.holm is not None and arm not in UNCOUPLED}
    won = [_win(c, arm, cell) for c, arm, _, cell in there if c.standing(arm) == CONFIRMED]
    if won:
        head = f"**Confirmed on ten new seeds: {'; '.join(won)}.**"
    elif tested:
        head = f"**None of {len(tested)} tested mechanisms is confirmed to win by its coupling.**"
    else:
        head = "**No verdict yet: no mechanism with coupling has both its tests.**"
        if not any(cell.word for *_, cell in there):
            head += " Numbers are descriptive."

    def where(keep: Callable[[Column, str, Cell], bool]) -> list[str]:
        """The mechanisms of which something holds, by column."""
        names = [(c, human(arm)) for c, arm, _, cell in there if keep(c, arm, cell)]
        by = {c.key: [name for other, name in names if other is c] for c, _ in names}
        return [f"{', '.join(arms)} on {human_task(key)}" for key, arms in by.items()]

    def stands(*status: str) -> list[str]:
        return where(lambda column, arm, _: column.standing(arm) in status)

    lines = {
        "Hold on five new seeds, and wait for ten more": stands(HOLDS),
        "Candidates, to be confirmed on ten new seeds": stands(CANDIDATE),
        "Candidates that did not hold on new seeds": stands(DROPPED, REFUTED),
        "Better than softmax + RoPE by architecture": where(lambda *x: x[2].word == ARCHITECTURE),
        "Better than softmax + RoPE, and worse than their own off control": where(
            lambda *x: x[2].word == HARMED
        ),
        "Worse than softmax + RoPE and than their own off control": where(
            lambda *x: x[2].word == WORSE
        ),
        "Worse than softmax + RoPE": where(lambda *x: x[2].word == BELOW_SOFTMAX),
        "Tested on new seeds, and not decided, since runs count as solved or not, or a control "
        "lost a run": where(_undecided),
        "Survive the screening, better in the mean than softmax + RoPE and off control": where(
            lambda column, arm, _: arm in column.survivors()
        ),
        "Beside a rival without coupling, p without correction": [
            _beside(column, arm, cell)
            for column, arm, _, cell in there
            if arm not in DECIDED_BY_RIVAL and has_pairs(cell, ["rival"])
        ],
    }  # fmt: skip
    bullets = [f"- {what}: {'; '.join(names)}." for what, names in lines.items() if names]
    return "\n".join([head, "", *bullets]).rstrip() if bullets else head


def _win(column: Column, arm: str, cell: Cell) -> str:
    """A win by both tests, and by how much."""
    others = compared_with(arm)
    than = [f"{human(others[key])} ({difference(cell, key)})" for key in cell.keys]
    told = f"{', '.join(than[:-1])} and {than[-1]}"
    on = human_task(column.key)
    return f"{human(arm)} is better on {on}{',' * (',' in on)} than {told}"


def _beside(column: Column, arm: str, cell: Cell) -> str:
    """The difference to a rival that decides nothing, with its own p."""
    p = number(p_of(cell.against["rival"]))
    of = f"{human(arm)} minus {human(RIVALS[arm])} on {human_task(column.key)}"
    return f"{of} {difference(cell, 'rival')}, p {p}"


def _undecided(column: Column, arm: str, cell: Cell) -> bool:
    """Whether pairs that would suffice a t-test are counted and do not suffice, or were lost."""
    standing, enough = column.standing(arm), cell.pairs >= MINIMUM and cell.holm is None
    return standing == UNDECIDED or (enough and standing not in (HOLDS, CANDIDATE))


def claims_table(found: Board) -> list[str]:
    """A row for each column: which mechanisms win, by what, and what could have been seen."""
    header = ["task", "both tests", "softmax + RoPE only", "off control only", "n",
              "detectable"]  # fmt: skip
    rows = []
    for column in found.columns:
        cells = [
            (arm, farthest[1]) for arm in found.mechanisms if (farthest := column.farthest(arm))
        ]
        coupled = [(arm, cell) for arm, cell in cells if arm not in UNCOUPLED]
        both = [
            human(arm) + ("" if status == CONFIRMED else f" ({_TOLD[status]})")
            for arm in found.mechanisms
            if (status := column.standing(arm)) in (CONFIRMED, HOLDS, CANDIDATE)
        ]
        missed = [cell.missed for _, cell in cells if cell.missed is not None]
        seeds = sorted({cell.n for _, cell in cells})
        rows.append(
            [
                task_link(column),
                ", ".join(both) or _none(coupled, lambda cell: cell.keys),
                _with(cells, "softmax", ARCHITECTURE, HARMED)
                or _none(cells, lambda _: ["softmax"]),
                _with(coupled, "off", OWN_PART) or _none(coupled, lambda _: ["off"]),
                " to ".join(dict.fromkeys(map(str, (seeds[0], seeds[-1])))) if seeds else "0",
                number(plain.median(missed)) if missed else "n/a" if cells else "",
            ]
        )
    return markdown(header, rows)


def _with(cells: Sequence[tuple[str, Cell]], key: str, *words: str) -> str:
    """The mechanisms of which a word holds, and by how much they are better."""
    found = [(arm, cell) for arm, cell in cells if cell.word in words]
    return ", ".join(
        f"{human(arm)} ({difference(cell, key)}"
        f"{', worse than its off control' * (cell.word == HARMED)})"
        for arm, cell in found
    )


def _none(cells: Sequence[tuple[str, Cell]], against: Callable[[Cell], Sequence[str]]) -> str:
    """Of mechanisms that were tested none; without a test nothing can be said."""
    tested = sum(cell.word is not None and has_pairs(cell, against(cell)) for _, cell in cells)
    return f"none of {tested} tested" if tested else "no verdict"


def task_link(column: Column) -> str:
    """A column's name, linked to the page of its task."""
    return f"[{human_task(column.key)}]({column.task}.md)"


def difference(cell: Cell, key: str) -> str:
    """A difference and its interval as text; of counted runs how many solve."""
    if (found := cell.against.get(key)) is None:
        return ""
    if key in cell.solvers:
        mine, theirs = cell.solvers[key]
        return f"{mine} against {theirs} of {found.n} solved"
    text = number(found.effect, "{:+.3f}")
    if found.low is None:
        return text
    return f"{text} [{number(found.low, '{:+.3f}')}, {number(found.high, '{:+.3f}')}]"
