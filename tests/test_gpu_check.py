"""The session on a GPU, tried on a CPU: every check, the runner, the reading of a trace."""

import importlib.metadata
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from helpers import ROOT

from phasegpt.training.lit import LitGPT

sys.path.append(str(ROOT / "scripts"))

from gpu import Check, Run, machine, process, timeline, training
from gpu.page import page

SCRIPT = ROOT / "scripts" / "gpu_check.py"
CHECKS = runpy.run_path(str(SCRIPT))
SLOW = ("kernels", "torch.compile")  # that compile C++
#: What a machine for it need not have.
WITHOUT = ("wandb", "datasets", "tensorboard", "tiktoken", "statsmodels", "plotly")


def dry(folder: Path, *words: str) -> dict[str, Any]:
    """The record of a dry run in a Python that cannot import WITHOUT."""
    blocker = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in WITHOUT)
    (folder / "sitecustomize.py").write_text(blocker)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, str(SCRIPT), "--dry-run", "--out", str(folder / "out"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (folder / "out" / "checks.json").is_file(), done.stderr
    record = json.loads((folder / "out" / "checks.json").read_text())
    broken = [c for c in record["checks"] if c["status"] != "ok"]
    assert done.returncode == 0 and not broken, (done.stdout, done.stderr, broken)
    return record


def test_a_check_of_every_kind_passes_small_without_a_gpu(tmp_path: Path) -> None:
    firsts = {c.name.split(":")[0]: c.name for c in reversed(CHECKS["checks"]())}
    names = [name for name in reversed(firsts.values()) if name not in SLOW]
    record = dry(tmp_path, "--only", *names)
    assert [check["name"] for check in record["checks"]] == names
    found = {check["name"].split(":")[0]: check["result"] for check in record["checks"]}
    mechanisms = {path.stem for path in (ROOT / "conf" / "attention").glob("*.yaml")}
    assert {row["name"] for row in found["mechanisms"]["rows"]} == mechanisms
    assert found["dispatch"]["layers"].keys() == mechanisms
    assert "_scaled_dot_product_flash_attention_for_cpu" in str(found["dispatch"])
    assert found["steps"]["tokens_per_s"] > 0 and found["steps"]["saves_s"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert text == page(record) and "DRY RUN" in text


@pytest.mark.slow
def test_every_check_passes_small_without_a_gpu(tmp_path: Path) -> None:
    record = dry(tmp_path)
    names = [check["name"] for check in record["checks"]]
    assert names == [check.name for check in CHECKS["checks"]()] and set(SLOW) <= set(names)
    tables = [check["result"]["table"] for check in record["checks"] if check["name"] in SLOW]
    assert [len(table) for table in tables] == [16, 16]
    assert len(list((tmp_path / "out").iterdir())) <= 8


# --- the runner ------------------------------------------------------------------------------


def held(run: Run) -> dict[str, Any]:
    return {"value": float("nan"), "failures": []}


def not_held(run: Run) -> dict[str, Any]:
    return {"failures": ["one is not two"]}


def raises(run: Run) -> dict[str, Any]:
    raise ValueError("the reason")


def dies(run: Run) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hangs(run: Run) -> dict[str, Any]:
    child = subprocess.Popen(["sleep", "600"])
    (run.out / "child").write_text(str(child.pid))
    child.wait()
    return {}


def record(function: Any, tmp_path: Path, limit: float = 60) -> dict[str, Any]:
    check = Check(function.__name__, function, limit, "?")
    return process.measured(check, Run("cpu", True, tmp_path), limit)


def test_a_check_is_recorded_whatever_becomes_of_it(tmp_path: Path) -> None:
    found = [record(f, tmp_path) for f in (held, not_held, raises, dies)]
    assert [one["status"] for one in found] == ["ok", "failed", "error", "error"]
    assert found[0]["result"]["value"] is None  # JSON has no NaN
    assert "ValueError: the reason" in found[2]["log"]
    text = page({"checks": found, "dry": True, "command": "x"})
    for said in ("one is not two", "the reason", "it ended with status -9", "1 passed"):
        assert said in text


def cut_off(run: Run) -> dict[str, Any]:
    """What pytest -v says before it hangs."""
    print("[gw0] [  1%] PASSED tests/a.py::one\n[gw1] [  2%] FAILED tests/a.py::two")
    print("tests/a.py::three PASSED    [  3%]\n" + "." * process.TAIL, flush=True)
    time.sleep(60)
    return {}


def test_tests_that_are_ended_have_told_what_failed(tmp_path: Path) -> None:
    found = record(cut_off, tmp_path, limit=3)
    assert found["status"] == "timeout" and found["log"].startswith("2 tests passed; these failed:")
    assert "FAILED tests/a.py::two" in found["log"]


def test_a_check_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    found = record(hangs, tmp_path, limit=3)
    assert found["status"] == "timeout" and "longer than 3 s" in found["why"]
    child = Path("/proc") / (tmp_path / "child").read_text()
    for _ in range(100):  # whoever inherits it collects it
        if not child.exists() or "Z" in (child / "stat").read_text().rpartition(")")[2].split()[0]:
            return
        time.sleep(0.1)
    raise AssertionError("the child of a check that was ended lives on")


def test_what_there_is_no_time_for_is_named_so(tmp_path: Path) -> None:
    chosen = CHECKS["checks"]()[:2]
    assert CHECKS["take"](Run("cpu", True, tmp_path), chosen, 0.01, keep=False) == 2
    written = json.loads((tmp_path / "checks.json").read_text())
    assert [check["status"] for check in written["checks"]] == ["not run", "not run"]
    assert "2 not run, for lack of time" in (tmp_path / "README.md").read_text()


def test_what_the_sanitizer_finds_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "========= $4 of $6, $PYTORCH_NO_CUDA_MEMORY_CACHING"\n'
                    'test "$4" != racecheck || exit 9\n')  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = machine.sanitizer(Run("cuda", False, tmp_path))
    program = ROOT / "tests" / "ops" / "sanitized.py"
    assert found["failures"] == [f"racecheck: status 9: ========= racecheck of {program}, 1"]
    assert all(found[name]["said"] for name in machine.SANITIZERS)
    # One that hangs loses nothing of the others.
    tool.write_text('#!/bin/sh\ntest "$4" != racecheck || exec sleep 60\necho "========= $4"\n')
    monkeypatch.setattr(machine, "TOOLS_S", 2)
    found = machine.sanitizer(Run("cuda", False, tmp_path))
    assert found["failures"] == ["racecheck: status -9: not ended within 2 s"]
    assert found["synccheck"] == {"status": 0, "said": ["========= synccheck"]}


# --- the reading of a trace ------------------------------------------------------------------


def event(cat: str, name: str, begin: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": end - begin}


TRACE = [
    event("user_annotation", timeline.MARK, 100, 300),
    event("gpu_user_annotation", timeline.MARK, 150, 290),  # no kernel
    event("cuda_runtime", "cudaStreamSynchronize", 50, 60),  # before
    event("cuda_runtime", "cudaLaunchKernel", 110, 112),
    event("cuda_driver", "cuLaunchKernel", 120, 122),
    event("cuda_runtime", "cudaEventSynchronize", 123, 124),  # for the step before
    event("cpu_op", "aten::_scaled_dot_product_cudnn_attention", 125, 130),
    event("cpu_op", "aten::_scaled_dot_product_cudnn_attention_backward", 131, 132),
    event("cuda_runtime", "cudaStreamSynchronize", 310, 320),  # after
    event("kernel", "a", 150, 170),
    event("kernel", "b", 165, 190),  # beside a
    event("gpu_memcpy", "copy", 230, 250),
]


def test_a_trace_is_read_between_its_marks() -> None:
    found = timeline.summary({"traceEvents": TRACE}, steps=2)
    assert found["waits"] == {} and found["waits_per_step"] == 0
    assert found["event_waits_per_step"] == 0.5
    assert found["launches_per_step"] == 1
    assert found["attention_ops"] == ["_scaled_dot_product_cudnn_attention"]
    assert found["device_ms_per_step"] == pytest.approx(0.03)
    assert found["idle"] == pytest.approx(0.4)
    assert (found["gaps"], found["longest_gap_us"]) == (0.5, 40)
    assert [kernel["name"] for kernel in found["kernels"]] == ["b", "a", "copy"]


def test_a_step_in_which_the_host_waits_fails_its_check() -> None:
    wait = event("cuda_runtime", "cudaStreamSynchronize", 140, 145)
    clean, waiting = (
        {"syncs_per_step": 0, "sync_places": {}, "losses": [2.0, 1.0],
         "trace": timeline.summary({"traceEvents": events}, steps=2)}
        for events in (TRACE, [*TRACE, wait])
    )  # fmt: skip
    assert training.broken(clean) == []
    (said,) = training.broken(waiting)
    assert "0.5 by the trace ({'cudaStreamSynchronize': 1})" in said
    (said,) = training.broken({**clean, "syncs_per_step": 2, "sync_places": {"lit.py:9": 2}})
    assert "lit.py:9" in said
    assert "does not fall" in training.broken({**clean, "losses": [1.0, float("nan")]})[0]


def test_a_wait_in_a_step_is_counted_with_its_place(tmp_path: Path, monkeypatch: Any) -> None:
    step = LitGPT.training_step

    def waiting(self: LitGPT, batch: Any, batch_idx: int) -> Any:
        if modes:
            warnings.warn(training.SYNC, stacklevel=1)
        return step(self, batch, batch_idx)

    modes: list[str] = []  # of torch's check, while it is on
    monkeypatch.setattr(LitGPT, "training_step", waiting)
    for name in ("synchronize", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    change = {"warn": lambda: modes.append("warn"), "default": modes.clear}
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: change[mode]())
    found = training.steps(Run("cuda", True, tmp_path), training.BASELINE, compiled=False)
    assert found["syncs_per_step"] == 1 and len(found["sync_places"]) == 1
    assert "test_gpu_check.py" in found["failures"][0]


# --- what it says ----------------------------------------------------------------------------


def test_the_wheels_are_what_the_missing_packages_need() -> None:
    there = {"packaging", "pyyaml", "typing-extensions"}  # torch and pytest bring them
    needed, open_ = set(), list(CHECKS["BROUGHT"])
    while open_:
        name = re.split(r"[^\w.-]", open_.pop())[0].lower().replace("_", "-")
        if name not in needed | there:
            needed.add(name)
            more = importlib.metadata.requires(name) or []
            open_ += [line for line in more if ";" not in line]  # of other Pythons, extras
    assert needed == {name.lower().replace("_", "-") for name in CHECKS["WHEELS"]}
    commands = CHECKS["wheels"]()
    pins = (ROOT / "constraints.txt").read_text().split()
    named = re.findall(r"\S+==\S+", commands)
    assert len(named) == len(CHECKS["WHEELS"]) and set(named) <= set(pins)


def test_the_table_of_the_estimate_is_what_its_formulas_give() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "gpu_estimate.py"))
    text = (ROOT / "docs" / "gpu.md").read_text()
    assert text == script["written"](text)


def without_the_optional() -> None:
    """What a `before` of processes.Forked does: nothing of WITHOUT is there to import."""
    assert not set(WITHOUT) & sys.modules.keys()
    sys.modules.update(dict.fromkeys(WITHOUT))


@pytest.mark.skipif(not os.environ.get("PHASEGPT_DATA_DIR"), reason="PHASEGPT_DATA_DIR is not set")
def test_training_on_shakespeare_imports_nothing_optional(tmp_path: Path) -> None:
    words = [word for word in training.SMALL if not word.startswith("data=")]
    words.remove("data.characters=20000")
    command = processes.python("-m", "phasegpt.train", "+experiment=phase_a_winner", *words,
                               "trainer=cpu", "trainer.max_steps=2", "attention.layers=[1]",
                               f"hydra.run.dir={tmp_path}/run")  # fmt: skip
    done = processes.run(command, cwd=tmp_path, before=without_the_optional)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "ok"
