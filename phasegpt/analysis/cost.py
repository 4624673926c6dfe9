"""The page of what a layer of every mechanism costs, from the record of scripts/bench_attention.py.

A record's `training` has a row for each mechanism and T: seconds of a forward and backward pass,
their ratio to those of a softmax layer beside it (median and extremes over rounds), peak memory and
FLOPs; `decoding` one with seconds and what is remembered.

Shapes: T time, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from phasegpt.analysis.text_table import markdown

Row = Mapping[str, Any]

#: At D = 384 and this T a layer is to take no more of softmax's time than `goal` says.
GOAL_TIME = 512
GOALS = {"phase_sync": 1.0, "kuramoto": 1.1}
OVER_FLOPS = 1.25
#: From this heading on a page is written by hand.
BY_HAND = "## Why"


def goal(row: Row) -> float:
    """Time that a layer may take, as a ratio to softmax's: 1.25 times that of its causal FLOPs."""
    return GOALS.get(row["name"], OVER_FLOPS * row["flops_ratio"]["causal"])


def page(record: Mapping[str, Any], before: str = "") -> str:
    """The page in Markdown: claim, command, tables; of the page `before` the part by hand."""
    by_hand = before[before.index(BY_HAND) :] if BY_HAND in before else ""
    parts = (_claim, _goals, _times, _memory, _decoding, _notes)
    text = "\n\n".join("\n".join(part(record)) for part in parts if part(record))
    return f"{text}\n" + (f"\n{by_hand}" if by_hand else "")


def _at_goal(record: Mapping[str, Any]) -> list[Row]:
    """The rows of GOAL_TIME, or of the longest T where that was not measured."""
    times = record["sizes"]["times"]
    time = GOAL_TIME if GOAL_TIME in times else times[-1]
    return [row for row in record["training"] if row["T"] == time]


def _claim(record: Mapping[str, Any]) -> list[str]:
    rows = [row for row in _at_goal(record) if row["name"] != "softmax"]
    above = [f"`{row['name']}`" for row in rows if row["ratio"] > goal(row)]
    claim = f"At T = {_at_goal(record)[0]['T']}, {len(rows) - len(above)} of {len(rows)} layers "
    claim += f"are as fast as their goal; above it: {', '.join(above) or 'none'}."
    return ["# What a layer of every mechanism costs", "", claim]


def _goals(record: Mapping[str, Any]) -> list[str]:
    sizes, rows = record["sizes"], _at_goal(record)
    time, hardware = rows[0]["T"], record["hardware"]
    machine = hardware["gpu"] if record["device"] == "cuda" else hardware["cpu"]
    noise = next(row for row in rows if row["name"] == "softmax")
    cells = [
        [
            f"`{row['name']}`",
            f"{1e3 * row['seconds']:.1f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            f"{row['flops_ratio']['causal']:.2f}",
            f"{row['flops_ratio']['full']:.2f}",
            *_verdict(row),
        ]
        for row in rows
    ]
    own = "".join(f", of `{name}` {value}" for name, value in GOALS.items())
    return [
        f"One layer, forward and backward, D = {sizes['width']}, {sizes['heads']} heads, "
        f"{max(1, sizes['tokens'] // time)} x {time} tokens, float32, without dropout; "
        f"{record['threads']} threads of {machine}, torch {record['versions']['torch']}. Medians "
        f"of {record['rounds']} alternating rounds, in brackets the extremes.",
        "",
        "```bash",
        f"python scripts/bench_attention.py --device {record['device']} --rounds "
        f"{record['rounds']}",
        "```",
        "",
        *markdown(["layer", "ms", "time", "FLOPs, causal", "FLOPs, full", "goal", ""], cells),
        "",
        f"Time and FLOPs are ratios to softmax's. The goal is {OVER_FLOPS} times the ratio of the "
        f"causal FLOPs{own}. FLOPs are of matrix products alone: causal counts the keys that a "
        "token sees, full all T; sines, exponentials and sums are not in them. A link between "
        "layers is timed and counted with its layer. softmax timed against itself shows the noise: "
        f"{noise['low']:.2f} to {noise['high']:.2f}.",
    ]


def _verdict(row: Row) -> tuple[str, str]:
    if row["name"] == "softmax":
        return "", ""
    return f"{goal(row):.2f}", "met" if row["ratio"] <= goal(row) else "above"


def _times(record: Mapping[str, Any]) -> list[str]:
    def cell(row: Row) -> str:
        return f"{row['ratio']:.2f} ({row['flops_ratio']['causal']:.2f})"

    return [
        "## Against T",
        "",
        "Time as a ratio to softmax's, and in brackets that of the causal FLOPs.",
        "",
        *_by_time(record["training"], cell),
    ]


def _memory(record: Mapping[str, Any]) -> list[str]:
    def cell(row: Row) -> str:
        return f"{row['memory'] / 1e6:.1f} ({row['memory_ratio']:.2f})"

    return [
        "## Memory",
        "",
        "Peak of a forward and backward pass beyond what it began with, in MB, and in brackets as "
        f"a ratio to softmax's; {record['sizes']['tokens']:,} tokens, at least one sequence.",
        "",
        *_by_time(record["training"], cell),
    ]


def _decoding(record: Mapping[str, Any]) -> list[str]:
    def cell(row: Row) -> str:
        kept = f"{row['state'] / 1e3:,.0f} kB"
        return f"{1e6 * row['seconds'] / row['tokens']:,.0f} ({row['ratio']:.2f}), {kept}"

    return [
        "## Decoding",
        "",
        "One token of one sequence behind T others: microseconds, in brackets as a ratio to "
        "softmax's, and what is remembered of the T.",
        "",
        *_by_time(record["decoding"], cell),
    ]


def _notes(record: Mapping[str, Any]) -> list[str]:
    rotary = [f"`{name}`" for name, how in record["positions"].items() if how == "rope"]
    notes = [f"Positions are learned, and rotary of {', '.join(rotary)}."] if rotary else []
    return notes + [f"Refused: {where}: {why}" for where, why in record["refused"].items()]


def _by_time(rows: Sequence[Row], cell: Callable[[Row], str]) -> list[str]:
    """A table of mechanisms against T."""
    times = sorted({row["T"] for row in rows})
    cells = {(row["name"], row["T"]): cell(row) for row in rows}
    names = dict.fromkeys(row["name"] for row in rows)
    body = [[f"`{name}`", *(cells.get((name, T), "refused") for T in times)] for name in names]
    return markdown(["layer", *(f"T = {T}" for T in times)], body)
