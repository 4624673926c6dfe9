"""The tables of a study: metrics.csv, one row per run, and its arms in table.csv, .md and .tex.

Arms that see the future (leaky) have a table of their own below the others, and leaky.csv: they
are not ranked with causal ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from phasegpt.analysis import statistics
from phasegpt.analysis.names import Name, arm_names
from phasegpt.analysis.study import (
    MEASURED,
    PHASES,
    best_validation,
    coupling_budget,
    load_records,
    phase_value,
    runs,
)
from phasegpt.analysis.text_table import number as _number
from phasegpt.analysis.text_table import span as _range
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import csv_text, write_atomic
from phasegpt.training.preregistration import config_fields
from phasegpt.training.run_folder import FINISHED

Row = dict[str, Any]
Records = list[dict[str, Any]]

_PAIRED = ("_low", "_high", "_g", "_sign_flip", "_pairs")
_COLUMNS = (
    *("arm", "n", "seeds", "mean", "sd", "low", "high"),
    *("difference", "difference_low", "difference_high", "R", "dR", "dR_low", "dR_high"),
    *("ppc", "participation", "offsets", "parameters", "steps", "budget"),
    *("difference_g", "difference_sign_flip", "difference_pairs"),
    *("off_control", "off", *(f"off{end}" for end in _PAIRED)),
    *("test", "test_sd", "test_low", "test_high", "collapsed"),
)
LEAKY = "These arms see the future: their numbers compare with no causal model."


def baseline_of(arms: Iterable[str]) -> str | None:
    """The arm that differences are from: the one called softmax, or the first ...baseline."""
    named = [arm for arm in arms if arm == "softmax" or arm.endswith("baseline")]
    return named[0] if named else None


def off_control(arm: str, arms: Mapping[str, Records]) -> str | None:
    """The arm with K = 0 and otherwise this one's configuration, or None.

    Where phases act through the logits alone, K = 0 is S = 0, so S and dt need not agree.
    """
    own = _off_fields(arms[arm][0])
    if not own or own.pop("attention.coupling") == 0:
        return None
    for other, records in arms.items():
        fields = _off_fields(records[0])
        if other != arm and fields.pop("attention.coupling", None) == 0 and fields == own:
            return other
    return None


def _off_fields(record: dict[str, Any]) -> dict[str, Any]:
    """What a run and its off control have in common, and K; empty for a run without K."""
    fields = config_fields(record.get("config", {}))
    if "attention.coupling" not in fields:
        return {}
    left = {"attention.learn_coupling"}
    if fields.get("attention.readout") == "bias":
        left |= {"attention.steps", "attention.dt"}
    return {name: value for name, value in fields.items() if name not in left}


class Summary(NamedTuple):
    """A study's records by arm, the baseline of its differences, the rows of its tables, names."""

    arms: dict[str, Records]
    baseline: str | None
    rows: list[Row]
    names: dict[str, Name]

    @property
    def against(self) -> str | None:
        """The name of the baseline for people."""
        return None if self.baseline is None else self.names[self.baseline].whole


def summary(study: Path, baseline: str | None = None) -> Summary:
    """Records by arm, baseline (default: `baseline_of`) and rows of a study.

    Rows: a row per arm, best first, of leaky arms after the others; what is not defined is None.

    Best is the lowest difference from the baseline over common seeds: means over other seeds do not
    compare. (Without a baseline: the lowest mean.)

    Best validation perplexity over seeds: mean, sd, 95% t interval. `difference` is the arm minus
    the baseline (default: `baseline_of`) over the seeds of both, its pairs, with its interval,
    Hedges' g and, for at least statistics.MINIMUM pairs, the exact sign-flip p that the arm is
    lower; `off` the same against its off control. R, dR with its interval over
    seeds, ppc, participation and offsets are of the same windows at the last validation
    (phasegpt.training.phase_measures), averaged over phase layers; budget is K S dt. `test` is the
    test perplexity of the best validation's weights. Raises ConfigError for a baseline that is no
    arm.
    """
    arms = load_records(study)
    if baseline and baseline not in arms:
        raise ConfigError(f"{study} has no arm {baseline!r}; choose from: {', '.join(arms)}")
    baseline = baseline or baseline_of(arms)
    names = arm_names(arms)
    return Summary(arms, baseline, _rows(arms, baseline, names), names)


