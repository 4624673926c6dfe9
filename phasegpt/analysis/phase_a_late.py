"""Phase A to epoch 25: its two registered questions, answered from the records of its runs.

Does anything collapse after epoch 20, and is the winner better than itself without coupling? The
rules are those of PREREGISTRATION.md, "Phase A to epoch 25". A validation is made at every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phasegpt.analysis import statistics
from phasegpt.analysis.statistics import MINIMUM, Comparison
from phasegpt.analysis.study import best_validation
from phasegpt.analysis.text_table import markdown, number
from phasegpt.core import figures
from phasegpt.core.files import csv_text, read_json, write_atomic

Record = dict[str, Any]
Arms = Mapping[str, list[Record]]

#: The arms, what they are called, and their registered seeds.
ARMS = {
    "phase_a_late-softmax": ("softmax + RoPE", 5),
    "phase_a_late-learned": ("softmax, learned positions", 1),
    "phase_a_late-winner": ("kuramoto, K = 1", 5),
    "phase_a_late-winner_k0": ("kuramoto, K = 0", 5),
    "phase_a_late-k2": ("kuramoto, K = 2", 3),
    "phase_sync-phase_a_late-k2": ("phase_sync, K = 2", 2),
    "phase_sync-phase_a_late-winner_k0": ("phase_sync, K = 0", 2),
    "as_coded-phase_a_late-k2": ("as_coded, K = 2", 2),
}
SOFTMAX, WINNER, WINNER_K0 = (f"phase_a_late-{name}" for name in ("softmax", "winner", "winner_k0"))
#: A run collapsed if its last validation loss is above RISE times its best one ...
RISE = 1.05
#: ... and that of softmax with the same seed at most this share as far above its own.
SHARE = 0.5
AFTER = 20  # epochs
MEASURES = {"R": "R_end", "dR": "dR"}


@dataclass(frozen=True)
class Course:
    """A run by epoch: validation loss, and R and dR as means over its phase layers."""

    status: str
    loss: dict[int, float]
    R: dict[int, float]
    dR: dict[int, float]

    @property
    def best(self) -> int:
        """The epoch of the lowest loss."""
        return min(self.loss, key=self.loss.__getitem__)

    @property
    def last(self) -> int:
        """The last epoch that was validated."""
        return max(self.loss)

    @property
    def ratio(self) -> float:
        """The last loss over the best one; infinite for a loss that was not finite."""
        if self.status == "collapsed":
            return math.inf
        return self.loss[self.last] / self.loss[self.best]

    @property
    def since(self) -> float | None:
        """Loss of the last epoch minus that of epoch AFTER, nats; None if it is not so long."""
        if AFTER not in self.loss or self.last <= AFTER:
            return None
        return self.loss[self.last] - self.loss[AFTER]


def is_late(arms: Arms) -> bool:
    """Whether these arms are of this study."""
    return any(arm in ARMS for arm in arms)


def course(record: Record) -> Course:
    """A run by epoch."""
    steps = record["config"]["trainer"]["val_check_interval"]
    curves = record.get("curves", {})

    def by_epoch(name: str) -> dict[int, float]:
        return {round(step / steps): value for step, value in curves.get(name, [])}

    found = {}
    for measure in MEASURES.values():
        layers = [by_epoch(n) for n in curves if n.startswith(f"phase/val/{measure}/layer")]
        epochs = set.intersection(*map(set, layers)) if layers else set()
        found[measure] = {e: float(np.mean([of[e] for of in layers])) for e in sorted(epochs)}
    loss = {epoch: math.log(ppl) for epoch, ppl in by_epoch("val/ppl").items()}
    return Course(str(record.get("status")), loss, found["R_end"], found["dR"])


def collapsed(own: Course, softmax: Course | None) -> bool | None:
    """The registered rule; None where it needs softmax with the same seed, which is not there."""
    if own.ratio <= RISE:
        return False
    if math.isinf(own.ratio):
        return True
    return None if softmax is None else softmax.ratio - 1 <= SHARE * (own.ratio - 1)


def courses(arms: Arms) -> dict[str, dict[int, Course]]:
    """By arm and seed, of runs that were validated at least once."""
    found: dict[str, dict[int, Course]] = {}
    for arm in (arm for arm in ARMS if arm in arms):
        runs = {r["seed"]: course(r) for r in arms[arm]}
        found[arm] = {seed: run for seed, run in runs.items() if run.loss}
    return {arm: runs for arm, runs in found.items() if runs}


def coupling_at_convergence(arms: Arms) -> Comparison | None:
    """Best validation perplexity, winner minus winner without coupling, paired by seed."""
    own, off = (
        {r["seed"]: ppl for r in arms.get(arm, []) if (ppl := best_validation(r))}
        for arm in (WINNER, WINNER_K0)
    )
    shared = [seed for seed in own if seed in off]
    return statistics.differ([own[s] for s in shared], [off[s] for s in shared]) if shared else None


def write_late(study: Path, arms: Arms) -> list[Path]:
    """epochs.md, epochs.csv and epochs.png; DataError for a damaged file of without_future."""
    found = courses(arms)
    rows = [
        {"arm": arm, "seed": seed, "epoch": epoch, "val_loss": loss,
         "val_ppl": math.exp(loss), "R": run.R.get(epoch), "dR": run.dR.get(epoch)}
        for arm, runs in found.items() for seed, run in runs.items()
        for epoch, loss in run.loss.items()
    ]  # fmt: skip
    columns = ["arm", "seed", "epoch", "val_loss", "val_ppl", "R", "dR"]
    apart: dict[str, list[float]] = {}
    for file in sorted((study / "without_future").glob("*-seed*.json")):
        score = read_json(file, "perplexity")["perplexity"]
        apart.setdefault(file.stem.rpartition("-seed")[0], []).append(score)
    texts = {"epochs.md": page(arms, apart), "epochs.csv": csv_text(columns, rows, "{:.5f}")}
    for name, text in texts.items():
        write_atomic(study / name, text.encode())
    return [*(study / name for name in texts), *figures.save(_figure(found), study / "epochs.png")]


def page(arms: Arms, apart: Mapping[str, list[float]] | None = None) -> str:
    """Both answers, then the tables that they rest on.

    `apart` has perplexities by arm of runs scored without later characters, the files of
    without_future.
    """
    found = courses(arms)
    lines = ["# Phase A to epoch 25, by epoch", "", _first(found), "", _second(arms), ""]
    lines += ["## After epoch 20", "", *_ends(found), ""]
    lines += [
        f"Collapsed: its loss is not finite, or the last one is above {RISE} times the best, and",
        "that ratio of softmax with the same seed is at most half as far above 1. Rise: last loss",
        "minus that of epoch 20, nats, mean over seeds; negative is still falling.",
        "",
    ]
    for arm, scores in (apart or {}).items():
        told = " ".join(map(number, scores))
        lines += [f"{ARMS[arm][0] if arm in ARMS else arm} without later characters: {told}.", ""]
    lines += ["## R along training", "", *_orders(found), ""]
    lines += ["R over the oscillators of a head and token (phase_sync, as_coded: over the prefix),"]
    lines += ["in brackets what coupling adds, dR. Means over seeds, at validation.", ""]
    lines += ["![Validation perplexity, R and dR by epoch](epochs.png)", ""]
    lines += ["Every epoch of every run: [epochs.csv](epochs.csv).", ""]
    if gaps := list(_gaps(found)):
        lines += ["## What is missing", "", *(f"- {gap}." for gap in gaps), ""]
    return "\n".join(lines)


def _first(found: Mapping[str, Mapping[int, Course]]) -> str:
    """Does anything collapse after epoch 20?"""
    judged = {
        f"{ARMS[arm][0]}, seed {seed}": collapsed(run, found.get(SOFTMAX, {}).get(seed))
        for arm, runs in found.items()
        for seed, run in runs.items()
        if run.last > AFTER or run.status == "collapsed"
    }
    if not judged:
        return f"**No run has come past epoch {AFTER} yet: nothing is said of a collapse.**"
    yes = [name for name, word in judged.items() if word]
    open_ = [name for name, word in judged.items() if word is None]
    there, all_ = sum(map(len, found.values())), sum(seeds for _, seeds in ARMS.values())
    text = f"**{'None' if not yes else len(yes)} of {len(judged)} runs collapsed"
    text += f": {'; '.join(yes)}.**" if yes else ".**"
    text += f" {there} of {all_} registered runs are there." if there < all_ else ""
    if open_:
        text += f" Not decided without softmax of the same seed: {'; '.join(open_)}."
    return text


def _second(arms: Arms) -> str:
    """Is the winner better than its own K = 0 at convergence?"""
    found = coupling_at_convergence(arms)
    if found is None:
        return "**No pair of K = 1 and K = 0 yet: nothing is said of coupling.**"
    ends = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    told = (
        f"best validation perplexity, K = 1 minus K = 0: {found.effect:+.3f}{ends}, n = {found.n}"
    )
    if found.n < MINIMUM:
        return (
            f"**Too few pairs for a verdict on coupling: {found.n} of {MINIMUM}.** So far {told}."
        )
    better = "better" if found.effect < 0 else "worse"
    p = found.p if found.p is not None else 1.0
    word = f"The winner is {better} than itself without coupling" if p <= 0.05 else (
        "The winner is not seen to differ from itself without coupling"
    )  # fmt: skip
    return f"**{word}**; {told}, p = {p:.3f} (two-sided paired t)."


def _ends(found: Mapping[str, Mapping[int, Course]]) -> list[str]:
    header = ["", "n", "best perplexity", "its epoch", "last perplexity", "epochs",
              "last over best loss, largest", "rise since epoch 20", "collapsed"]  # fmt: skip
    rows = []
    for arm, runs in found.items():
        every = list(runs.values())
        since = [run.since for run in every if run.since is not None]
        judged = [collapsed(run, found.get(SOFTMAX, {}).get(s)) for s, run in runs.items()]
        rows.append(
            [
                ARMS[arm][0],
                str(len(every)),
                number(float(np.mean([math.exp(run.loss[run.best]) for run in every]))),
                _whole([run.best for run in every]),
                number(float(np.mean([math.exp(run.loss[run.last]) for run in every]))),
                _whole([run.last for run in every]),
                number(max(run.ratio for run in every), "{:.4f}"),
                number(float(np.mean(since)), "{:+.4f}") if since else "",
                f"{sum(bool(word) for word in judged)} of {len(judged)}",
            ]
        )
    return markdown(header, rows)


def _whole(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _orders(found: Mapping[str, Mapping[int, Course]]) -> list[str]:
    """R [dR] of the arms that have phases, at some epochs."""
    shown = [1, 5, 10, 15, 20, 25]
    rows = []
    for arm, runs in found.items():
        if not any(run.R for run in runs.values()):
            continue
        cells = []
        for epoch in shown:
            R, dR = ([of[epoch] for run in runs.values() if epoch in (of := getattr(run, name))]
                     for name in MEASURES)  # fmt: skip
            text = number(float(np.mean(R))) if R else ""
            more = float(np.mean(dR)) if dR else 0.0
            shown_dR = "0" if abs(more) < 5e-4 else number(more, "{:+.3f}")
            cells.append(text + (f" ({shown_dR})" if dR else ""))
        rows.append([ARMS[arm][0], *cells])
    return markdown(["epoch", *map(str, shown)], rows) if rows else ["No run with phases yet."]


def _gaps(found: Mapping[str, Mapping[int, Course]]) -> Iterator[str]:
    for arm, (name, seeds) in ARMS.items():
        if (n := len(found.get(arm, {}))) < seeds:
            yield f"{name}: {n} of {seeds} runs"


def _figure(found: Mapping[str, Mapping[int, Course]]) -> Any:
    """Perplexity, its difference from softmax, R and dR by epoch; as_coded apart."""
    causal = {arm: runs for arm, runs in found.items() if not arm.startswith("as_coded")}
    leaky = {arm: runs for arm, runs in found.items() if arm not in causal}
    with figures.house():
        figure = figures.new(height=8.4)
        panels = figure.subplots(4, 1, sharex=True)
        ppl = {arm: [{e: math.exp(x) for e, x in r.loss.items()} for r in runs.values()]
               for arm, runs in causal.items()}  # fmt: skip
        base = {s: run.loss for s, run in found.get(SOFTMAX, {}).items()}
        minus = {
            arm: [
                {e: math.exp(x) - math.exp(base[s][e]) for e, x in r.loss.items() if e in base[s]}
                for s, r in runs.items()
                if s in base
            ]
            for arm, runs in causal.items()
            if arm != SOFTMAX
        }
        R, dR = ({arm: [getattr(r, name) for r in runs.values()] for arm, runs in found.items()}
                 for name in MEASURES)  # fmt: skip
        titles = {
            "validation perplexity": ppl,
            "the same minus softmax + RoPE of the same seed": minus,
            "R at validation": R,
            "dR at validation: what coupling adds": dR,
        }
        for axes, (title, curves) in zip(panels, titles.items(), strict=True):
            _draw(axes, curves)
            axes.set_title(title)
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter("{x:g}")
        figures.level(panels[1], 0.0, "softmax + RoPE")
        panels[-1].set(xlabel="epoch; mean over seeds")
        if leaky:
            at = {n: r.loss[r.last] for runs in leaky.values() for n, r in runs.items()}
            mean = np.mean([math.exp(loss) for loss in at.values()])
            panels[-1].set_xlabel(
                f"epoch; mean over seeds. as_coded sees the future: {mean:.2f} at the end"
            )
        figures.label_ends(*panels)
    return figure


def _draw(axes: Any, curves: Mapping[str, list[dict[int, float]]]) -> None:
    """The mean over seeds of every arm, at the epochs that all of them have."""
    by_family: dict[str, list[str]] = {}
    for arm, runs in curves.items():
        if any(runs):
            by_family.setdefault(ARMS[arm][0].partition(",")[0].partition(" ")[0], []).append(arm)
    for mechanism, arms in by_family.items():
        shades = figures.shades(figures.colour(mechanism), len(arms))
        for arm, shade in zip(arms, shades, strict=True):
            runs = [run for run in curves[arm] if run]
            epochs = sorted(set.intersection(*map(set, runs)))
            means = [float(np.mean([run[e] for run in runs])) for e in epochs]
            axes.plot(epochs, means, color=shade, label=ARMS[arm][0])
