"""The first page of the leaderboard in Markdown, and the parts that pages of tasks share."""

from __future__ import annotations

import statistics as plain
from collections.abc import Iterable, Iterator, Sequence

from phasegpt.analysis.leaderboard.board import Board, Column
from phasegpt.analysis.leaderboard.cells import ARCHITECTURE, COUPLING, HARMED, OWN_PART
from phasegpt.analysis.leaderboard.claims import claim, claims_table, task_link
from phasegpt.analysis.leaderboard.costs import COSTS, cost_ratios, equal_flops
from phasegpt.analysis.leaderboard.gaps import missing
from phasegpt.analysis.leaderboard.runs import (
    COLLAPSED,
    STAGES,
    Run,
    arms_in_order,
    human,
    human_task,
)
from phasegpt.analysis.statistics import MINIMUM
from phasegpt.analysis.text_table import markdown, number

#: What a score can come of that is not the coupling, or not what the task asks for, by task.
CAVEATS = {
    "induction": "**Only scores above 0.915 show induction.** The bigram stands 17 times in a row, "
    "so its second token is soon the most frequent one. Who counts tokens, and knows no order, is "
    "right in 0.915 of all places; the uniform mean can do no more.",
    "selective_copy": "**Only scores above 0.70 show selection.** The j-th token stands near the "
    "same place in every row. Who guesses by place, and counts nothing, is right in 0.70 of all "
    "places; softmax with learned positions has no more. lohe attends four times in a layer, and "
    "its control not once.",
    "cycle_navigation": "**No order is needed.** Steps commute: who counts them all is right at "
    "every length, and a uniform mean does better than chance. Only beyond the trained lengths, "
    "where counts are new, would a state show. Softmax with learned positions does better than "
    "with RoPE, and so does RoPE that turns values too, kope's control: a win over softmax + RoPE "
    "can be one of positions.",
    "copying": "The right letters so far are given. Who looks up the last two of them in the "
    "string, and copies what followed there, is right in 0.93 beyond; with the last one in 0.31.",
    "mqar": "A model that knows which values the row has, and not whose, has 1/4 at 4 pairs, and "
    "0.29 with the places of the queries. Only scores above that, from 0.31 on, show recall. "
    "Softmax with token shift solved it with seed 0, where rates are chosen, and with none of the "
    "screening: a score says who finds recall in these steps, not who can.",
}

