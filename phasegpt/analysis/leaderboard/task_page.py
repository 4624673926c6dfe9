"""The page of one task of the leaderboard: every arm at every stage, and what lies behind it."""

from __future__ import annotations

import statistics as plain
from collections.abc import Callable, Iterator, Mapping, Sequence

from phasegpt.analysis.leaderboard.board import Board, Column
from phasegpt.analysis.leaderboard.cells import RIVALS, Cell, compared_with, is_mechanism
from phasegpt.analysis.leaderboard.claims import claim, difference
from phasegpt.analysis.leaderboard.costs import costs, rates, shown_runs, used_rates
from phasegpt.analysis.leaderboard.first_page import CAVEATS, equal, gaps, seeds, size
from phasegpt.analysis.leaderboard.runs import STAGES, human, human_task
from phasegpt.analysis.statistics import MINIMUM
from phasegpt.analysis.text_table import markdown, number, span

TASK = """\
# {name}

{claim}

{facts}
{caveat}{stages}
{loads}
## Learning rates

{rates}
## At most equal FLOPs

{equal}

## Cost

{costs}

{notes}
"""


def task_page(found: Board, task: str) -> str:
    """TASK.md of a leaderboard."""
    columns = [column for column in found.columns if column.task == task]
    stages = [line for column in columns for line in _stages(found, column)]
    return TASK.format(
        name=_title(task),
        claim=claim(found, columns),
        facts="\n".join(_facts(found, columns)),
        caveat=f"\n{CAVEATS[task]}\n" if task in CAVEATS else "",
        stages="\n".join(stages),
        loads="\n".join(_loads(found, columns[0])),
        rates="\n".join(_rates(found, columns[0])),
        equal="\n".join(equal(found, columns)),
        costs="\n".join(_costs(found, task)),
        notes="\n".join([*_offs(found, task), *gaps(found, task)]).strip(),
    )


def _title(key: str) -> str:
    name = human_task(key)
    return name[0].upper() + name[1:]


def _facts(found: Board, columns: Sequence[Column]) -> Iterator[str]:
    column = columns[0]
    run = next(run for run in found.runs if run.task == column.task)
    every = [run.record.get("git") or {} for run in found.runs if run.task == column.task]
    commits = sorted({str(git.get("sha"))[:12] for git in every})
    facts = {
        "score": "bits per byte of validation" if run.text else "accuracy at scored places",
        "chance": number(column.chance, "{:.4g}"),
        **{
            f"still chance{', beyond' * c.key.endswith('/beyond')}": f"up to {c.floor:.3f}"
            for c in columns
            if c.floor is not None
        },
        "best there is": number(column.ceiling, "{:.4g}"),
        "size": size(run),
        "commits": ", ".join(commits),
    }
    yield from markdown(["what", "value"], [[k, v] for k, v in facts.items() if v])


def _stages(found: Board, column: Column) -> Iterator[str]:
    """A table of every arm for each stage, the last one first."""
    for stage in reversed(STAGES):
        if cells := column.stages.get(stage):
            yield from ("", f"## {_title(column.key)}: {stage}", "")
            yield f"Seeds {seeds(STAGES[stage])}. {how(cells)}"
            yield from ("", *_table(column, cells))


def how(cells: Mapping[str, Cell]) -> str:
    """How the arms of a table are compared."""
    why: dict[tuple[str, str], list[str]] = {}
    for arm, cell in cells.items():
        for key in cell.keys if is_mechanism(arm) else ():
            if reason := cell.counted.get(key):
                other = "its off control" if key == "off" else human(compared_with(arm)[key])
                why.setdefault((reason, other), []).append(human(arm))
    text = (
        "Differences are paired by seed, with 95% t intervals; p is the larger of the two, and 1 "
        "where one is a gain and one a loss."
    )
    if "fsn" in cells:
        text += " That of fsn is the largest of three: it must beat token shift too."
    if why:
        some = "; ".join(
            f"{', '.join(arms)} minus {other} ({reason})" for (reason, other), arms in why.items()
        )
        text += (
            " These differences are of runs that solve the task, with McNemar's exact p, for which "
            f"five seeds are too few, without a t-test: {some}."
        )
    missed = [c.missed for arm, c in cells.items() if is_mechanism(arm) and c.missed is not None]
    if missed:
        text += (
            f" Each t-test alone finds a true difference of {number(plain.median(missed))} (median "
            f"over mechanisms; at most {number(max(missed))}) in four of five such studies."
        )
    if max((cell.n for cell in cells.values()), default=0) < MINIMUM:
        text += f" With fewer than {MINIMUM} seeds this describes, and decides nothing."
    return text


