"""What a training run says before it starts and shows when it ends."""

from __future__ import annotations

import math
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from phasegpt.attention import coupled_axis
from phasegpt.core.errors import DataError
from phasegpt.data import ngram
from phasegpt.data.corpus import Corpus
from phasegpt.model.checkpoint import load
from phasegpt.model.scoring import UNITS
from phasegpt.phase import null_order_parameter
from phasegpt.samplers import Temperature, Vocabulary, decode
from phasegpt.training.config import RunConfig
from phasegpt.training.run_folder import RunFolder, read_metrics

# A training step reaches about this share of the speed of a bare matrix product on a CPU.
_CPU_EFFICIENCY = 0.5
_WORTH_SAYING_S = 600.0
_R = r"phase/R/layer(\d+)"


def estimate(flops: float) -> None:
    """Print how long `flops` will take on this CPU, and a smaller command, if that is long."""
    a = torch.randn(768, 768)
    begin, products = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.2:
        torch.mm(a, a)
        products += 1
    speed = products * 2 * 768**3 / (time.perf_counter() - begin)
    seconds = flops / (speed * _CPU_EFFICIENCY)
    if seconds < _WORTH_SAYING_S:
        return
    given = [word for word in sys.argv[1:] if not word.startswith(("trainer=", "model="))]
    smaller = shlex.join(["python", "-m", "phasegpt.train", *given, "trainer=cpu", "model=nano"])
    amount = f"{seconds / 3600:.0f} hours" if seconds > 7200 else f"{seconds / 60:.0f} minutes"
    sys.stderr.write(
        f"this run will take about {amount} on this CPU; a small version of it: {smaller}\n"
    )


def closing(run: RunConfig, folder: RunFolder, corpus: Corpus, text: str) -> str:
    """The summary of a finished run: perplexities, R, the sample `text`, where things are."""
    record = folder.record
    unit = UNITS[run.data.tokenizer]
    scored = len(corpus.split("val")) - 1
    lines = [
        "",
        f"{run.name}: {record['step']} steps, {record['tokens']:,} tokens in "
        f"{record['wall_seconds']:.0f} s ({record['tokens_per_s']:,.0f} tokens/s)",
        f"validation perplexity per {unit} ({scored:,} scored, context and stride "
        f"{run.model.block_size}):",
        f"  this model      {record['best']['val/ppl']:.3f}   best, at step "
        f"{record['best']['step']}",
    ]
    if corpus.tokenizer.vocab_size <= 1024:
        lines.append(f"  trigram model   {math.exp(ngram.trigram(corpus)):.3f}")
    floor = ngram.floor(corpus)
    if floor is not None:
        lines.append(f"  entropy floor   {math.exp(floor):.3f}   only a leak can go below it")
    for name, R in record["final"].items():
        if found := re.fullmatch(_R, name):
            lines.append(f"order parameter R of layer {found[1]}: {R:.3f}{_null(run)}")
    if text:
        lines += ["sample:", *("  " + line for line in text.splitlines())]
    best = folder.path / "checkpoints" / "best.ckpt"
    paths = {"checkpoint": best, "metrics": folder.path / "metrics.csv"}
    paths["picture"] = folder.path / "curves.png"
    return "\n".join(lines + [f"{name}: {path}" for name, path in paths.items()])


def _null(run: RunConfig) -> str:
    """What R would be with random phases, where R is over the oscillators of a head."""
    attention = run.attention.to_dict()
    oscillators = attention.get("num_oscillators")
    if oscillators is None or coupled_axis(attention) != "oscillators":
        return ""
    return f" (random phases: {null_order_parameter(oscillators):.3f})"


def sample(run: RunConfig, folder: RunFolder, corpus: Corpus) -> str:
    """A continuation of the configured prompt by the best checkpoint; the same for a seed.

    Empty where the configuration wants none.
    """
    settings = run.callbacks.sample_text
    if not settings.max_new_tokens:
        return ""
    model = load(folder.path, which="best")
    tokenizer = model.tokenizer
    try:
        prompt = tokenizer.encode(settings.prompt)
    except DataError:  # this text's alphabet lacks the prompt: begin as the text does
        prompt = corpus.split("train")[:1]
    ids = torch.as_tensor(prompt.astype("int64"))[None]
    out = decode(
        model,
        ids,
        max_new_tokens=settings.max_new_tokens,
        seeds=[run.seed],
        chain=[Vocabulary(tokenizer.vocab_size), Temperature(settings.temperature)],
        use_cache=not model.leaky,
    )
    return tokenizer.decode(out[0].tolist()).strip("\n")


def draw_curves(path: Path) -> Path:
    """curves.png of a run folder: loss, perplexity and R against steps."""
    from matplotlib.figure import Figure

    rows = read_metrics(path / "metrics.csv")
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)

    def curve(axes: Any, name: str, label: str, style: str = "-") -> None:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)

    curve(panels[0], "train/loss", "train")
    curve(panels[0], "val/loss", "validation", "o-")
    curve(panels[1], "val/ppl", "validation", "o-")
    for name in sorted({k for row in rows for k in row if re.fullmatch(_R, k)}):
        curve(panels[2], name, name.split("/")[2])
    titles = ("loss (nats per token)", "perplexity", "order parameter R")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="optimizer step")
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path / "curves.png", dpi=120, metadata={"Software": None})
    return path / "curves.png"
