"""Tokens per second of our training on a CPU against a bare PyTorch loop, in one process.

    python scripts/bench_train.py [--size small] [--attention softmax] [--rounds 5]
    python scripts/bench_train.py --monitor [--size small] [--rounds 5]
    python scripts/bench_train.py --layers [--size small] [--rounds 5]
    python scripts/bench_train.py --load 5 [--size small] [--rounds 5]
    python scripts/bench_train.py --saves [--size large] [--rounds 5]

They alternate; scripts/gpu_check.py does so on a GPU. Both train the same module on the same
batches with the same optimizer, schedule and clipping; ours has the progress bar and default
logging on. Peak memory is that of a process of its own. --monitor shows instead what
callbacks.phase_monitor costs at its default of every 50 steps: the time inside it, beside the step
time without it. --layers shows what one phase layer costs in a softmax model, integrated by the
kernels and in plain PyTorch, in bare loops. --load N shows tokens per second under both ways in
which OpenMP's threads can wait, alone and beside N busy processes. --saves shows how long a
checkpoint holds the training up: written beside it, as it is, and on the spot.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import phasegpt
from phasegpt import ops
from phasegpt.core.allocator import keep_freed_memory
from phasegpt.data.corpus import prepare
from phasegpt.training.assemble import assemble
from phasegpt.training.callbacks import Callback
from phasegpt.training.config import run_config
from phasegpt.training.phase_monitor import PhaseMonitor
from phasegpt.training.run_folder import RunFolder

SIZES = {  # layers, heads, width, context, batch, steps per round
    "tiny": (1, 1, 8, 8, 2, 2000),  # almost no arithmetic: shows the overhead per step
    "small": (4, 4, 128, 64, 12, 200),
    "medium": (6, 6, 384, 64, 12, 40),
    "large": (12, 12, 768, 256, 2, 9),
}
WARM_UP = 5


def make_config(size: str, attention: str, steps: int, *extra: str):
    layers, heads, width, context, batch, _ = SIZES[size]
    return run_config(
        phasegpt.compose(
            [
                f"attention={attention}",
                "data=synthetic",
                "trainer=cpu",
                f"model.n_layer={layers}",
                f"model.n_head={heads}",
                f"model.n_embd={width}",
                f"model.block_size={context}",
                f"data.batch_size={batch}",
                f"trainer.max_steps={steps}",
                f"trainer.val_check_interval={10**6}",
                "callbacks.sample_text.max_new_tokens=0",
                f"callbacks.checkpoint.every_n_train_steps={10**6}",
                "compile=false",
                *extra,
            ]
        )
    )


class Stopwatch(Callback):
    """Times the steps between the warm-up and the last."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == WARM_UP:
            self.begin = time.perf_counter()
        self.end = time.perf_counter()


def ours(run, corpus) -> float:
    """Seconds per step of the Lightning training."""
    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(run, RunFolder(Path(folder)), corpus)
        watch = Stopwatch()
        parts.trainer.callbacks.insert(0, watch)
        parts.trainer.limit_val_batches = 0
        parts.fit(None)
    return (watch.end - watch.begin) / (run.trainer.max_steps - WARM_UP)


def bare(run, corpus) -> float:
    """Seconds per step of a plain loop."""
    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(run, RunFolder(Path(folder)), corpus)
    model = parts.lit.model.train()
    configured = parts.lit.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    loader = iter(parts.data.train_dataloader())
    for step in range(run.trainer.max_steps):
        if step == WARM_UP:
            begin = time.perf_counter()
        batch = next(loader)
        logits = model(batch["idx"]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.trainer.gradient_clip_val)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - begin) / (run.trainer.max_steps - WARM_UP)