def _table(column: Column, cells: dict[str, Cell]) -> list[str]:
    """All arms of a stage; columns that nothing is in are left out."""
    texts: dict[str, Callable[[Cell], str]] = {
        "": lambda c: human(c.arm),
        "n": lambda c: str(c.n) + (f" ({c.lost} lost)" if c.lost else ""),
        "solved": lambda c: f"{c.solved} of {c.n}" if c.groups else "",
        "every seed": lambda c: " ".join(map(number, c.scores.values())) if c.groups else "",
        "mean": lambda c: number(c.mean),
        "sd": lambda c: number(c.sd),
        "median": lambda c: number(c.median),
        "95% interval": lambda c: span(c.low, c.high, "{:.3f}"),
        "minus softmax + RoPE": lambda c: difference(c, "softmax"),
        "minus its off control": lambda c: difference(c, "off"),
        "minus its rival": lambda c: (
            f"{human(RIVALS[c.arm])}: {difference(c, 'rival')}" if "rival" in c.against else ""
        ),
        "p": lambda c: _p(c.p),
        "after Holm": lambda c: _p(c.holm),
        "holds": lambda c: c.word or ("candidate" if c.candidate else ""),
    }
    table = {name: [text(cell) for cell in cells.values()] for name, text in texts.items()}
    kept = {name: column for name, column in table.items() if any(column)}
    return markdown(list(kept), zip(*kept.values(), strict=True))


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else number(value)


def _loads(found: Board, column: Column) -> Iterator[str]:
    """Accuracy by length or load, of the runs that the first page shows; n/a where it has none."""
    runs, stage = shown_runs(found, column), column.shown
    loads = sorted({load for by in runs.values() for run in by.values() for load in run.loads})
    if stage is None or not loads:
        return
    trained = next(run.trained for by in runs.values() for run in by.values())
    yield from ("", "## By length or load", "")
    yield (
        f"Accuracy at the last validation, mean over the seeds of the {stage}, "
        f"{seeds(STAGES[stage])}. Trained up to {trained}."
    )
    yield ""
    rows = []
    for arm, by_seed in runs.items():
        means = {
            load: plain.fmean(v)
            for load in loads
            if (v := [run.loads[load] for run in by_seed.values() if load in run.loads])
        }
        rows.append([human(arm), *(number(means.get(load)) or "n/a" for load in loads)])
    yield from markdown(["", *map(str, loads)], rows)
    yield from ("", f"![Accuracy by length or load]({column.task}_loads.png)", "")


def _rates(found: Board, column: Column) -> Iterator[str]:
    """Score by learning rate, one seed; which was used, and whether the best was at the edge."""
    curves, used = rates(found, column), used_rates(found, column.task)
    if not curves:
        yield from ("No run of the stage that chooses them.", "")
        return
    grid = sorted({lr for curve in curves.values() for lr in curve})

    def cell(arm: str, lr: float) -> str:
        text = number(curves[arm].get(lr))
        return f"**{text}**" if text and used.get(arm) == lr else text

    yield "Score on seed 0 by learning rate; bold: the rate of all later runs."
    yield ""
    yield from markdown(
        ["", *(f"{lr:g}" for lr in grid)],
        [[human(arm), *(cell(arm, lr) for lr in grid)] for arm in curves],
    )
    pick = max if column.higher else min
    best = {arm: pick(curve, key=lambda lr: curve[lr]) for arm, curve in curves.items()}
    other = [human(arm) for arm, lr in best.items() if used.get(arm, lr) != lr]
    if other:
        yield from ("", f"By the last validation another rate was best: {', '.join(other)}.")
    yield from ("", f"![Score by learning rate]({column.task}_rates.png)", "")


def _costs(found: Board, task: str) -> list[str]:
    rows = [
        [human(arm), *(number(v, "{:,.0f}") for v in (c.parameters, c.flops, c.state, c.speed))]
        for arm, c in costs(found, task).items()
    ]
    header = ["", "parameters", "training FLOPs per token", "bytes that decoding remembers"]
    header.append("tokens per second, as it ran")
    return markdown(header, rows)


def _offs(found: Board, task: str) -> Iterator[str]:
    """What the off control of each mechanism changes, from the two configurations."""
    config = {run.arm: run.record["config"]["attention"] for run in found.runs if run.task == task}
    changed = {}
    for arm in found.every_arm:
        own, off = config.get(arm), config.get(f"{arm}_off")
        if own is not None and off is not None:
            changed[arm] = [f"`{k}={v}`" for k, v in off.items() if own.get(k) != v]
    if changed:
        yield from ("## Off controls", "")
        yield from (f"- {human(arm)}: {', '.join(told)}" for arm, told in changed.items() if told)