FIRST = """\
# Leaderboard: where does coupling help?

{claim}
{followed}
**How to read it.** A row is a mechanism in all layers of one model, a column a task; *beyond* means
longer than what was trained on. A mechanism is compared, paired by seed, with softmax + RoPE and
with its own off control, the same layer without what couples; that of fsn keeps its coupling, and
lacks the delay and the second harmonic. Each stage has seeds of its own:
{stages}. The screening has too few seeds for a test.

{evidence}

## Who wins, and by what

Of every mechanism the stage with most seeds.

{claims}

- **Both tests**: better than softmax + RoPE, and than its own off control. The p is the larger of
  both, after Holm over the mechanisms with a run at that stage; the verdict's over all that survive
  the screening too. fsn must beat softmax with token shift as well. Such a win is by what the off
  control leaves out: the coupling, but of fsn delay and harmonics. Without coupling phase_sync and
  lohe mix no tokens, and fixed_query mixes all alike: a win of theirs says that they mix better
  than softmax. selective_rope has no coupling: it can win by its architecture only.
- **softmax + RoPE only**: the architecture wins; coupling is not clearly better than none, or fsn
  than token shift.
- **Off control only**: what the off control leaves out helps the mechanism, but not past softmax +
  RoPE.
- A mechanism of which a run collapsed at a stage wins nothing there, nor does a mean that is no
  better than chance can be by luck: chance and two standard errors of it, with as many answers as
  validation has rows, since all seeds share these.
- **Detectable**: each t-test alone, before Holm, finds a true difference of this size in four of
  five such studies. Median over mechanisms; n/a where none has a t-test in every comparison that
  decides.

## Scores

{scores}

- A cell is mean, 95% interval and n; all cells of a column are of the same seeds: {shown}.
  Accuracy: higher is better. Bits per byte of a text: lower is.
- n/a: the model takes no such length.
- **both**, **softmax**, **off**: which tests hold at the stage with most seeds; see above. With
  n < {minimum} there is no verdict.
{caveats}- A cell whose runs are counted as solved or not has their number, and no interval.
- Parameters, FLOPs, state and time are ratios to softmax + RoPE, medians over tasks; of parameters
  the range, where tasks differ. State: bytes that decoding remembers of a full context.
{figure}
## At most equal FLOPs

The same runs, cut at the last validation before the FLOPs at which the cheapest of these arms ends.
An arm may have used less, and its schedule of the learning rate is cut there too: a dearer arm is
shown before its last steps, which are often its best.

{equal}

## Keep in mind

- Weights of equal name and shape start equal within a seed, and batches come in the same order.
  The width of the MLP evens out parameters, so the MLPs of ssa and selective_rope are narrower than
  those of their off controls. Learned positions are not evened out, nor the anchors of fixed_query
  at positions that are never trained, nor anything where a model has no MLP: there parameters
  differ as shown.
- A learning rate is the better of those tried on seed 0, by the best validation, and used nowhere
  else; of two the better one is always at an edge. A score is that of the last validation.
- A task that is not listed has not run.
- Time was not taken on a quiet machine.{alone}
- A run solves a task at 99% of the best accuracy there is. Solved runs are counted, in place of a
  t-test, in three cases: of an arm, or of what it is compared with, some solve and some do not;
  its sorted scores have a gap of more than a third of the way from chance to the ceiling; softmax +
  RoPE always solves.
- Counts are compared by McNemar's exact test, for which five seeds are too few. A candidate there
  solves with every seed what softmax + RoPE and its off control solve with none.
{gaps}
## Again

```bash
{again}
```

The last command writes this page, those of the tasks, the pictures, and `report.html`, whose tables
can be sorted, from `runs/*.json` alone. One run again, from its record:
`python scripts/reproduce.py {study}/runs/leaderboard-TASK-ARM-seedN.json`.
"""

#: Of the study in this repository.
OURS, ALONE = "results/leaderboard", " A layer alone: [attention](../attention/README.md)."
AGAIN = """\
make study NAME=leaderboard SCALE=small          # learning rates and screening
python -m phasegpt.train -m +sweep=leaderboard scale=small task=copying \\
    stage=verdict,confirm arm=fsn,fsn_off,token_shift,softmax
python scripts/analyze_results.py runs/leaderboard-small --into results/leaderboard"""


def first_page(found: Board, followed: Sequence[str] = (), study: str = OURS) -> str:
    """README.md of a leaderboard; `followed` are folders beside it that look into its wins."""
    ours = study == OURS
    said = "".join(
        f"\nWhich part of a win does it, what it does not show: [{name}](../{name}/README.md).\n"
        for name in followed
    )
    scored = any(column.stages for column in found.columns)
    return FIRST.format(
        claim=claim(found, found.columns),
        followed=said,
        evidence=_evidence(found),
        claims="\n".join(claims_table(found)),
        scores="\n".join(_scores(found)),
        minimum=MINIMUM,
        figure="\n![Scores of every run](scores.png)\n" if scored else "",
        equal="\n".join(equal(found, found.columns)),
        stages=", ".join(f"{stage} ({seeds(numbers)})" for stage, numbers in STAGES.items()),
        shown=_shown(found),
        caveats="".join(
            f"- {human_task(task)}: {text}\n"
            for task, text in CAVEATS.items()
            if task in found.tasks
        ),
        gaps="\n".join(gaps(found)),
        alone=ALONE if ours else "",
        again=AGAIN if ours else f"python scripts/analyze_results.py RUNS --into {study}",
        study=study,
    )


