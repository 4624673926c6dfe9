"""Verdicts on the registered hypotheses, from run records and PREREGISTRATION.md alone.

    registration = preregistration.read()
    ledger = admit(registration, read_records(Path("results/phase_b")))
    judge(registration, ledger, "full", "primary")

What is compared, and by which test, is data in the registered block; this file knows four tests and
the metrics of a run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from phasegpt.analysis import statistics
from phasegpt.analysis.statistics import Comparison
from phasegpt.analysis.study import PHASES, best_validation, phase_value
from phasegpt.training.preregistration import Cell, Registration, config_fields, differences, digest
from phasegpt.training.run_folder import FINISHED

Record = dict[str, Any]


@dataclass(frozen=True)
class Ledger:
    """The runs that count, by cell and seed, and why the others do not, by name."""

    runs: dict[Cell, dict[int, Record]] = field(default_factory=lambda: defaultdict(dict))
    excluded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to one hypothesis, or in `refused` why there is none.

    `p` and `against` are Holm-corrected over the hypotheses; None where nothing is tested.
    """

    name: str
    claim: str
    verdict: str | None = None
    refused: str | None = None
    p: float | None = None
    against: float | None = None
    parts: tuple[tuple[str, Comparison], ...] = ()


class Refusal(Exception):
    """A hypothesis cannot be judged; the message says why."""


def admit(registration: Registration, records: Mapping[str, Record]) -> Ledger:
    """Sort records by name into the cells whose registered configuration they have.

    Of several runs of one cell and seed the one that began first counts.
    """
    ledger = Ledger()
    for name, record in sorted(records.items(), key=lambda item: str(item[1].get("started"))):
        cells, reason = _place(registration, record)
        seed = record.get("seed")
        if not reason and any(seed in ledger.runs[cell] for cell in cells):
            reason = f"is another run of {'/'.join(cells[0])} with seed {seed}; the first counts"
        if reason:
            ledger.excluded[name] = reason
            continue
        for cell in cells:
            ledger.runs[cell][record["seed"]] = record
    return ledger


def _place(registration: Registration, record: Record) -> tuple[list[Cell], str | None]:
    """The cells of a run (the baseline is in several analyses), or why it counts in none."""
    stamp = record.get("preregistration") or {}
    if stamp.get("original") != registration.hash:
        told = stamp.get("original") or stamp.get("reason") or "none"
        return [], f"ran under another registration ({told[:64]}), not {registration.hash[:16]}..."
    known = {digest(a) for a in registration.amendments}
    if lacking := [key for key in ("seed", "config", "data") if record.get(key) is None]:
        return [], f"is of another schema: it has no {lacking[0]}"
    amended = set(stamp.get("amendments") or ())
    if strange := sorted(amended - known):
        return [], f"ran under an amendment that the page does not have: {strange[0][:16]}..."
    if record.get("status") not in FINISHED:
        return [], f"is not finished: its status is {record.get('status')}"
    if record.get("smoke"):
        return [], "is a smoke run: it did not train and validate in full"
    if (record.get("git") or {}).get("dirty") is not False:
        return [], "did not run from a checkout without uncommitted changes"
    if record["seed"] not in registration.block["seeds"]:
        return [], f"has seed {record['seed']}, which is not registered"
    found = config_fields(record["config"])
    wrong = {
        cell: differences(registration.fields(cell, record["seed"]), found)
        for cell in registration.cells()
    }
    cells = [cell for cell, texts in wrong.items() if not texts]
    if not cells:
        names = {k: c["experiment"] for k, c in registration.block["conditions"].items()}
        called = str(record["config"].get("name")).replace("-", "/", 1)
        nearest = min(wrong, key=lambda c: (len(wrong[c]), names[c.condition] != called))
        return [], f"is no condition; nearest is {'/'.join(nearest)}: {'; '.join(wrong[nearest])}"
    for cell in cells:
        for amendment in registration.covering(cell, record["seed"]):
            if digest(amendment) not in amended:
                return [], f"is covered by amendment {amendment['amendment']} and began before it"
    return cells, None


