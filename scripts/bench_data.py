"""Prepare a large text and print what it takes: peak memory of all processes, and the rate.

The text is seeded: words by Zipf's law in lines of prose, `--size` bytes in a file that is kept and
used again. The rate is compared with tiktoken's own batches on as many cores, in a process apart.
The goal: under 500 MB, and at least 0.5 of tiktoken's rate.

    python scripts/bench_data.py --size 2e9 --folder /tmp/bench_data
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from phasegpt.data import encoding
from phasegpt.data.config import DataConfig
from phasegpt.data.corpus import prepare
from phasegpt.data.tokenizers import GPT2Tokenizer

LETTERS = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
LINES = 20_000  # of one block of the text


def write(path: Path, size: int) -> None:
    """Lines of words whose frequencies fall as 1 / rank; the same for a size."""
    draw = np.random.Generator(np.random.Philox(key=[size, 0]))
    odds = 1 / np.arange(1, 27)
    words = [
        "".join(LETTERS[draw.choice(26, size=length, p=odds / odds.sum())])
        for length in draw.integers(1, 11, size=50_000)
    ]
    common = 1 / np.arange(1, len(words) + 1)
    cumulative = np.cumsum(common / common.sum())
    with path.open("w") as file:
        while file.tell() < size:
            ranks = np.searchsorted(cumulative, draw.random(LINES * 12)).reshape(LINES, 12)
            ends = draw.choice([".\n", ",\n", "\n", ".\n\n"], size=LINES)
            lines = (" ".join(words[r] for r in row).capitalize() for row in ranks.tolist())
            file.write("".join(line + end for line, end in zip(lines, ends.tolist(), strict=True)))
        file.truncate(size)


def memory(process: int) -> int:
    """Bytes of a process and all below it; what they share counts once (Linux: Pss)."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{process}/task").iterdir():
            children = (task / "children").read_text().split()
            total += sum(memory(int(child)) for child in children)
    except (OSError, ValueError):  # it has ended
        pass
    return total


def watched(work: Callable[[], int], sender: Connection) -> None:
    """Send (tokens, seconds, peak bytes of all processes of this script)."""
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.1):
            peak = max(peak, memory(os.getppid()))  # with this script itself

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - begin
    over.set()
    thread.join()
    sender.send((tokens, seconds, peak))


def measure(work: Callable[[], int]) -> tuple[int, float, int]:
    """Run `work` in a process of its own; see `watched`."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=watched, args=(work, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def tiktokens(path: Path, cores: int) -> int:
    """Tokens of the file by tiktoken's own threads, as many megabytes at a time as cores."""
    encoding_ = GPT2Tokenizer()._encoding
    tokens = 0
    with path.open() as file:
        while batch := [text for _ in range(4 * cores) if (text := file.read(1 << 20))]:
            tokens += sum(map(len, encoding_.encode_ordinary_batch(batch, num_threads=cores)))
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=2e9, help="bytes of text")
    parser.add_argument("--folder", type=Path, default=Path("bench_data"), help="for the files")
    parser.add_argument("--tokenizer", default="gpt2", choices=["gpt2", "byte", "char", "bpe"])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path, cache = args.folder / f"text-{int(args.size)}.txt", args.folder / "cache"
    if not path.exists():
        write(path, int(args.size))
    shutil.rmtree(cache, ignore_errors=True)
    cores = encoding._cores()
    config = DataConfig(
        corpus="text",
        path=str(path),
        tokenizer=args.tokenizer,
        vocab_size=4096 if args.tokenizer == "bpe" else None,
        cache_dir=str(cache),
        batch_size=1,
    )

    def prepared() -> int:
        splits = prepare(config).meta["splits"].values()
        return sum(split["tokens"] for split in splits)

    print(f"{args.size / 1e6:,.0f} MB of text, {cores} cores, tokenizer {args.tokenizer}")
    rates = []
    runs = {"prepare": prepared, "tiktoken": lambda: tiktokens(path, cores)}
    for name, work in runs.items():
        tokens, seconds, peak = measure(work)
        rates.append(args.size / seconds)
        print(
            f"{name:<9} {seconds:8.1f} s {rates[-1] / 1e6:7.2f} MB/s {peak / 1e6:7.0f} MB at most "
            f"{tokens:,} tokens"
        )
    print(f"rate: {rates[0] / rates[1]:.2f} of tiktoken's")
    shutil.rmtree(cache)


if __name__ == "__main__":
    sys.exit(main())
