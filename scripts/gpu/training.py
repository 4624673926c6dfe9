"""Phase A as it is trained: how fast, how often the host waits for it, what a save costs."""

from __future__ import annotations

import collections
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.callbacks import Callback

import phasegpt
from gpu import Run, timeline
from phasegpt.analysis.study import collect
from phasegpt.core.errors import DataError
from phasegpt.core.files import write_output
from phasegpt.data.corpus import Corpus, prepare
from phasegpt.training.assemble import assemble
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.run import fit
from phasegpt.training.run_folder import RunFolder, read_metrics

#: Experiment and the name of its record in a study.
WINNER = ("phase_a/l7_n32_k1", "phase_a-l7_n32_k1-seed1")
WITHOUT = ("phase_a_controls/k0", "phase_a_controls-k0-seed1")
BASELINE = ("phase_a/baseline", "phase_a-baseline-seed1")
SYNC = "called a synchronizing CUDA operation"
SMALL = [
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16"),
    *("data=synthetic", "data.characters=20000", "data.batch_size=4"),
    *("optimizer.warmup_steps=2", "trainer.limit_val_batches=2"),
]


class Plan(NamedTuple):
    """Steps of a run, the one that is saved, and from which to which something is measured.

    What waits for the device on purpose lies outside of `watched` and `traced`: a row of metrics
    every 10 steps, the phases every 50.
    """

    steps: int = 200
    saved: int = 100
    timed: tuple[int, int] = (31, 96)
    watched: tuple[int, int] = (121, 129)
    traced: tuple[int, int] = (141, 149)


class Probe(Callback):
    """Measures by Plan; begins and ends between two steps, before a batch."""

    def __init__(self, plan: Plan, device: str) -> None:
        self.plan, self.device, self.cuda = plan, device, device == "cuda"
        self.begun = time.perf_counter()
        self.first_step = self.seconds = 0.0
        self.places: collections.Counter[str] = collections.Counter()
        self.trace: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            self.wait()
            self.first_step = time.perf_counter() - self.begun
        for name in ("timed", "watched", "traced"):
            begin, end = getattr(self.plan, name)
            if batch_idx == end:
                getattr(self, f"end_{name}")()
            if batch_idx == begin:
                getattr(self, f"begin_{name}")()

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def begin_timed(self) -> None:
        self.wait()
        self.seconds = -time.perf_counter()

    def end_timed(self) -> None:
        self.wait()
        self.seconds += time.perf_counter()

    def begin_watched(self) -> None:
        self._caught = warnings.catch_warnings(record=True)
        self._said = self._caught.__enter__()
        warnings.simplefilter("always")
        if self.cuda:
            torch.cuda.set_sync_debug_mode("warn")

    def end_watched(self) -> None:
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)
        for said in self._said:
            if SYNC in str(said.message):
                self.places[f"{Path(said.filename).name}:{said.lineno}"] += 1

    def begin_traced(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] * self.cuda
        self.wait()
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.start()
        self._mark = torch.profiler.record_function(timeline.MARK)
        self._mark.__enter__()

    def end_traced(self) -> None:
        self._mark.__exit__(None, None, None)
        self.wait()
        self._profile.stop()
        begin, end = self.plan.traced
        self.trace = timeline.summary(timeline.exported(self._profile), end - begin)


