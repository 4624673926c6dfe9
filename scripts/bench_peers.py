"""Speed here against what a user would pick instead, alternating in one run.

    python scripts/bench_peers.py --nanogpt FOLDER [--rounds 5] [--out FOLDER]
    python scripts/bench_peers.py --only decode evaluate [--rounds 3]
    python scripts/bench_peers.py --page FOLDER        the page again, from its record

--nanogpt is an unchanged checkout of nanoGPT; its train.py is started as a user starts it, on the
same text. Every ratio is the peer's time over ours in one round: above 1 we are faster. What stands
on the page is the median over rounds and its extremes. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from phasegpt.cli import guarded
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.core.files import check_output, read_json, write_json, write_output
from phasegpt.training.run_folder import environment

ROOT = Path(__file__).parents[1]
CHILDREN = Path(__file__).with_name("bench_peers_children.py")
SIZES = {"4 x 128": (4, 4, 128, 64, 12, 400), "6 x 384": (6, 6, 384, 64, 12, 60)}
FROM = 20  # steps that are not timed
CORES = os.cpu_count() or 1


class Row:
    """One line of the page: rounds of seconds, ours and the peer's, and the goal of their ratio."""

    def __init__(self, what: str, peer: str, goal: float, once: Callable[[], tuple[float, ...]]):
        """`once` gives one round: the peer's seconds, ours, and those below which no program is."""
        self.what, self.peer, self.goal, self.once = what, peer, goal, once

    def measure(self, rounds: int) -> dict[str, Any]:
        """The record of this row."""
        found = []
        for number in range(rounds):
            peer, ours, *least = self.once()
            found.append({"peer_s": peer, "ours_s": ours, "ratio": peer / ours})
            found[-1] |= {"least_s": least[0]} if least else {}
            print(f"{self.what}, round {number + 1} of {rounds}: {peer / ours:.3f}", flush=True)
        ratios = [each["ratio"] for each in found]
        return {
            **{"what": self.what, "peer": self.peer, "goal": self.goal, "rounds": found},
            "ratio": statistics.median(ratios),
            **{"low": min(ratios), "high": max(ratios)},
            **{
                key: statistics.median(r[key] for r in found)
                for key in ("peer_s", "ours_s", "least_s")
                if key in found[0]
            },
        }


def run(*words: str, cwd: Path | None = None, **env: str) -> tuple[str, float, float]:
    """Output of a command, its seconds by the clock and of CPU; ConfigError with its last lines."""
    before, begin = os.times(), time.perf_counter()
    done = subprocess.run(
        words, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)} | env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    after = os.times()
    if done.returncode:
        raise ConfigError(
            f"{' '.join(words[:4])} ended with {done.returncode}: {done.stdout[-800:]}"
        )
    cpu = after.children_user + after.children_system
    return (
        done.stdout,
        time.perf_counter() - begin,
        cpu - (before.children_user + before.children_system),
    )


def child(name: str, *words: object, **env: str) -> dict[str, Any]:
    """What a function of bench_peers_children.py found, in a process of its own."""
    out, _, _ = run(sys.executable, str(CHILDREN), name, *map(str, words), **env)
    return json.loads(out.splitlines()[-1])


