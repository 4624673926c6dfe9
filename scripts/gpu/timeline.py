"""What a trace of torch's profiler says: waits for the device, launches, gaps, kernels.

A trace is the dict of profile.export_chrome_trace: events with `cat`, `name`, `ts` and `dur` in
microseconds. Only what the host did inside of the annotation MARK counts, and the kernels that it
launched there.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MARK = "gpu_check"
#: Calls of CUDA's runtime and driver in which the host waits until the device has nothing to do.
WAITS = {
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy"),
    *("cuStreamSynchronize", "cuCtxSynchronize"),
}
#: Waits for an event: what was queued behind it goes on, as the next step does behind the flag of
#: the last one. A host that is ahead of the device waits so once a step.
EVENTS = {"cudaEventSynchronize", "cuEventSynchronize"}
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
GAP_US = 10.0  # a shorter one is the device's own pause between two kernels
ATTENTION = ("aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_attention")


def traced(call: Callable[[], object], device: str) -> dict[str, Any]:
    """The trace of a call, inside of MARK; the device has nothing to do when it begins."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        with torch.profiler.record_function(MARK):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    return exported(profile)


def exported(profile: torch.profiler.profile) -> dict[str, Any]:
    """The trace of a profile that has ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        return json.loads(file.read_text(encoding="utf-8", errors="replace"))


def summary(trace: dict[str, Any], steps: int = 1) -> dict[str, Any]:
    """Per step: waits by name, launches, milliseconds of the device; the share of it idle.

    `idle` is of the time from the first kernel to the end of the last; `gaps` are pauses of more
    than GAP_US. Of a trace without a device these are None.
    """
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X"]
    marks = [e for e in events if e["name"] == MARK and e.get("cat") == "user_annotation"]
    begin = min(e["ts"] for e in marks)
    end = max(e["ts"] + e["dur"] for e in marks)
    host = [e for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver", "cpu_op")]
    host = [e for e in host if begin <= e["ts"] < end]
    waits: dict[str, int] = defaultdict(int)
    for event in host:
        if event["name"] in WAITS:
            waits[event["name"]] += 1
    launches = sum(
        e["name"].startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch")) for e in host
    )
    found: dict[str, Any] = {
        "waits": dict(waits),
        "waits_per_step": sum(waits.values()) / steps,
        "event_waits_per_step": sum(event["name"] in EVENTS for event in host) / steps,
        "launches_per_step": launches / steps,
        "attention_ops": _forward_attention(host),
        "host_ms_per_step": (end - begin) / 1e3 / steps,
    }
    kernels = [e for e in events if e.get("cat") in ON_DEVICE and e["ts"] >= begin]
    return found | device_time([(e["ts"], e["ts"] + e["dur"], e["name"]) for e in kernels], steps)


def device_time(kernels: list[tuple[float, float, str]], steps: int) -> dict[str, Any]:
    """What the device did, from (begin, end, name) of its kernels in microseconds."""
    if not kernels:
        return dict.fromkeys(("device_ms_per_step", "idle", "gaps", "longest_gap_us", "kernels"))
    kernels = sorted(kernels)
    busy, gaps, until = 0.0, [], kernels[0][0]
    times: dict[str, float] = defaultdict(float)
    for begin, end, name in kernels:
        if begin - until > GAP_US:
            gaps.append(begin - until)
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
        times[name] += end - begin
    longest = sorted(times.items(), key=lambda item: -item[1])[:12]
    return {
        "device_ms_per_step": busy / 1e3 / steps,
        "idle": 1 - busy / (until - kernels[0][0]),
        "gaps": len(gaps) / steps,
        "longest_gap_us": max(gaps, default=0.0),
        "kernels": [{"name": n[:120], "ms_per_step": t / 1e3 / steps} for n, t in longest],
    }


def _forward_attention(host: list[dict[str, Any]]) -> list[str]:
    """The kernels that scaled_dot_product_attention chose, by their operators."""
    names = {e["name"].removeprefix("aten::") for e in host if e["name"].startswith(ATTENTION)}
    return sorted(name for name in names if not name.endswith("_backward"))