def judge(registration: Registration, ledger: Ledger, scale: str, analysis: str) -> list[Verdict]:
    """One verdict per hypothesis.

    A hypothesis holds if all its parts do: its p is the largest of theirs. Against it stands the
    smallest p of the opposites, times the number of parts (Bonferroni). Holm's correction goes over
    all hypotheses that are tested; one that is refused stays in the family with p = 1.
    """
    block = registration.block
    hypotheses, n = block["hypotheses"], len(block["seeds"])
    found = {n: _examine(registration, ledger, scale, analysis, n) for n in hypotheses}
    tested = [n for n, h in hypotheses.items() if h["parts"][0]["test"] != "never"]
    p = dict(zip(tested, statistics.holm([_largest(found[n]) for n in tested]), strict=True))
    against = dict(zip(tested, statistics.holm([_opposite(found[n]) for n in tested]), strict=True))
    for name, verdict in found.items():
        if verdict.refused:
            continue
        if name in tested:
            limits = {"alpha": block["alpha"], "minimum": block["minimum_seeds"]}
            word = statistics.verdict(p[name], against[name], n=n, **limits)
            found[name] = replace(verdict, verdict=word, p=p[name], against=against[name])
        else:
            happened = any(part.effect for _, part in verdict.parts)
            word = statistics.NOT_SUPPORTED if happened else statistics.SUPPORTED
            found[name] = replace(verdict, verdict=word)
    return list(found.values())


def _examine(
    registration: Registration, ledger: Ledger, scale: str, analysis: str, name: str
) -> Verdict:
    """The parts of a hypothesis, or why it is refused; no verdict yet."""
    hypothesis = registration.block["hypotheses"][name]
    n, least = len(registration.block["seeds"]), registration.block["minimum_seeds"]
    try:
        if n < least:
            raise Refusal(f"n = {n} is below {least}: descriptive only")
        parts = tuple(
            (describe(part), compare(registration, ledger, scale, analysis, part))
            for part in hypothesis["parts"]
        )
    except Refusal as refusal:
        return Verdict(name=name, claim=hypothesis["claim"], refused=str(refusal))
    return Verdict(name=name, claim=hypothesis["claim"], parts=parts)


def compare(
    registration: Registration, ledger: Ledger, scale: str, analysis: str, part: Mapping[str, Any]
) -> Comparison:
    """One registered comparison of complete sets of runs; Refusal if they are not."""
    block = registration.block
    if mixed := _mixed(registration, ledger, scale, analysis):
        raise Refusal(mixed)
    of = _runs(registration, ledger, Cell(scale, analysis, part["of"]))
    if part["test"] == "within":
        return statistics.within([_value(part, r, None, block) for r in of], block["band"])
    than = _runs(registration, ledger, Cell(scale, analysis, part["than"]))
    pairs = list(zip(of, than, strict=True))
    if part["test"] == "never":
        rises = [(_rise(a), _rise(b)) for a, b in pairs]
        return statistics.never([math.isinf(a) or a > block["collapse_rise"] * b for a, b in rises])
    a = [_value(part, x, y, block) for x, y in pairs]
    b = [part.get("times", 1.0) * _value(part, y, x, block) for x, y in pairs]
    return statistics.less_spread(a, b) if part["test"] == "less_spread" else statistics.less(a, b)


def begun(registration: Registration, ledger: Ledger, scale: str, analysis: str) -> bool:
    """Whether an analysis has a run that is not another analysis' as well."""
    cells = list(registration.cells())
    fields = {cell: registration.fields(cell) for cell in cells}
    own = [c for c in cells if list(fields.values()).count(fields[c]) == 1]
    return any(cell[:2] == (scale, analysis) and ledger.runs.get(cell) for cell in own)


def rule(registration: Registration) -> str:
    """How `judge` decides, in words."""
    alpha = registration.block["alpha"]
    return (
        f"rule: a hypothesis needs all its parts; supported if its p (the largest, Holm-corrected) "
        f"is at most {alpha:g}, not supported if that of its opposite is, else inconclusive"
    )


def summary(runs: list[Record]) -> list[str]:
    """Mean and 95% interval over runs of perplexity, R before and after integration, and dR."""
    told = []
    for name, measure in {"ppl": "", **PHASES}.items():
        found = [phase_value(r, measure) if measure else best_validation(r) for r in runs]
        mean, _, low, high = statistics.interval([v for v in found if v is not None])
        ends = "" if low is None else f" [{low:.4g}, {high:.4g}]"
        told += [] if mean is None else [f"{name} {mean:.4g}{ends}"]
    return told