def training(folder: Path, size: str) -> list[str]:
    """Our training as a user starts it: bars and logging as they are."""
    layers, heads, width, context, batch, steps = SIZES[size]
    return [
        *(sys.executable, "-m", "phasegpt.train", "attention=softmax", "trainer=cpu"),
        *("data=text", f"data.path={folder / 'text.txt'}", f"data.cache_dir={folder / 'cache'}"),
        *("data.tokenizer=char", f"model.n_layer={layers}", f"model.n_head={heads}"),
        *(f"model.n_embd={width}", f"model.block_size={context}", f"data.batch_size={batch}"),
        *(f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", "compile=false"),
        *("callbacks.sample_text.max_new_tokens=0", f"hydra.run.dir={folder / 'run'}"),
        "trainer.limit_val_batches=1",
    ]


def ours_per_step(folder: Path, size: str) -> float:
    """Seconds of a step from metrics.csv, whose rows have the speed of all steps since the last."""

    from phasegpt.training.metrics_csv import read_metrics

    shutil.rmtree(folder / "run", ignore_errors=True)
    run(*training(folder, size))
    _, _, _, context, batch, _ = SIZES[size]
    rows = [r for r in read_metrics(folder / "run" / "metrics.csv") if "perf/tokens_per_s" in r]
    seconds = [context * batch / r["perf/tokens_per_s"] for r in rows if r["step"] > FROM]
    return statistics.fmean(seconds)


def nanogpt(checkout: Path, folder: Path, size: str) -> Row:
    """A step of nanoGPT's train.py: the time between two of the lines that it prints."""
    layers, heads, width, context, batch, steps = SIZES[size]
    home = folder / "nanogpt"
    home.mkdir(exist_ok=True)
    for name in ("configurator.py", "data"):
        (home / name).unlink(missing_ok=True)
    (home / "configurator.py").symlink_to((checkout / "configurator.py").resolve())
    (home / "data").symlink_to(folder / "data")
    words = [
        *(sys.executable, "-u", str((checkout / "train.py").resolve()), "--dataset=text"),
        *("--device=cpu", "--compile=False", "--dtype=float32", "--eval_iters=1"),
        *(f"--eval_interval={10**6}", "--log_interval=10", "--gradient_accumulation_steps=1"),
        *(f"--n_layer={layers}", f"--n_head={heads}", f"--n_embd={width}", "--dropout=0.0"),
        *(f"--block_size={context}", f"--batch_size={batch}", f"--max_iters={steps}"),
    ]

    def peer() -> float:
        process = subprocess.Popen(words, cwd=home, text=True, stdout=subprocess.PIPE)
        seen = {}
        for line in process.stdout or ():
            if line.startswith("iter "):
                seen[int(line.split()[1].rstrip(":"))] = time.perf_counter()
        if process.wait() or len(seen) < 3:
            raise ConfigError(f"{checkout / 'train.py'} did not train; run it by hand: {words}")
        first, last = min(i for i in seen if i >= FROM), max(seen)
        return (seen[last] - seen[first]) / (last - first)

    goal = 0.97 if size == "4 x 128" else 0.99
    once = lambda: (peer(), ours_per_step(folder, size))  # noqa: E731
    return Row(f"a training step, {size}", "nanoGPT's train.py", goal, once)


def trainer(folder: Path) -> Row:
    """A step of Hugging Face's Trainer on GPT2LMHeadModel."""
    size = "4 x 128"
    numbers = SIZES[size]

    def once() -> tuple[float, float]:
        peer = child("hf_trainer", folder / "data" / "text" / "train.bin", FROM, *numbers)
        return peer["seconds"], ours_per_step(folder, size)

    return Row(f"a training step, {size}", "Hugging Face Trainer", 1.1, once)


def decode(batch: int) -> Row:
    """Decoding with GPT-2 124M of random weights, a prompt of 10 ids, 100 new ones, greedy."""

    def once() -> tuple[float, ...]:
        found = child("decode", batch, 100)
        return found["peer_s"], found["ours_s"], found["least_s"]

    return Row(f"decoding, GPT-2 124M, batch {batch}, fp32", "transformers generate", 1.3, once)


def evaluation() -> Row:
    """`evaluate` on a split against the forward passes alone."""

    def once() -> tuple[float, float]:
        found = child("evaluate")
        return found["bare_s"], found["ours_s"]

    return Row("evaluating a split, 4 x 128", "the bare forward passes", 0.9, once)


def first_step(folder: Path) -> Row:
    """CPU seconds of a command that takes one step, against importing torch and Lightning + 2 s."""
    words = [*training(folder, "4 x 128"), "trainer.max_steps=1", "trainer.val_check_interval=1"]

    def once() -> tuple[float, float]:

        shutil.rmtree(folder / "run", ignore_errors=True)
        _, _, imports = run(sys.executable, "-c", "import torch, pytorch_lightning")
        _, _, ours = run(*words)
        return imports + 2, ours

    return Row("CPU time of a command with one step", "import torch, Lightning + 2 s", 1.0, once)


def quickstart(folder: Path) -> Row:
    """The quickstart, whole, against 60 seconds."""
    words = (sys.executable, "-m", "phasegpt.train", "+experiment=quickstart", "trainer=cpu")

    def once() -> tuple[float, float]:

        shutil.rmtree(folder / "quick", ignore_errors=True)
        _, seconds, _ = run(*words, f"hydra.run.dir={folder / 'quick'}")
        return 60.0, seconds

    return Row("the quickstart", "60 s", 1.0, once)


def text_of(folder: Path) -> None:
    """The embedded text as a file for us, and as ids for nanoGPT and Hugging Face."""
    import numpy as np

    from phasegpt.data.synthetic import generate

    text = generate(seed=0, characters=1_000_000)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    data = folder / "data" / "text"
    data.mkdir(parents=True)
    letters = sorted(set(text))
    ids = np.array([letters.index(c) for c in text], dtype=np.uint16)
    cut = int(0.9 * len(ids))
    ids[:cut].tofile(data / "train.bin")
    ids[cut:].tofile(data / "val.bin")
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(letters)}))


