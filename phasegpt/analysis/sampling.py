"""A study of samplers is a folder: arms/*.json (a record each), table.csv, table.md, frontier.png.

Records are made once (phasegpt.analysis.sampler_bench) and committed; tables and picture follow
from them alone. A record holds every metric of every sample; row i of all arms has the same prompt
and seed, so arms are compared row by row. Intervals are 95% and about these prompts, this
model and this judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasegpt.analysis.sampling_figure import Rows, by_role, draw_frontier
from phasegpt.analysis.statistics import CONFIDENCE, RESAMPLES, RNG_SEED, Comparison, bca, interval
from phasegpt.core.errors import DataError
from phasegpt.core.files import csv_text, read_json, write_atomic

#: Metrics of one sample, in the records' order; what they are: phasegpt.analysis.sampler_bench.
PER_SAMPLE = ("diversity", "ppl", "judge", "real_words", "rep4", "rep16", "loops")
#: Metrics of all samples of an arm together.
PER_ARM = ("distinct1", "distinct2", "distinct3", "self_bleu", "zipf", "jsd_char3", "jsd_word1")
#: What an intervention did: KL(clean || slipped) in nats, the slipped path's share, shocks per row.
EFFECT = ("kl", "weight", "events")
_OUTSIDE = 0.01  # share of resamples that may leave the sweep before the interval is withheld
_PAIRED = ("diversity", "ppl", "judge", "real_words", "loops")  # those with differences

_COLUMNS = (
    *("arm", "role", "n", "temperature"),
    *(f"{name}{part}" for name in PER_SAMPLE for part in ("", "_sd")),
    *PER_ARM,
    *EFFECT,
    *("tokens_per_cpu_second", "against"),
    *(f"d_{name}{part}" for name in _PAIRED for part in ("", "_low", "_high")),
    *("gap", "gap_low", "gap_high"),
)

Samples = tuple[Sequence[float], Sequence[float]]  # diversity and cost of N rows


def read_arms(study: Path) -> dict[str, dict[str, Any]]:
    """The records of a study by arm, in the order of the table of arms. Raises DataError."""
    keys = ("arm", "place", "protocol", "subject")
    found = [read_json(path, *keys) for path in (study / "arms").glob("*.json")]
    if not found:
        raise DataError(f"{study} has no arms/*.json; run scripts/bench_samplers.py on a model")
    if len({json.dumps([r["subject"], r["protocol"]], sort_keys=True) for r in found}) > 1:
        raise DataError(f"the records in {study}/arms are of several models or protocols")
    return {r["arm"]["name"]: r for r in sorted(found, key=lambda r: r["place"])}


def summarise(study: Path) -> Rows:
    """One row per arm: means and sd over samples, metrics of the arm, paired differences, the gap.

    `d_*` is the arm minus the arm `against`, paired, with a BCa bootstrap interval; `gap` is the
    judge's nats per character against the temperature sweep at equal diversity (frontier_gap). What
    is not defined is None.
    """
    records = read_arms(study)
    sweep = [_curve(r) for r in records.values() if r["arm"]["role"] == "sweep"]
    table = []
    for name, record in records.items():
        arm, samples = record["arm"], record["samples"]
        row: dict[str, Any] = dict.fromkeys(_COLUMNS)
        row |= {"arm": name, "role": arm["role"], "n": len(samples["diversity"])}
        row["temperature"] = arm["temperature"]
        row["tokens_per_cpu_second"] = record["cost"].get("tokens_per_cpu_second")
        row |= record["effect"]
        for metric in PER_SAMPLE:
            row[metric], row[f"{metric}_sd"], *_ = interval(samples[metric])
        row |= {metric: record["together"][metric] for metric in PER_ARM}
        if arm["against"] in records:
            row["against"] = arm["against"]
            other = records[arm["against"]]["samples"]
            for metric in _PAIRED:
                found = _difference(samples[metric], other[metric])
                row |= {f"d_{metric}{end}": v for end, v in found.items()}
        if arm["role"] != "sweep" and len(sweep) > 1:
            row |= _ends("gap", frontier_gap(_curve(record), sweep))
        table.append(row)
    return table


def write_tables(study: Path, rows: Rows) -> list[Path]:
    """table.csv with every number, and table.md with those to read first; rows: summarise(study).

    Returns the two files, in study.
    """
    write_atomic(study / "table.csv", csv_text(_COLUMNS, rows, "{:.5g}").encode())
    write_atomic(study / "table.md", _markdown(study, rows).encode())
    return [study / "table.csv", study / "table.md"]


def regenerate(folder: Path) -> list[Path]:
    """Tables and picture of every study at or below `folder`, anew. Raises DataError for none."""
    studies = sorted({path.parent.parent for path in folder.rglob("arms/*.json")})
    if not studies:
        raise DataError(f"there is no arms/*.json at or below {folder}")
    written = []
    for study in studies:
        rows = summarise(study)
        written += [*write_tables(study, rows), draw_frontier(study, rows)]
    return written


def _curve(record: dict[str, Any]) -> Samples:
    return record["samples"]["diversity"], record["samples"]["judge"]


def _difference(of: Sequence[float], than: Sequence[float]) -> dict[str, float]:
    x = np.round(np.array(of) - np.array(than), 9)  # equal rows stay equal
    ends = bca(x.tolist())
    found = {"": float(x.mean())}
    return found if ends is None else found | {"_low": ends[0], "_high": ends[1]}


def _ends(name: str, found: Comparison | None) -> dict[str, float | None]:
    if found is None:
        return {}
    return {name: found.effect, f"{name}_low": found.low, f"{name}_high": found.high}


def _markdown(study: Path, rows: Rows) -> str:
    """Two tables: the quality of every arm, and its differences from its control."""
    record = next(iter(read_arms(study).values()))
    protocol = record["protocol"]
    lines = [
        f"{record['subject']['name']}: {len(protocol['prompts'])} prompts x "
        f"{protocol['rounds']} rounds x {protocol['tokens']} tokens, seed {protocol['seed']}. "
        f"Written by scripts/bench_samplers.py from arms/*.json.",
        "",
        "| arm | diversity | perplexity | judge | real words | distinct-2 | self-BLEU | rep-4 "
        "| rep-16c | loops | Zipf | JSD-3 | effect | tokens/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for role, members in by_role(rows):
        lines.append(f"| **{role}** |{' |' * 13}")
        lines += [
            f"| {r['arm']} | {r['diversity']:.3f} ± {_text(r['diversity_sd'])} "
            f"| {r['ppl']:.2f} ± {_text(r['ppl_sd'], 2)} | {r['judge']:.3f} "
            f"| {r['real_words']:.3f} | {r['distinct2']:.3f} | {_text(r['self_bleu'])} "
            f"| {r['rep4']:.3f} | {r['rep16']:.3f} | {r['loops']:.3f} | {_text(r['zipf'], 2)} "
            f"| {_text(r['jsd_char3'])} | {_size(r)} "
            f"| {_text(r['tokens_per_cpu_second'], 0)} |"
            for r in members
        ]
    lines += [
        "",
        "Paired by prompt and seed; the gap is to plain sampling at the same diversity.",
        "",
        "| arm | minus | diversity | perplexity | judge | real words | frontier gap |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['arm']} | {r['against'] or ''} | "
        + " | ".join(_with_ends(r, f"d_{name}") for name in _PAIRED[:4])
        + f" | {_with_ends(r, 'gap')} |"
        for r in rows
        if r["against"] or r["gap"] is not None
    ]
    return "\n".join(lines) + "\n"


def _text(value: float | None, digits: int = 3) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _size(row: dict[str, Any]) -> str:
    """How large the arm's intervention was: KL(clean || slipped), or shocks per row."""
    if row["kl"] is not None:
        return f"KL {row['kl']:.1e}"
    return "" if row["events"] is None else f"{row['events']:.2f} shocks"