def describe(part: Mapping[str, Any]) -> str:
    """A registered comparison in words."""
    if part["test"] == "within":
        return f"{part['metric']} of {part['of']} in the band"
    if part["test"] == "never":
        return f"{part['metric']} of {part['of']}, share of runs"
    sign = "/" if part["test"] == "less_spread" else "-"
    left = f"sd {part['metric']}" if sign == "/" else part["metric"]
    times = f"{part['times']} x " if "times" in part else ""
    return f"{left}: {part['of']} {sign} {times}{part['than']}"


def _runs(registration: Registration, ledger: Ledger, cell: Cell) -> list[Record]:
    """The runs of a cell in the order of the registered seeds."""
    runs = ledger.runs.get(cell, {})
    missing = [seed for seed in registration.block["seeds"] if seed not in runs]
    if missing:
        which = "every seed" if not runs else f"seeds {' '.join(map(str, missing))}"
        raise Refusal(f"{cell.condition} lacks {which}")
    return [runs[seed] for seed in registration.block["seeds"]]


def _value(
    part: Mapping[str, Any], record: Record, partner: Record | None, block: Mapping[str, Any]
) -> float:
    """A metric of a run; `partner` is the run it is compared with."""
    best = best_validation(record)
    metric = part["metric"]
    if metric == "settling":
        runs = [r for r in (record, partner) if r is not None]
        found = _settling(
            record, min(r.get("step") or math.inf for r in runs), block["settling_tolerance"]
        )
    elif metric in ("ppl", "log_ppl"):
        found = best if not best or metric == "ppl" else math.log(best)
    else:
        found = phase_value(record, PHASES[metric])
    if found is None or not math.isfinite(found):
        told = "no" if found is None else f"{found} as"
        raise Refusal(f"{record['config']['name']} with seed {record['seed']} has {told} {metric}")
    return found


def _rise(record: Record) -> float:
    """Last over best validation perplexity; infinite for a run whose loss was not finite."""
    best, last = best_validation(record), record.get("final", {}).get("val/ppl")
    if record["status"] == "collapsed" or not best or not last:
        return math.inf
    return last / best if math.isfinite(last / best) else math.inf


def _settling(record: Record, until: float, tolerance: float) -> float | None:
    """The first validated step from which R stays within `tolerance` of its value at `until`."""
    curves = [c for k, c in record.get("curves", {}).items() if k.startswith("phase/val/R_end/")]
    points: dict[int, list[float]] = defaultdict(list)
    for step, R in (point for curve in curves for point in curve if point[0] <= until):
        points[step].append(R)
    R_by_step = {step: sum(R) / len(R) for step, R in sorted(points.items())}
    settled = None
    for step, R in reversed(R_by_step.items()):
        if abs(R - R_by_step[max(R_by_step)]) > tolerance:
            break
        settled = float(step)
    return settled


def _mixed(registration: Registration, ledger: Ledger, scale: str, analysis: str) -> str | None:
    """The first field outside the registration in which runs of a comparison differ, or None."""
    registered = registration.registered()
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell, runs in ledger.runs.items():
        if cell[:2] != (scale, analysis):
            continue
        study = registration.block["conditions"][cell.condition]["study"]
        for record in runs.values():
            seen[study, "data"].add(record["data"]["fingerprint"])
            gpu = (record.get("hardware") or {}).get("gpu")
            seen["", "device"].add("GPU" if gpu else "CPU")  # which decides what auto means
            for name, value in config_fields(record["config"]).items():
                if name not in registered:
                    seen["", name].add(repr(value))
    for (_, name), values in sorted(seen.items()):
        if len(values) > 1:
            return f"runs differ in {name}: {', '.join(sorted(values))}"
    return None


def _largest(verdict: Verdict) -> float:
    return max((_p(part.p) for _, part in verdict.parts), default=1.0)


def _opposite(verdict: Verdict) -> float:
    smallest = min((_p(part.against) for _, part in verdict.parts), default=1.0)
    return min(1.0, len(verdict.parts) * smallest) if verdict.parts else 1.0


def _p(value: float | None) -> float:
    """A p that a test did not give speaks for nothing."""
    return 1.0 if value is None or math.isnan(value) else value