def page(record: dict[str, Any]) -> str:
    """The page in Markdown."""
    rows = record["rows"]
    met = [row for row in rows if row["ratio"] >= row["goal"]]
    told = {(row["what"], row["peer"]): f"{row['ratio']:.2f}" for row in rows}
    steps = [told[key] for key in told if key[1] == "nanoGPT's train.py"]
    tokens = [told[key] for key in told if key[1] == "transformers generate"]
    claims = [f"A training step is {' and '.join(steps)} times as fast as nanoGPT's"] * bool(steps)
    claims += [f"decoding {' and '.join(tokens)} times as transformers'"] * bool(tokens)
    lines = [
        "# Speed against what else one would pick",
        "",
        *([f"**{'; '.join(claims)}.**", ""] if claims else []),
        f"{len(met)} of {len(rows)} goals are met on two CPU cores. They were set before. A ratio "
        "above 1 says that we are faster; it is the median of the rounds' ratios.",
        "",
        "| what | against | ratio | rounds | goal | ours | theirs | least |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = "met" if row in met else "missed"
        spread = f"{row['low']:.2f} to {row['high']:.2f}"
        lines.append(
            f"| {row['what']} | {row['peer']} | {row['ratio']:.2f} ({spread}) | "
            f"{len(row['rounds'])} | {row['goal']:g}, {mark} | {_time(row['ours_s'])} | "
            f"{_time(row['peer_s'])} | {_time(row['least_s']) if 'least_s' in row else ''} |"
        )
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    return "\n".join(
        [
            *lines,
            "",
            "Medians over rounds, in which the peer goes first; extremes in brackets. "
            f"{record['cpu']}, {record['threads']} threads; {versions}.",
            "Decoding: random weights, a prompt of 10 tokens, 100 new, greedy; a token's time.",
            "Rows against 60 s, or against imports + 2 s, have no peer: that time was set.",
            "Least: the products of all weights alone; no decoder in float32 is below them here.",
            "Why goals are missed: [speed](../../docs/speed.md#why-goals-are-missed).",
            "",
            "![Ratios, their extremes, and the goals](speed.png)",
            "",
            "```bash",
            f"python scripts/bench_peers.py {record['command']}",
            "```",
            "",
        ]
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """The ratios with their extremes over rounds, and the goals."""
    from phasegpt.core import figures

    rows = record["rows"][::-1]
    with figures.house():
        figure = figures.new(height=0.6 + 0.38 * len(rows))
        axes = figure.subplots()
        for y, row in enumerate(rows):
            axes.plot([row["low"], row["high"]], [y, y], color=figures.SOFT, lw=1.5)
            axes.plot(row["ratio"], y, "o", color=figures.INK)
            axes.plot(row["goal"], y, "|", color=figures.SOFT, ms=14)
        axes.axvline(1, color=figures.FAINT, lw=1, zorder=0)
        axes.set_yticks(range(len(rows)), [f"{r['what']}\nagainst {r['peer']}" for r in rows])
        axes.set_xlabel("their time over ours: right of 1 we are faster; the bar is the goal")
        figures.save(figure, path)


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def earlier(file: Path) -> dict[str, Any]:
    """The record of an earlier call. DataError."""
    record = read_json(file, "rows", "threads", "cpu", "versions", "command")
    known = {"what", "peer", "goal", "rounds", "ratio", "low", "high", "peer_s", "ours_s"}
    if not all(known <= set(row) for row in record["rows"]):
        raise DataError(f"{file} has a row without {', '.join(sorted(known))}; remove the file")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["nanogpt", "trainer", "decode", "evaluate", "first_step", "quickstart"]
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; else no such row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, help="page and record; rows not measured now stay")
    parser.add_argument("--page", type=Path, help="write the page of this folder from its record")
    args = parser.parse_args()
    if args.page:
        record = earlier(args.page / "speed.json")
        write_output(args.page / "README.md", page(record).encode())
        draw(record, args.page / "speed.png")
        return
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds} must be at least 1")
    if args.only == ["nanogpt"] and not args.nanogpt:
        parser.error("--only nanogpt needs --nanogpt FOLDER, a checkout of nanoGPT")
    if args.nanogpt and not (args.nanogpt / "train.py").is_file():
        raise ConfigError(f"--nanogpt={args.nanogpt} has no train.py; give a checkout of nanoGPT")
    record = {
        "rows": [],
        "threads": int(os.environ.get("OMP_NUM_THREADS", CORES)),
        "cpu": environment()["hardware"]["cpu"],
        "versions": {n: version(n) for n in ("torch", "pytorch-lightning", "transformers")},
        "command": f"--nanogpt FOLDER --rounds {args.rounds}",
    }
    if args.out:
        check_output(args.out / "speed.json", "--out")
    if args.out and (args.out / "speed.json").is_file():
        before = earlier(args.out / "speed.json")
        for name in ("threads", "cpu", "versions"):
            if before[name] != record[name]:
                raise ConfigError(
                    f"{args.out} was measured with {name} {before[name]}, this would be with "
                    f"{record[name]}; give another --out"
                )
        record = before
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text_of(folder)
        parts = {
            "nanogpt": [nanogpt(args.nanogpt, folder, s) for s in SIZES] if args.nanogpt else [],
            "trainer": [trainer(folder)],
            "decode": [decode(1), decode(8)],
            "evaluate": [evaluation()],
            "first_step": [first_step(folder)],
            "quickstart": [quickstart(folder)],
        }
        found = [row.measure(args.rounds) for name in args.only for row in parts[name]]
    rows = {(row["what"], row["peer"]): row for row in record["rows"] + found}
    record["rows"] = list(rows.values())  # what was not measured now stays
    text = page(record)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "speed.json", record)
        write_output(args.out / "README.md", text.encode())
        draw(record, args.out / "speed.png")


if __name__ == "__main__":
    guarded(main)