def _rows(
    arms: Mapping[str, Records], baseline: str | None, names: Mapping[str, Name]
) -> list[Row]:
    rows = []
    for arm, records in arms.items():
        mean, sd, low, high = statistics.interval(list(_best(records).values()))
        test, test_sd, test_low, test_high = statistics.interval(_found(records, _test))
        dR, _, dR_low, dR_high = statistics.interval(_phases(records, "dR"))
        off = off_control(arm, arms)
        rows.append(
            {
                "arm": arm,
                "name": names[arm].whole,
                "n": len(_best(records)),
                "seeds": " ".join(str(r["seed"]) for r in records),
                **{"mean": mean, "sd": sd, "low": low, "high": high},
                **_paired(
                    "difference", records, arms.get(baseline or "") if arm != baseline else None
                ),
                "R": statistics.interval(_phases(records, PHASES["R"]))[0],
                **{"dR": dR, "dR_low": dR_low, "dR_high": dR_high},
                **{k: statistics.interval(_phases(records, k))[0] for k in MEASURED},
                "parameters": records[0].get("parameters", {}).get("non_embedding"),
                "steps": max(r.get("step") or 0 for r in records),
                "budget": coupling_budget(records[0]),
                "off_control": off,
                **_paired("off", records, None if off is None else arms[off]),
                **{"test": test, "test_sd": test_sd, "test_low": test_low, "test_high": test_high},
                "collapsed": sum(r.get("status") == FINISHED[1] for r in records),
                "leaky": any(r.get("leaky") for r in records),
            }
        )
    mean = next((row["mean"] for row in rows if row["arm"] == baseline), None) or 0.0

    def rank(row: Row) -> tuple[bool, float]:
        if row["mean"] is None:
            return row["leaky"], math.inf
        return row["leaky"], row["mean"] - mean if row["difference"] is None else row["difference"]

    return sorted(rows, key=rank)


def _paired(prefix: str, records: Records, reference: Records | None) -> Row:
    """Arm minus reference over the seeds that both have; None without one."""
    keys = [f"{prefix}{end}" for end in ("", *_PAIRED)]
    of, than = _best(records), _best(reference or [])
    shared = [seed for seed in of if seed in than]
    if not shared:
        return dict.fromkeys(keys)
    found = statistics.less([of[seed] for seed in shared], [than[seed] for seed in shared])
    p = found.exact if found.n >= statistics.MINIMUM else None
    values = (found.effect, found.low, found.high, found.size, p, found.n)
    return dict(zip(keys, values, strict=True))


def _best(records: Records) -> dict[int, float]:
    """Best validation perplexity by seed, of the runs that have one."""
    found = {r["seed"]: best_validation(r) for r in records}
    return {seed: value for seed, value in found.items() if value is not None}


def _test(record: dict[str, Any]) -> float | None:
    return (record.get("best") or {}).get("test/ppl")


def _phases(records: Records, measure: str) -> list[float]:
    return _found(records, lambda r: phase_value(r, measure))


def _found(records: Records, value: Callable[[dict[str, Any]], float | None]) -> list[float]:
    return [v for v in map(value, records) if v is not None]


def write_tables(study: Path, found: Summary) -> list[Path]:
    """metrics.csv, table.csv, table.md and table.tex, and where an arm is leaky leaky.csv.

    `found` is summary(study).
    """
    per_run, baseline = runs(found.arms), found.against
    causal, leaky = ([r for r in found.rows if r["leaky"] is which] for which in (False, True))
    written = {
        "metrics.csv": csv_text(list(per_run[0]), per_run, "{:.6g}"),
        "table.csv": csv_text(_COLUMNS, causal, "{:.4f}"),
        **({"leaky.csv": csv_text(_COLUMNS, leaky, "{:.4f}")} if leaky else {}),
        "table.md": _markdown(baseline, causal, leaky),
        "table.tex": _latex(baseline, causal, leaky),
    }
    if not leaky:
        (study / "leaky.csv").unlink(missing_ok=True)
    for name, text in written.items():
        write_atomic(study / name, text.encode())
    return [study / name for name in written]


