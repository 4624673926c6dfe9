"""A study is a folder: runs/*.json (one small record per run), table.csv and curves.png.

Records are copied from run folders once and committed; table and picture follow from them alone.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phasegpt.analysis.statistics import interval
from phasegpt.checkpoint import write_atomic
from phasegpt.record import read_metrics, read_record

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    *("arm", "n", "seeds", "mean", "sd", "low", "high"),
    *("difference", "difference_low", "difference_high", "R", "dR", "dR_low", "dR_high"),
    *("ppc", "participation", "offsets", "parameters", "steps"),
)
_MEASURED = ("ppc", "participation", "offsets")
#: Columns of the run table, as measure and part of a name such as phase/val/R/layer7/end.
PHASES = {"R_start": ("R", "/start"), "R": ("R", "/end"), "dR": ("dR", "")}
_CURVES = r"val/ppl|train/loss|phase/R/layer\d+/mean|phase/val/R/layer\d+/end"


def collect(runs: Path, study: Path) -> list[Path]:
    """Copy the record of every finished run ARM-seedN under `runs` into study/runs.

    A record is run.json with the curves of perplexity, loss and R per layer from metrics.csv.
    """
    written = []
    for folder in sorted(p.parent for p in runs.glob("*/run.json")):
        record = read_record(folder)
        if record.get("status") not in ("ok", "collapsed"):
            continue
        rows = read_metrics(folder / "metrics.csv")
        record["curves"] = {
            name: [[int(row["step"]), row[name]] for row in rows if name in row][:: _thin(name)]
            for name in sorted({key for row in rows for key in row})
            if re.fullmatch(_CURVES, name)
        }
        target = study / "runs" / f"{folder.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        write_atomic(target, (text + "\n").encode())
        written.append(target)
    return written


def _thin(name: str) -> int:
    """Validation points are all kept; of the others every fifth."""
    return 1 if "val/" in name else 5


def read_records(study: Path) -> dict[str, dict[str, Any]]:
    """Every record of a study by the name of its file, ARM-seedN."""
    files = sorted((study / "runs").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def load_records(study: Path) -> dict[str, list[dict[str, Any]]]:
    """Records by arm (the file name before -seedN), sorted by seed."""
    arms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, record in read_records(study).items():
        arms[re.sub(r"-seed\d+$", "", name)].append(record)
    return {arm: sorted(found, key=lambda r: r["seed"]) for arm, found in sorted(arms.items())}


def run_table(study: Path) -> pd.DataFrame:
    """One row per run, one column per variable; what a run does not have is NaN or None.

    `ppl` and `loss` (nats) are the best validation's, `steps` is where the run ended. R_start, R
    (before and after the integration), dR, ppc, participation and offsets are of the last
    validation, averaged over phase layers.
    """
    import pandas as pd

    phases = PHASES | {name: (name, "") for name in _MEASURED}
    rows = []
    for arm, records in load_records(study).items():
        for record in records:
            best = best_validation(record)
            rows.append(
                {
                    "arm": arm,
                    "seed": record["seed"],
                    "status": record.get("status"),
                    "ppl": best,
                    "loss": None if best is None else math.log(best),
                    **{name: phase_value(record, *which) for name, which in phases.items()},
                    "parameters": record.get("parameters", {}).get("non_embedding"),
                    "steps": record.get("step"),
                    "stopped": record.get("stopped"),
                    "leaky": record.get("leaky"),
                    "wall_seconds": record.get("wall_seconds"),
                    "gpu": (record.get("hardware") or {}).get("gpu"),
                    "config_hash": record.get("config_hash"),
                }
            )
    return pd.DataFrame(rows)


def best_validation(record: dict[str, Any]) -> float | None:
    """The lowest validation perplexity of a run; of one that collapsed, the lowest before that."""
    best = (record.get("best") or {}).get("val/ppl")
    curve = record.get("curves", {}).get("val/ppl", [])
    return best if best is not None else min((v for _, v in curve), default=None)


def phase_value(record: dict[str, Any], measure: str, part: str = "") -> float | None:
    """A measure of the last validation, such as R with part /end, averaged over phase layers."""
    name = re.compile(rf"phase/val/{measure}/layer\d+{part}")
    values = [v for k, v in record.get("final", {}).items() if name.fullmatch(k)]
    return float(np.mean(values)) if values else None


def summarise(study: Path, baseline: str = "softmax") -> list[dict[str, Any]]:
    """Per arm: best validation perplexity over seeds as mean, sd and 95% t interval; the phases.

    R is of the last training batch; dR with its interval over seeds, ppc, participation and offsets
    are of the last validation (phasegpt.diagnosis), each averaged over phase layers. `difference`
    is the arm minus the `baseline` arm, paired by seed, with its own interval. A single seed has
    no sd and no interval; what is not defined is None.
    """
    arms = load_records(study)
    reference = {r["seed"]: r["best"]["val/ppl"] for r in arms.get(baseline, [])}
    table = []
    for arm, records in arms.items():
        best = {r["seed"]: r["best"]["val/ppl"] for r in records}
        mean, sd, low, high = interval(list(best.values()))
        gaps = [best[seed] - reference[seed] for seed in best if seed in reference]
        paired = arm != baseline and len(gaps) == len(best)
        difference, _, difference_low, difference_high = interval(gaps if paired else [])
        order = [r["final"]["phase/R/final"] for r in records if "phase/R/final" in r["final"]]
        dR, _, dR_low, dR_high = interval(_phases(records, "dR"))
        table.append(
            {
                "arm": arm,
                "n": len(best),
                "seeds": " ".join(str(r["seed"]) for r in records),
                "mean": mean,
                "sd": sd,
                "low": low,
                "high": high,
                "difference": difference,
                "difference_low": difference_low,
                "difference_high": difference_high,
                "R": float(np.mean(order)) if order else None,
                "dR": dR,
                "dR_low": dR_low,
                "dR_high": dR_high,
                **{k: interval(_phases(records, k))[0] for k in _MEASURED},
                "parameters": records[0]["parameters"]["non_embedding"],
                "steps": records[0]["step"],
            }
        )
    return sorted(table, key=lambda row: row["mean"])


def _phases(records: list[dict[str, Any]], measure: str, part: str = "") -> list[float]:
    """`phase_value` of every record that has it."""
    found = [phase_value(record, measure, part) for record in records]
    return [value for value in found if value is not None]


def write_table(study: Path) -> Path:
    """study/table.csv from the records."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in summarise(study):
        values = (row[name] for name in _COLUMNS)
        writer.writerow(
            ["" if v is None else f"{v:.4f}" if isinstance(v, float) else v for v in values]
        )
    write_atomic(study / "table.csv", buffer.getvalue().encode())
    return study / "table.csv"