def monitored(run, corpus) -> tuple[list[float], float]:
    """Seconds of every measurement of the phases but the first, and of a step without them."""
    spent: list[float] = []

    def timed(*args):
        begin = time.perf_counter()
        result = PhaseMonitor.measure(*args)
        for logger in args[1].loggers:
            logger.save()
        spent.append(time.perf_counter() - begin)
        return result

    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(run, RunFolder(Path(folder)), corpus)
        (monitor,) = (c for c in parts.trainer.callbacks if isinstance(c, PhaseMonitor))
        monitor.measure = functools.partial(timed, monitor)
        watch = Stopwatch()
        parts.trainer.callbacks.append(watch)
        parts.trainer.limit_val_batches = 0
        parts.fit(None)
    steps = run.trainer.max_steps - WARM_UP
    return spent[1:], (watch.end - watch.begin - sum(spent[1:])) / steps


def monitor_report(args: argparse.Namespace) -> dict:
    *_, steps = SIZES[args.size]
    attention = "kuramoto" if args.attention == "softmax" else args.attention
    run = make_config(args.size, attention, max(steps, 200))
    rounds = [monitored(run, prepare(run.data)) for _ in range(args.rounds)]
    every = run.callbacks.phase_monitor.every_n_steps
    measurement = statistics.median(s for spent, _ in rounds for s in spent)
    step = statistics.median(step for _, step in rounds)
    return {
        "size": args.size,
        "attention": attention,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "every_n_steps": every,
        "measurement_ms": round(1e3 * measurement, 2),
        "step_ms": round(1e3 * step, 2),
        "share_of_step_time": round(measurement / (every * step), 5),
    }


def layers_report(args: argparse.Namespace) -> dict:
    """Seconds per step with one mechanism in one layer, by kernels and in plain PyTorch."""
    layers, *_, steps = SIZES[args.size]
    where = f"attention.layers=[{layers // 2}]"
    runs = {"softmax": make_config(args.size, "softmax", steps)}
    for name in ("kuramoto", "phase_sync"):
        runs[name] = runs[f"{name}, plain"] = make_config(args.size, name, steps, where)
    corpus = prepare(runs["softmax"].data)
    use_kernels = ops._use_kernels
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(args.rounds):
        for name in sorted(runs, reverse=round_ % 2 == 1):
            ops._use_kernels = (lambda *_: False) if "plain" in name else use_kernels
            seconds[name].append(bare(runs[name], corpus))
    ops._use_kernels = use_kernels
    against = {
        name: sorted(a / b for a, b in zip(times, seconds["softmax"], strict=True))
        for name, times in seconds.items()
    }
    return {
        "size": args.size,
        "mechanism_in_layer": layers // 2,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "ms_per_step": {k: round(1e3 * statistics.median(v), 2) for k, v in seconds.items()},
        "over_softmax": {k: round(statistics.median(v), 4) for k, v in against.items()},
        "over_softmax_range": {k: [round(v[0], 4), round(v[-1], 4)] for k, v in against.items()},
    }


def load_report(args: argparse.Namespace) -> dict:
    """Tokens per second by wait policy, alternating, beside no and beside `args.load` processes."""
    words = [sys.executable, __file__, "--size", args.size, "--attention", args.attention]
    words += ["--only", "ours", "--speed"]
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_WAIT", "GOMP_"))}
    speeds: dict[str, dict[str, list[float]]] = {}
    for busy in sorted({0, args.load}):
        spin = [sys.executable, "-c", "while True: pass"]
        beside = [subprocess.Popen(spin) for _ in range(busy)]
        found = speeds[f"beside {busy}"] = {"default": [], "passive": []}
        try:
            for round_ in range(args.rounds):
                for policy in sorted(found, reverse=round_ % 2 == 1):
                    # Any OMP_ variable keeps phasegpt from setting a policy: OpenMP's own then.
                    chosen = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}
                    env = own | (chosen if policy == "passive" else {"OMP_DYNAMIC": "false"})
                    done = subprocess.run(
                        words, env=env, capture_output=True, text=True, check=True
                    )
                    found[policy].append(float(done.stdout.split()[-1]))
        finally:
            for process in beside:
                process.kill()
                process.wait()
    return {
        "size": args.size,
        "attention": args.attention,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),  # what else ran is in it
        "tokens_per_s": {
            place: {policy: round(statistics.median(v)) for policy, v in found.items()}
            for place, found in speeds.items()
        },
    }


