"""Time and memory of one layer of every mechanism, against softmax and against their FLOPs.

    python scripts/bench_attention.py [--device cpu] [--rounds 7] [--out results/attention]
    python scripts/bench_attention.py --quick

Mechanisms are those of conf/attention, but for those that see the future. A layer's forward and
backward, and its decoding of one token behind T others, are timed next to the same work of a
softmax layer, in turn; a ratio is the median over rounds of two neighbours. softmax against itself
shows the noise. FLOPs are those that a layer states (phasegpt.attention.Flops), and a link between
layers is timed and counted with its layer. Writes DEVICE.json and, from it, README.md (on a GPU
cuda.md) into --out; of an earlier page what stands from "## Why" on is kept. --quick: small sizes,
which say nothing about speed, into a folder that is given.

Shapes: B batch, T time, D model width.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phasegpt.analysis import cost
from phasegpt.attention import Attention, AttentionOutput, Flops, Link, layer_class
from phasegpt.attention._cache import LayerCache
from phasegpt.cli import guarded
from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import check_output, write_output
from phasegpt.model.config import AttentionSection, GPTConfig, ModelSection
from phasegpt.model.gpt import GPT
from phasegpt.training.run_folder import environment

ROOT = Path(__file__).resolve().parents[1]
DECODE_ROUNDS = 3  # for one of training: a call is short


class Sizes(NamedTuple):
    """What is measured."""

    width: int = 384
    heads: int = 6
    times: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    tokens: int = 1024  # of a call that trains, at least one sequence
    decoded: int = 4  # tokens of a call that decodes


QUICK = Sizes(width=32, heads=2, times=(8, 16), tokens=32, decoded=2)


class Arm:
    """One layer of a mechanism, and the link after it where there is one."""

    def __init__(self, stem: str, sizes: Sizes, device: str) -> None:
        """The YAML's defaults, with learned positions, or rotary where it knows no others."""
        attention = AttentionSection.parse(plain(compose([f"attention={stem}"]))["attention"])
        model = self._model(attention, sizes, "learned").to(device)
        self.positions = model.config.positions
        self.layer: Attention = model.blocks[0].attn.train()
        self.link: Link | None = model.link

    def _model(self, attention: AttentionSection, sizes: Sizes, positions: Any) -> GPT:
        shape = ModelSection(
            n_layer=2, n_head=sizes.heads, n_embd=sizes.width, block_size=max(sizes.times) + 1024,
            dropout=0.0, positions=positions,
        )  # fmt: skip
        try:
            return GPT(GPTConfig.from_sections(shape, attention, 2), seed=0)
        except ConfigError:
            if positions == "rope":
                raise
            return self._model(attention, sizes, "rope")

    @property
    def parameters(self) -> list[Tensor]:
        """Those of the layer and of its link."""
        modules = [self.layer, *([] if self.link is None else [self.link])]
        return [p for module in modules for p in module.parameters()]

    def __call__(self, x_BTD: Tensor, cache: LayerCache | None = None) -> list[Tensor]:
        """What the layer and its link return."""
        carried: dict[str, Any] = {} if self.layer.link is None else {"carry": None}
        out: AttentionOutput = self.layer(x_BTD, cache=cache, **carried)
        if self.link is None or out.carry is None:
            return [out.y]
        below = None if cache is None else cache.child("link")
        return [out.y, self.link(x_BTD, out.carry, cache=below)]

    def flops(self, time: int) -> Flops:
        """Forward FLOPs of a token."""
        linked = [] if self.link is None else [self.link.flops(time)]
        return Flops.sum([self.layer.flops(time), *linked])

    def training(self, x_BTD: Tensor) -> Callable[[], object]:
        """Forward and backward."""
        inputs = [x_BTD.requires_grad_(), *self.parameters]
        with torch.no_grad():
            grads = [torch.randn_like(y) for y in self(x_BTD)]
        return lambda: torch.autograd.grad(self(x_BTD), inputs, grads, allow_unused=True)

    def decoding(self, x_1TD: Tensor, tokens: int) -> tuple[Callable[[], object], int]:
        """Decode some tokens behind those of x, with a cache that grows; its bytes before that."""
        cache = LayerCache()
        with torch.inference_mode():
            self(x_1TD, cache)

        @torch.inference_mode()
        def run() -> None:
            for _ in range(tokens):
                self(x_1TD[:, -1:], cache)

        return run, cache.nbytes


# --- clock and scales ------------------------------------------------------------------------


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Memory that a call needs beyond what it began with; on a CPU of Linux, by the page."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps would hide what is taken
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024 * int(text.split(f"{key}:")[1].split()[0])