def _with_ends(row: dict[str, Any], name: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return ""
    return f"{value:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def frontier_gap(arm: Samples, sweep: Sequence[Samples]) -> Comparison | None:
    """Mean cost of the arm minus the sweep's cost at the arm's mean diversity; below 0 is better.

    Any sampler can trade diversity for likelihood by its temperature. So the question is not
    whether its text is better judged than plain sampling's at one temperature, but at the
    temperature that gives the same diversity.

    Shapes: N rows (prompt and seed, common to all arms), M temperatures, K = 1 + M arms,
    R resamples.

    The frontier is piecewise linear through the means of the M points of the sweep, ordered by
    diversity. The interval is a percentile bootstrap that draws rows, the same ones for every
    arm: pairs stay pairs. The sweep is never extrapolated: None for an arm outside it, and no
    interval when more than 1% of the resamples are. Raises ValueError for unequal rows.
    """
    points = (arm, *sweep)
    if len(sweep) < 2 or len({len(side) for point in points for side in point}) > 1:
        raise ValueError(
            "the arm and at least two points of the sweep must have one diversity and one cost "
            "for each of the same rows"
        )
    x_KN, y_KN = (np.array([point[side] for point in points], np.float64) for side in (0, 1))
    N = x_KN.shape[1]
    effect = float(_gap(x_KN.mean(1)[None], y_KN.mean(1)[None])[0])
    if np.isnan(effect):
        return None
    weight_RN = np.random.default_rng(RNG_SEED).multinomial(N, np.full(N, 1 / N), RESAMPLES) / N
    gaps = _gap(weight_RN @ x_KN.T, weight_RN @ y_KN.T)
    if N < 2 or np.isnan(gaps).mean() > _OUTSIDE:
        return Comparison(n=N, effect=effect)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(gaps, (tail, 1 - tail))
    return Comparison(n=N, effect=effect, low=float(low), high=float(high))


def _gap(x_RK: NDArray[np.float64], y_RK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per resample; the arm is first. NaN where its diversity is outside the sweep's."""
    x_R1, sweep_RM = x_RK[:, :1], x_RK[:, 1:]
    order_RM = np.argsort(sweep_RM, axis=1, kind="stable")
    sweep_RM = np.take_along_axis(sweep_RM, order_RM, 1)
    cost_RM = np.take_along_axis(y_RK[:, 1:], order_RM, 1)
    above_R1 = (sweep_RM < x_R1).sum(1, keepdims=True).clip(1, sweep_RM.shape[1] - 1)
    (x0, x1), (y0, y1) = (
        (np.take_along_axis(of_RM, above_R1 - 1, 1), np.take_along_axis(of_RM, above_R1, 1))
        for of_RM in (sweep_RM, cost_RM)
    )
    share_R1 = (x_R1 - x0) / np.where(x1 > x0, x1 - x0, 1.0)
    inside_R1 = (sweep_RM[:, :1] <= x_R1) & (x_R1 <= sweep_RM[:, -1:])
    return np.where(inside_R1, y_RK[:, :1] - y0 - share_R1 * (y1 - y0), np.nan)[:, 0]