def seeds(seeds: Sequence[int]) -> str:
    """The seeds of a stage as text."""
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


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


def _scores(found: Board) -> list[str]:
    header = ["", *map(task_link, found.columns), *COSTS.values()]
    arms = [arm for arm in found.arms if not arm.endswith("_off")]
    rows = []
    for arm in arms:
        ratios = cost_ratios(found, arm)
        told = [_ratio(name, ratios[name]) for name in COSTS]
        rows.append([human(arm), *(_score(found, column, arm) for column in found.columns), *told])
    return markdown(header, rows)


def _ratio(name: str, found: Sequence[float]) -> str:
    """The median over tasks; of parameters the range, where it is more than the matching leaves."""
    if name == "parameters" and found and max(found) > 1.01 * min(found):
        return f"{min(found):.2f} to {max(found):.2f}"
    return number(plain.median(found), "{:.2f}") if found else ""


def _shown(found: Board) -> str:
    """The stage that each column shows."""
    by: dict[str, list[str]] = {}
    for column in found.columns:
        if column.shown:
            by.setdefault(column.shown, []).append(human_task(column.key))
    if len(by) < 2:
        return f"the {next(iter(by), 'screening')}'s"
    return "; ".join(f"the {stage}'s on {', '.join(names)}" for stage, names in by.items())


def _score(found: Board, column: Column, arm: str) -> str:
    """Mean, interval and n of a cell, or how many runs solved it, and what it holds."""
    cell = column.cell(arm)
    if cell is None:
        if column.collapsed.get((column.shown or "", arm)):
            return "collapsed"
        ran = column.shown and arm in found.of(column.task, column.shown)
        return "n/a" if ran else ""
    text = number(cell.mean)
    if cell.groups:
        text += f", {cell.solved} of {cell.n} solved"
    elif cell.low is not None:
        text += f" [{number(cell.low)}, {number(cell.high)}], {cell.n}"
    else:
        text += f", {cell.n}"
    text += f" ({cell.lost} lost)" if cell.lost else ""
    held = {COUPLING: "both", ARCHITECTURE: "softmax", HARMED: "softmax",
            OWN_PART: "off"}.get(column.word(arm) or "")  # fmt: skip
    return f"{text} **{held}**" if held else text


def equal(found: Board, columns: Iterable[Column]) -> list[str]:
    """The table at equal FLOPs: arms against columns."""
    whole = {column.key: equal_flops(found, column) for column in columns}
    cuts = {key: cut for key, (_, cut) in whole.items() if cut}
    if not cuts:
        return ["Nothing to show."]

    def cell(key: str, arm: str) -> str:
        if not (cut := cuts[key].get(arm)):
            return ""
        ends = f" [{number(cut.low)}, {number(cut.high)}]" if cut.low is not None else ""
        return f"{number(cut.mean)}{ends}, {len(cut.scores)}, at {100 * cut.share:.0f}%"

    arms = [a for a in found.arms if not a.endswith("_off") and any(a in c for c in cuts.values())]
    rows = [[human(arm), *(cell(key, arm) for key in cuts)] for arm in arms]
    head = [f"{human_task(key)}, {whole[key][0]:.2g} FLOPs" for key in cuts]
    text = "A cell is mean, 95% interval, n, and how much of its schedule the arm had then run."
    return [*markdown(["", *head], rows), "", text]


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
            some = f": {', '.join(own)}" if task else _arms(own) if reason == COLLAPSED else ""
            yield f"{len(own)} run{'s' * (len(own) > 1)}: {reason}{some}"


def _arms(names: Iterable[str]) -> str:
    runs = [run for name in names if (run := Run.named(name, {}))]
    return f", of {', '.join(map(human, arms_in_order(run.arm for run in runs)))}"