def cells(rows: Sequence[Row], baseline: str | None) -> list[list[str]]:
    """A table for people: its header and its rows as text; columns without a value are left out.

    `baseline` is its name (Summary.against). The last column is the arm's name in runs/ and in CSV
    files, where that is another.
    """
    columns: dict[str, Callable[[Row], str]] = {
        "arm": lambda r: r["name"],
        "K S dt": lambda r: _number(r["budget"], "{:.4g}"),
        "n": lambda r: str(r["n"]),
        "mean": lambda r: _number(r["mean"]),
        "sd": lambda r: _number(r["sd"]),
        "95% interval": lambda r: _range(r["low"], r["high"], "{:.3f}"),
        f"minus {baseline} [95%]": lambda r: _estimate(r, "difference"),
        "g": lambda r: _number(r["difference_g"], "{:+.2f}"),
        "sign-flip p": lambda r: _number(r["difference_sign_flip"]),
        "minus its K = 0 [95%]": lambda r: _estimate(r, "off"),
        "its g": lambda r: _number(r["off_g"], "{:+.2f}"),
        "its p": lambda r: _number(r["off_sign_flip"]),
        "R": lambda r: _number(r["R"]),
        "dR [95%]": lambda r: _estimate(r, "dR"),
        "test": lambda r: _estimate(r, "test", "{:.3f}"),
        "collapsed": lambda r: str(r["collapsed"] or ""),
        "parameters": lambda r: _number(r["parameters"], "{:,}"),
        "steps": lambda r: _number(r["steps"], "{:,}"),
        "records": lambda r: r["arm"] if r["arm"] != r["name"] else "",
    }
    table = {name: [text(row) for row in rows] for name, text in columns.items()}
    kept = {name: column for name, column in table.items() if any(column)}
    return [list(kept), *(list(row) for row in zip(*kept.values(), strict=True))]


def caption(rows: Sequence[Row]) -> str:
    """What the numbers of `cells` are."""
    text = (
        "Best validation perplexity over n seeds: mean, sd, 95% interval by Student's t. "
        "Differences are paired by seed; g is Hedges' g of the pairs, p the exact one-sided "
        "sign-flip p that the arm is lower, uncorrected. K S dt: the coupling budget as "
        "configured. R: after the integration, of validation windows at the last validation; "
        "dR: R minus R at K = 0 with the same weights, there too."
    )
    if any(row["n"] < statistics.MINIMUM for row in rows):
        text += f" Arms with n < {statistics.MINIMUM} are descriptive only."
    return text


def _markdown(baseline: str | None, causal: Sequence[Row], leaky: Sequence[Row]) -> str:
    lines = [caption([*causal, *leaky])]
    for rows, above in ((causal, []), (leaky, [LEAKY, ""])):
        if rows:
            header, *body = cells(rows, baseline)
            rule = ["---"] * len(header)
            lines += ["", *above, *(f"| {' | '.join(row)} |" for row in (header, rule, *body))]
    return "\n".join(lines) + "\n"


def _latex(baseline: str | None, causal: Sequence[Row], leaky: Sequence[Row]) -> str:
    """One tabular for each; needs the package booktabs."""
    lines = [f"% {caption([*causal, *leaky])}"]
    for rows, above in ((causal, []), (leaky, [f"% {LEAKY}"])):
        if rows:
            header, *body = ([_escaped(cell) for cell in row] for row in cells(rows, baseline))
            lines += [*above, rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
            lines += [rf"{' & '.join(header)} \\", r"\midrule"]
            lines += [rf"{' & '.join(row)} \\" for row in body]
            lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _escaped(cell: str) -> str:
    """LaTeX text, with minus signs that are longer than hyphens."""
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", re.sub(r"([%&#_])", r"\\\1", cell))


def _estimate(row: Row, name: str, form: str = "{:+.3f}") -> str:
    """Mean and interval, and of a difference the pairs where they are not all runs of the arm."""
    if row[name] is None:
        return ""
    ends = _range(row[f"{name}_low"], row[f"{name}_high"], form)
    pairs = row.get(f"{name}_pairs", row["n"])
    some = "" if pairs == row["n"] else f" ({pairs} pairs)"
    return _number(row[name], form) + (f" [{ends}]" if ends else "") + some