def steps(run: Run, arm: tuple[str, str], *, compiled: bool) -> dict[str, Any]:
    """Some steps of an arm of Phase A; fails where the host waits for the device within a step."""
    plan = run.size(Plan(), Plan(32, 20, (2, 9), (11, 15), (21, 25)))
    config, corpus = _config(
        run, arm, f"trainer.max_steps={plan.steps}", f"trainer.val_check_interval={10**6}",
        f"callbacks.checkpoint.every_n_train_steps={plan.saved}",
        f"compile={str(compiled and not run.dry).lower()}",
    )  # fmt: skip
    saves: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        probe = Probe(plan, run.device)
        parts = assemble(config, RunFolder(Path(folder)), corpus)
        parts.trainer.callbacks.insert(0, probe)
        parts.trainer.limit_val_batches = 0
        save = parts.saver._save

        def timed(*words: Any, **more: Any) -> None:
            probe.wait()  # for the steps before, which are no part of it
            begin = time.perf_counter()
            save(*words, **more)
            saves.append(time.perf_counter() - begin)

        parts.saver._save = timed  # type: ignore[method-assign]
        parts.fit(None)
        size = max(path.stat().st_size for path in Path(folder).rglob("step-*.ckpt"))
        rows = read_metrics(Path(folder) / "metrics.csv")
    begin, end = plan.timed
    speed = parts.tokens_per_step * (end - begin) / probe.seconds
    mfu = [row["perf/mfu"] for row in rows if "perf/mfu" in row and plan.timed[0] < row["step"]]
    waits = sum(probe.places.values()) / (plan.watched[1] - plan.watched[0])
    found = {
        "arm": arm[0],
        "compiled": compiled and not run.dry,
        "corpus": config.data.corpus,
        "parameters": parts.lit.model.num_parameters(non_embedding=False),
        "first_step_s": probe.first_step,
        "step_ms": 1e3 * probe.seconds / (end - begin),
        "tokens_per_s": speed,
        "mfu": statistics.median(mfu) if mfu else None,
        "flops_per_token": parts.flops.products,
        "flops_per_token_causal": parts.flops.causal_products,
        "saves_s": saves,
        "checkpoint_mb": size / 1e6,
        "syncs_per_step": waits,
        "sync_places": dict(probe.places),
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if probe.cuda else None,
        "losses": [rows[0]["train/loss"], rows[-1]["train/loss"]],
        "trace": probe.trace,
    }
    found["failures"] = broken(found)
    return found


def broken(found: dict[str, Any]) -> list[str]:
    """What does not hold of some steps."""
    lines, trace = [], found["trace"]
    if found["syncs_per_step"] or trace["waits_per_step"]:
        lines.append(
            f"the host waits for the device in a step: {found['syncs_per_step']:g} times by "
            f"torch's check ({found['sync_places']}), {trace['waits_per_step']:g} by the trace "
            f"({trace['waits']})"
        )
    first, last = found["losses"]
    if not last < first:
        lines.append(f"the loss does not fall: {first} at first, {last} at last")
    return lines


def whole(run: Run, arm: tuple[str, str]) -> dict[str, Any]:
    """An arm of Phase A to its end; its record, as of a study, goes into the output folder."""
    words = ["trainer.max_steps=6", "trainer.val_check_interval=3"] if run.dry else []
    config, _ = _config(run, arm, *words, "callbacks.sample_text.max_new_tokens=0", synthetic=False)
    with tempfile.TemporaryDirectory() as scratch:
        begin = time.perf_counter()
        record = fit(config, Path(scratch) / "runs" / arm[1])
        seconds = time.perf_counter() - begin
        if not run.dry:  # a smoke run is no record
            (file,) = collect(Path(scratch) / "runs", Path(scratch) / "study")
            write_output(run.out / file.name, file.read_bytes())
    best = record["best"]
    return {
        "arm": arm[0],
        "seconds": seconds,
        "training_s": record["wall_seconds"],
        "steps": record["step"],
        "tokens_per_s": record["tokens_per_s"],
        "best_ppl": best["val/ppl"],
        "best_step": best["step"],
        "final": {k: v for k, v in record["final"].items() if "/head" not in k},
        "status": record["status"],
        "record": None if run.dry else f"{arm[1]}.json",
    }


def _config(
    run: Run, arm: tuple[str, str], *words: str, synthetic: bool = True
) -> tuple[RunConfig, Corpus]:
    """Configuration and text; where Shakespeare is not here, of `synthetic` another text."""
    own = [f"+experiment={arm[0]}", "seed=1", "logger=csv", "callbacks.progress_bar=false"]
    own += [*SMALL, "trainer=cpu"] if run.dry else []  # else a study's, so that hashes agree
    if run.dry and "baseline" not in arm[0]:
        own.append("attention.layers=[1]")
    config = run_config(phasegpt.compose([*own, *words]))
    try:
        return config, prepare(config.data)
    except DataError:
        if not synthetic:
            raise
        config = run_config(phasegpt.compose([*own, *words, "data=synthetic"]))
        return config, prepare(config.data)
