"""What the machine is, and whether the kernels' own tests hold on it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gpu import ROOT, Run
from phasegpt.ops import cuda, nvrtc
from phasegpt.training.run_folder import environment

PACKAGES = (
    *("torch", "triton", "pytorch-lightning", "numpy", "transformers", "hydra-core", "omegaconf"),
    *("antlr4-python3-runtime", "pydantic", "wandb", "datasets", "cuda-bindings", "pytest"),
)
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
TOOLS_S = 80  # for all of them together, within the limit of their check
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit"


def machine(run: Run) -> dict[str, Any]:
    """Device, driver, compilers, packages; fails where the kernels cannot run on a GPU."""
    found: dict[str, Any] = {**environment(), "packages": {}, "failures": []}
    for name in PACKAGES:
        try:
            found["packages"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found["packages"][name] = None
    found["cuda"] = torch.version.cuda
    found["nvcc"] = _said("nvcc", "--version")
    found["nvidia_smi"] = _said("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv")
    found["sanitizer"] = _said(_sanitizer(), "--version")
    found["nvrtc"] = nvrtc.missing() or nvrtc.version()
    if run.device != "cuda":
        return found
    properties = torch.cuda.get_device_properties(0)
    names = ("name", "major", "minor", "total_memory", "multi_processor_count", "L2_cache_size")
    found["device"] = {name: getattr(properties, name, None) for name in names}
    if (why := cuda.unavailable()) is not None:
        found["failures"].append(f"the CUDA kernels cannot run: {why}")
    else:
        found["kernels"] = cuda.describe().partition(";")[0]  # without the cache's place
    return found


def tests(run: Run) -> dict[str, Any]:
    """`pytest -m gpu` where such tests are; a dry run finds them only, as all would skip."""
    import pytest

    places = {
        str(path.parent if path.name == "conftest.py" else path)
        for path in (ROOT / "tests").rglob("*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    }
    inside = {p for p in places if not any(q != p and Path(p).is_relative_to(q) for q in places)}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = ["-m", "gpu and not slow", "-v", "-p", "no:cacheprovider", "--durations=10"]
        words += [f"--junitxml={report}", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
        if run.dry:
            words.append("--collect-only")
        elif find_spec("xdist") is not None:
            words += ["-n", "4"]
        status = pytest.main([*words, *sorted(inside)[-1 if run.dry else 0 :]])
        cases = ET.parse(report).getroot().iter("testcase") if report.is_file() else ()
        found = [(f"{c.get('classname')}::{c.get('name')}", c) for c in cases]
    failed = [(name, case.find(kind)) for name, case in found for kind in ("failure", "error")]
    broken = [(name, node) for name, node in failed if node is not None]
    skipped = sum(case.find("skipped") is not None for _, case in found)
    lines = [f"{name}: {(node.get('message') or '')[:300]}" for name, node in broken]
    if not lines and status != 0:
        lines = [f"pytest ended with status {int(status)}"]
    if run.dry and not lines:
        return {"collected_only": True, "places": len(inside)}
    passed = len(found) - len(broken) - skipped
    if not passed:
        lines.append("no test ran")
    return {"passed": passed, "skipped": skipped, "broken": len(broken), "failures": lines}


def sanitizer(run: Run) -> dict[str, Any]:
    """compute-sanitizer's tools on tests/ops/sanitized.py; a dry run runs that on the CPU."""
    program = ROOT / "tests" / "ops" / "sanitized.py"
    if run.dry:
        sys.path.insert(0, str(program.parent))
        from phasegpt.ops import cpu

        why = cpu.unavailable()
        results = None if why else __import__("sanitized").exercise(cpu, "cpu")
        return {"without_sanitizer": results, "why": why}
    if shutil.which(_sanitizer()) is None:
        return {"failures": ["compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin"]}
    command = [_sanitizer(), "--error-exitcode", "9", "--tool"]
    more: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # PyTorch's pool of memory would hide what is out of bounds.
    more["env"] = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    started = {  # beside each other: most of their time is Python's start
        tool: subprocess.Popen([*command, tool, sys.executable, str(program)], **more)
        for tool in SANITIZERS
    }
    found: dict[str, Any] = {"failures": []}
    until = time.monotonic() + TOOLS_S
    for tool, process in started.items():
        try:
            lines = process.communicate(timeout=max(1.0, until - time.monotonic()))[0].splitlines()
        except subprocess.TimeoutExpired:
            process.kill()
            lines = [f"not ended within {TOOLS_S} s", *process.communicate()[0].splitlines()]
        found[tool] = {"status": process.returncode, "said": lines[-3:]}
        if process.returncode:
            said = " / ".join(lines[:8])
            found["failures"].append(f"{tool}: status {process.returncode}: {said}")
        print(tool, found[tool], flush=True)
    return found


def _sanitizer() -> str:
    name = "compute-sanitizer"
    return name if shutil.which(name) else f"/usr/local/cuda/bin/{name}"


def _said(*command: str) -> str | None:
    """What a command prints; None where there is none, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
