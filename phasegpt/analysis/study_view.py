"""What the tables and figures of a study show, as plain JSON; its PNGs and its page.

A curve of an arm is the mean over its seeds with their range, at the steps that all of them have.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from phasegpt.analysis import statistics, study_figures
from phasegpt.analysis.names import Name
from phasegpt.analysis.report import study_page
from phasegpt.analysis.study import PHASES, best_validation, coupled_over, loss_sd, phase_value
from phasegpt.analysis.tables import LEAKY, Row, Summary, caption, cells, summary, write_tables
from phasegpt.core.files import read_json, write_atomic
from phasegpt.training.callback_config import PhaseMonitorConfig

Record = dict[str, Any]

#: R that the original PhaseGPT aimed at in Phase A; elsewhere the monitor's, as Phase B registers.
PHASE_A_BAND = (0.30, 0.55)


def target_band(arms: dict[str, list[Record]]) -> tuple[float, ...]:
    """The band of R that a study's figures show."""
    names = (str(r.get("config", {}).get("name")) for records in arms.values() for r in records)
    is_a = all(name.startswith("phase_a") for name in names)
    return PHASE_A_BAND if is_a else PhaseMonitorConfig().band


def study_view(study: Path, found: Summary) -> dict[str, Any]:
    """Name, baseline, band of R, tables, and every arm, leaky ones last; see `arm_view`.

    `found` is summary(study).
    """
    apart = [[row for row in found.rows if row["leaky"] is leaky] for leaky in (False, True)]
    return {
        "name": study.resolve().name,
        "baseline": found.against,
        "band": list(target_band(found.arms)),
        "minimum": statistics.MINIMUM,
        "caption": caption(found.rows),
        "leaky_note": LEAKY,
        "tables": [cells(kept, found.against) if kept else [] for kept in apart],
        "arms": [
            arm_view(row, found.arms[row["arm"]], found.names[row["arm"]]) for row in found.rows
        ],
        "attention": _attention(study / "attention.json", found),
    }


def _attention(file: Path, found: Summary) -> dict[str, Any] | None:
    """What scripts/compare_attention.py wrote, where it did, with the names of its two arms."""
    if not file.is_file():
        return None
    comparison = read_json(file, "baseline", "phase")
    for which in ("baseline", "phase"):
        arm, _, seed = comparison[which]["name"].rpartition("-seed")
        if arm in found.names:
            comparison[which]["name"] = f"{found.names[arm].whole}, seed {seed}"
    return comparison


def arm_view(row: Row, records: list[Record], name: Name) -> dict[str, Any]:
    """One arm: curves {steps, mean, low, high} of perplexity and of R by layer, the rest by seed.

    `histogram` is the share of heads and positions in equal bins of R over [0, 1], all seeds
    together; `ppl` has the best of every seed, `spread` the logs of these over their mean,
    `loss_sd` see phasegpt.analysis.study.loss_sd; `difference` and `off` are {effect, low, high}
    of the table; `null` is R of random phases where R is over the oscillators of a head.
    """
    names = {name for r in records for name in r.get("curves", {}) if name.startswith("phase/R/")}
    R, dR = ([phase_value(r, PHASES[column]) for r in records] for column in ("R", "dR"))
    ppl = [best_validation(r) for r in records]
    return {
        "arm": row["arm"],
        **name._asdict(),
        "null": _null(records[0]),
        "n": row["n"],
        "leaky": row["leaky"],
        "seeds": [r["seed"] for r in records],
        "curve": band(records, "val/ppl"),
        "R_curves": {name.split("/")[2]: band(records, name) for name in sorted(names)},
        "histogram": _histogram(records),
        "ppl": ppl,
        "spread": _spread(ppl),
        "loss_sd": [loss_sd(r) for r in records],
        "R": R,
        "dR": dR,
        "difference": _effect(row, "difference"),
        "off": _effect(row, "off"),
    }


def _null(record: Record) -> float | None:
    n = record.get("config", {}).get("attention", {}).get("num_oscillators")
    if not n or coupled_over(record) != "oscillators":
        return None
    from phasegpt.phase import null_order_parameter  # loads torch, which tables do not need

    return round(null_order_parameter(float(n)), 6)


def _effect(row: Row, name: str) -> dict[str, float] | None:
    ends = {"low": row[f"{name}_low"], "high": row[f"{name}_high"]}
    return None if row[name] is None else {"effect": row[name], **ends}


def band(records: list[Record], name: str) -> dict[str, list[float]] | None:
    """Mean and range of a curve over seeds, at the steps that all of them have."""
    curves = [dict(found) for r in records if (found := r.get("curves", {}).get(name))]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return None
    values = np.array([[curve[step] for step in steps] for curve in curves])
    found = {"mean": values.mean(0), "low": values.min(0), "high": values.max(0)}
    return {"steps": steps, **{name: np.round(v, 6).tolist() for name, v in found.items()}}


def _histogram(records: list[Record]) -> list[float] | None:
    counts = [c for r in records for c in r.get("R_histogram", {}).values()]
    if not counts:
        return None
    total = np.sum(counts, axis=0)
    return np.round(total / total.sum(), 6).tolist()


def _spread(values: list[float | None]) -> list[float]:
    """log of each perplexity over their mean, so that arms of any level compare."""
    there = [v for v in values if v is not None]
    return [math.log(v * len(there) / math.fsum(there)) for v in there]


def write_study(study: Path) -> list[Path]:
    """Tables, PNGs and report.html, from runs/*.json and attention.json alone: same bytes again."""
    # Records to rows (statistics), rows to tables, both to what figures show.
    found, page = summary(study), study / "report.html"
    tables, view = write_tables(study, found), study_view(study, found)

    # The page holds the tables as text too, and the figures that are PNGs beside it.
    sources = {path.name: path.read_text() for path in tables if path.stem == "table"}
    pictures, drawn = study_figures.draw(view, study)
    write_atomic(page, study_page(view, sources, drawn).encode())
    return [*tables, *pictures, page]
