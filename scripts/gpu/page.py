"""The page of scripts/gpu_check.py, from its record alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]


def page(record: Found) -> str:
    """Claim, table of checks, what failed, and a section for each check that has numbers."""
    checks = record["checks"]
    parts = [_head(record), _checks(checks), *(_wrong(c) for c in checks)]
    for check in checks:
        if "result" in check and (section := SECTIONS.get(check["name"].split(":")[0])):
            parts.append([f"## {check['name']}", "", *section(check["result"])])
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(record: Found) -> list[str]:
    counts = {s: sum(c["status"] == s for c in record["checks"]) for s in STATUS}
    said = ", ".join(f"{n} {STATUS[s]}" for s, n in counts.items() if n)
    lines = ["# One GPU, one session", "", f"{len(record['checks'])} checks: {said}."]
    if record["dry"]:
        lines += ["", "**DRY RUN on a CPU at small size: no number here says anything.**"]
    return [*lines, "", "```bash", record["command"], "```"]


#: Every status of a check, and what the page calls it.
STATUS = {
    "ok": "passed",
    "failed": "did not hold",
    "error": "broke off",
    "timeout": "ran out of time",
    "not run": "not run, for lack of time",
}


def _checks(checks: Sequence[Found]) -> list[str]:
    rows = [
        [c["name"], c["question"], STATUS[c["status"]], f"{c.get('seconds', 0):.0f}"]
        for c in checks
    ]
    return table(["check", "question", "", "s"], rows)


def _wrong(check: Found) -> list[str]:
    if check["status"] in ("ok", "not run"):
        return []
    said = check.get("result", {}).get("failures") or [check["why"]]
    lines = [
        f"**{check['name']}**: {STATUS[check['status']]}.",
        "",
        *(f"- {s[:600]}" for s in said),
    ]
    if log := check.get("log", "").strip():
        lines += ["", "```", *log.splitlines()[-12:], "```"]
    return lines


# --- a section for each kind of check --------------------------------------------------------


def _environment(found: Found) -> list[str]:
    rows = [[k, v or "not there"] for k, v in found["packages"].items()]
    for name in ("cuda", "nvrtc", "kernels"):
        rows.append([name, str(found.get(name))])
    smi = (found["nvidia_smi"] or "none").splitlines()[-1]
    return [*table(["what", "version"], rows), "", f"nvidia-smi: {smi}"]


def _tests(found: Found) -> list[str]:
    return [f"{key}: {value}" for key, value in found.items() if key != "failures"]


def _kernels(found: Found) -> list[str]:
    rows = [
        [
            *(row["op"], row["passes"], "R" if row["R"] else "", row["backend"]),
            *(f"{row['ms']:.3f}", number(row.get("device_ms"), 3), share(row["of_limit"])),
            *(f"{row['x_eager']:.1f}", number(row.get("x_compiled"), 1)),
        ]
        for row in found["table"]
    ]
    heads = ["operation", "passes", "", "backend", "ms", "ms on the device", "of the limit"]
    said = f"B, T, H, N = {found['shape']}."
    if "sincos_per_s" in found:
        said += (
            f" Copy {found['copy_bytes_per_s'] / 1e9:,.0f} GB/s, sine and cosine "
            f"{found['sincos_per_s'] / 1e9:,.1f} G/s, bf16 product "
            f"{found['bf16_flop_per_s'] / 1e12:,.1f} TFLOP/s, all measured here."
        )
    return [
        said,
        "",
        *table([*heads, "times eager", "times compiled"], rows),
    ]


def _dispatch(found: Found) -> list[str]:
    rows = [
        [
            *(f"`{name}`", ", ".join(layer["attention_ops"]) or "none"),
            *(number(layer["launches_per_step"], 0), number(layer["device_ms_per_step"], 3)),
            f"`{layer['kernels'][0]['name'][:60]}`" if layer["kernels"] else "",
        ]
        for name, layer in found["layers"].items()
    ]
    return table(["layer", "attention", "launches", "ms on the device", "longest kernel"], rows)


def _steps(found: Found) -> list[str]:
    trace = found["trace"]
    rows = [
        ["tokens/s", f"{found['tokens_per_s']:,.0f}"],
        ["ms per step", f"{found['step_ms']:.2f}"],
        ["model FLOPs utilisation, all keys", number(found["mfu"], 3)],
        ["waits for the device per step, by torch", f"{found['syncs_per_step']:g}"],
        ["waits for the device per step, by the trace", f"{trace['waits_per_step']:g}"],
        ["waits for the step before, per step", f"{trace['event_waits_per_step']:g}"],
        ["launches per step", f"{trace['launches_per_step']:.0f}"],
        ["the device idle", number(trace["idle"], 3)],
        ["pauses above 10 us per step, the longest in us",
         f"{number(trace['gaps'], 1)}, {number(trace['longest_gap_us'], 0)}"],
        ["a checkpoint holds the training up, s", ", ".join(f"{s:.2f}" for s in found["saves_s"])],
        ["checkpoint, MB", f"{found['checkpoint_mb']:,.0f}"],
        ["first step, s", f"{found['first_step_s']:.1f}"],
        ["peak memory, GB", number(found["peak_memory_gb"], 1)],
    ]  # fmt: skip
    kernels = [[f"`{k['name'][:80]}`", f"{k['ms_per_step']:.3f}"] for k in trace["kernels"] or ()]
    text = [f"`+experiment={found['arm']}`, text {found['corpus']}.", "", *table(["", ""], rows)]
    return [*text, "", *table(["kernel", "ms per step"], kernels)] if kernels else text


def _mechanisms(found: Found) -> list[str]:
    rows = [
        [f"`{row['name']}`", row["error"][:60], *[""] * 4]
        if "error" in row
        else [
            *(f"`{row['name']}`", f"{1e3 * row['seconds']:.2f}"),
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            *(f"{row['memory'] / 1e6:,.0f}", f"{max(row['y_error'], row['grad_error']):.1e}"),
            f"{row['later_moves_earlier']:.1g}" + " (leaky by intent)" * row["leaky"],
        ]
        for row in found["rows"]
    ]
    heads = ["layer", "ms", "over softmax", "memory, MB", "error", "later tokens move earlier by"]
    return [
        "Forward and backward of one layer; the error is that of float32 against float64 on the "
        "CPU, relative to the largest value.",
        "",
        *table(heads, rows),
    ]


def _decoding(found: Found) -> list[str]:
    rows = [
        [*(r["name"], r["dtype"], str(r["batch"])),
         *(f"{r['tokens_per_s']:,.0f}", f"{r['of_bandwidth']:.1%}")]
        for r in found["rows"]
    ]  # fmt: skip
    return table(["model", "type", "batch", "tokens/s", "of the bandwidth"], rows)


def _whole(found: Found) -> list[str]:
    return [
        f"`+experiment={found['arm']} seed=1`: {found['steps']} steps, best validation perplexity "
        f"{found['best_ppl']:.3f} at step {found['best_step']}. {found['training_s']:.1f} s of "
        f"training, {found['seconds']:.1f} s in all, {found['tokens_per_s']:,.0f} tokens/s. "
        f"Record: {found['record']}."
    ]


SECTIONS: dict[str, Callable[[Found], list[str]]] = {
    "environment": _environment,
    "tests": _tests,
    "kernels": _kernels,
    "torch.compile": _kernels,
    "dispatch": _dispatch,
    "steps": _steps,
    "mechanisms": _mechanisms,
    "decoding": _decoding,
    "phase A": _whole,
}


def number(value: float | None, digits: int) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """A fraction in percent, or nothing where there is none."""
    return "" if value is None else f"{value:.0%}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown."""
    cells = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