def draw(study: Path) -> Path:
    """study/curves.png: validation perplexity and R of every arm, mean over seeds and range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, records in load_records(study).items():
        _band(left, [r["curves"]["val/ppl"] for r in records], f"{arm} (n={len(records)})")
        names = sorted({k for r in records for k in r["curves"] if k.startswith("phase/R/")})
        for name in names:
            label = f"{arm}, {name.split('/')[2]}"
            _band(right, [r["curves"][name] for r in records], label)
    left.set(title="validation perplexity", xlabel="optimizer step", yscale="log")
    right.set(title="order parameter R (phase_sync: over the prefix)", xlabel="optimizer step")
    for axes in (left, right):
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(study / "curves.png", dpi=110, metadata={"Software": None})
    return study / "curves.png"


def draw_phases(study: Path) -> Path | None:
    """study/phases.png: of every arm with oscillators, R after the integration and what of it is
    the coupling's (dR), and perplexity against R; None where no record has them.
    """
    from matplotlib.figure import Figure

    arms = {
        arm: (_phases(records, "R", "/end"), _phases(records, "dR"), records)
        for arm, records in load_records(study).items()
    }
    arms = {arm: found for arm, found in arms.items() if found[1]}
    if not arms:
        return None
    ranked = sorted(arms, key=lambda arm: np.mean(arms[arm][0]))
    figure = Figure(figsize=(11, 0.9 + 0.26 * len(arms)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for y, arm in enumerate(ranked):
        R, dR, records = arms[arm]
        left.plot([np.mean(R) - np.mean(dR), np.mean(R)], [y, y], color="0.6", zorder=1)
        left.scatter(R, [y] * len(R), s=14, color="C0", label=None if y else "R, a seed each")
        start = [a - b for a, b in zip(R, dR, strict=True)]
        left.scatter(start, [y] * len(R), s=14, color="C1", label=None if y else "R at K = 0")
        best = [r["best"]["val/ppl"] for r in records]
        right.scatter(R, best, s=14, color="C0")
        right.annotate(arm, (float(np.mean(R)), float(np.mean(best))), fontsize=6)
    left.set(yticks=range(len(ranked)), yticklabels=ranked, xlabel="R of the last validation")
    left.legend(frameon=False, fontsize=8)
    right.set(xlabel="R of the last validation", ylabel="best validation perplexity")
    figure.savefig(study / "phases.png", dpi=110, metadata={"Software": None})
    return study / "phases.png"


def _band(axes: Any, curves: list[list[list[float]]], label: str) -> None:
    steps = [point[0] for point in curves[0]]
    values = np.array([[point[1] for point in curve] for curve in curves])
    (line,) = axes.plot(steps, values.mean(0), label=label)
    axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2)