class Pair(NamedTuple):
    """One measurement of a mechanism and of softmax beside it."""

    name: str
    time: int
    own: Callable[[], object]
    softmax: Callable[[], object]


def alternate(pairs: list[Pair], rounds: int, device: str) -> dict[tuple[str, int], list[tuple]]:
    """Seconds of both of every pair, `rounds` times, in an order that turns round."""
    for pair in pairs:
        pair.own(), pair.softmax()  # builds kernels
    found: dict[tuple[str, int], list[tuple]] = {(p.name, p.time): [] for p in pairs}
    for number in range(rounds):
        turned = number % 2 == 1
        for pair in pairs[::-1] if turned else pairs:
            calls = (pair.softmax, pair.own) if turned else (pair.own, pair.softmax)
            times = [seconds(call, device) for call in calls]
            found[pair.name, pair.time].append(tuple(times[::-1] if turned else times))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def ratios(times: list[tuple]) -> dict[str, float]:
    """Median time, and of the ratio to softmax the median and the extremes."""
    quotients = [own / softmax for own, softmax in times]
    return {
        "seconds": statistics.median(own for own, _ in times),
        "ratio": statistics.median(quotients),
        "low": min(quotients),
        "high": max(quotients),
    }


# --- measuring -------------------------------------------------------------------------------


def measure(stems: list[str], sizes: Sizes, rounds: int, device: str) -> dict[str, Any]:
    """Everything of DEVICE.json."""
    arms = {stem: Arm(stem, sizes, device) for stem in stems}
    softmax, refused = arms["softmax"], {}
    train, decode, states = [], [], {}
    for T in sizes.times:
        x = torch.randn(max(1, sizes.tokens // T), T, sizes.width, device=device)
        base = softmax.training(x.clone())
        for stem, arm in arms.items():
            try:
                train.append(Pair(stem, T, arm.training(x.clone()), base))
                own, states[stem, T] = arm.decoding(x[:1], sizes.decoded)
            except ConfigError as error:  # it says up to which T
                refused[f"{stem}, T = {T}"] = str(error)
                continue
            beside, _ = softmax.decoding(x[:1], sizes.decoded)
            decode.append(Pair(stem, T, own, beside))
    trained = alternate(train, rounds, device)
    decoded = alternate(decode, DECODE_ROUNDS * rounds, device)
    memory = {(pair.name, pair.time): peak_bytes(pair.own, device) for pair in train}
    rows = []
    for (stem, T), times in trained.items():
        own, base_flops = arms[stem].flops(T), softmax.flops(T)
        rows.append({
            "name": stem, "T": T, **ratios(times), "memory": memory[stem, T],
            "memory_ratio": memory[stem, T] / memory["softmax", T],
            "flops": {"full": own.products, "causal": own.causal_products,
                      "elementwise": own.elementwise},
            "flops_ratio": {"full": own.products / base_flops.products,
                            "causal": own.causal_products / base_flops.causal_products},
        })  # fmt: skip
    steps = [
        {"name": stem, "T": T, **ratios(times), "tokens": sizes.decoded, "state": states[stem, T]}
        for (stem, T), times in decoded.items()
    ]
    return {
        "device": device, "threads": torch.get_num_threads(), **environment(),
        "sizes": sizes._asdict(), "rounds": rounds, "refused": refused,
        "positions": {stem: arm.positions for stem, arm in arms.items()},
        "training": rows, "decoding": steps,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None, help="default: results/attention")
    parser.add_argument("--only", nargs="+", help="these alone, beside softmax")
    parser.add_argument("--quick", action="store_true", help="tries the script; needs --out")
    args = parser.parse_args()
    if args.out is None and (args.quick or args.only):
        parser.error("give --out: results/attention is for whole runs")
    out = args.out or ROOT / "results" / "attention"
    file = out / f"{args.device}.json"
    readme = out / ("README.md" if args.device == "cpu" else "cuda.md")
    check_output(file, "--out")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    stems = sorted(path.stem for path in (CONF_DIR / "attention").glob("*.yaml"))
    wanted = [s for s in stems if args.only is None or s in ("softmax", *args.only)]
    named = {s: plain(compose([f"attention={s}"]))["attention"]["name"] for s in wanted}
    chosen = [s for s in wanted if not layer_class(named[s]).leaky]
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    sizes = QUICK if args.quick else Sizes()
    found = measure(chosen, sizes, 1 if args.quick else args.rounds, args.device)
    write_output(file, (json.dumps(found, indent=1) + "\n").encode())
    text = cost.page(found, readme.read_text(encoding="utf-8") if readme.is_file() else "")
    write_output(readme, text.encode())
    print(text)


if __name__ == "__main__":
    guarded(main)