def saves_report(args: argparse.Namespace) -> dict:
    """Seconds for which a save holds the training up, and what it writes."""
    *_, steps = SIZES[args.size]
    run = make_config(args.size, args.attention, max(6, steps // 4))
    held: dict[str, list[float]] = {"beside the training": [], "on the spot": []}
    for _ in range(args.rounds):
        for way, seconds in held.items():
            with tempfile.TemporaryDirectory() as folder:
                parts = assemble(run, RunFolder(Path(folder)), prepare(run.data))
                write, writer = parts.saver.write, parts.saver.writer

                def timed(*payload, write=write, writer=writer, way=way, seconds=seconds):
                    begin = time.perf_counter()
                    write(*payload)
                    if way == "on the spot":
                        writer.wait()
                    seconds.append(time.perf_counter() - begin)

                parts.trainer.strategy.checkpoint_io._save = timed
                parts.saver.every = run.trainer.max_steps // 2
                parts.trainer.limit_val_batches = 0
                parts.fit(None)
                size = max(path.stat().st_size for path in Path(folder).rglob("step-*.ckpt"))
    return {
        "size": args.size,
        "checkpoint_mb": round(size / 1e6, 1),
        "rounds": args.rounds,
        "held_up_ms": {way: round(1e3 * statistics.median(v), 1) for way, v in held.items()},
    }


def peak_memory_mb() -> int:
    """Of this process alone; getrusage would count what the parent had before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


LOOPS = {"ours": ours, "bare": bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--attention", default="softmax")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--monitor", action="store_true", help="the cost of the phase monitor")
    parser.add_argument("--layers", action="store_true", help="the cost of one phase layer")
    parser.add_argument("--load", type=int, help="both wait policies beside this many processes")
    parser.add_argument("--saves", action="store_true", help="how long a save holds training up")
    parser.add_argument("--speed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()  # as phasegpt.fit does
    if args.load is not None:
        print(json.dumps(load_report(args), indent=2))
        return
    if args.saves:
        print(json.dumps(saves_report(args), indent=2))
        return
    sys.stderr.isatty = lambda: True  # the progress bar is part of what is measured
    if args.monitor:
        print(json.dumps(monitor_report(args), indent=2))
        return
    if args.layers:
        print(json.dumps(layers_report(args), indent=2))
        return
    *_, context, batch, steps = SIZES[args.size]
    run = make_config(args.size, args.attention, steps)
    corpus = prepare(run.data)
    if args.only:
        seconds = LOOPS[args.only](run, corpus)
        print(context * batch / seconds if args.speed else peak_memory_mb())
        return
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for round_ in range(args.rounds):
        for name in sorted(LOOPS, reverse=round_ % 2 == 1):
            seconds[name].append(LOOPS[name](run, corpus))
    memory = {}
    for name in LOOPS:
        words = [sys.executable, __file__, "--size", args.size, "--attention", args.attention]
        done = subprocess.run([*words, "--only", name], capture_output=True, text=True, check=True)
        memory[name] = int(done.stdout.split()[-1])
    tokens = context * batch
    ratios = [b / o for o, b in zip(seconds["ours"], seconds["bare"], strict=True)]
    result = {
        "size": args.size,
        "attention": args.attention,
        "rounds": args.rounds,
        "steps_per_round": steps,
        "threads": torch.get_num_threads(),
        "tokens_per_s": {k: round(tokens / statistics.median(v)) for k, v in seconds.items()},
        "ours_over_bare": round(statistics.median(ratios), 4),
        "ours_over_bare_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "overhead_us_per_step": round(
            1e6 * (statistics.median(seconds["ours"]) - statistics.median(seconds["bare"]))
        ),
        "peak_memory_mb": memory,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
