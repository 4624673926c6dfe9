"""Tiny runs made by hand, in the exact form that training leaves behind; what a test needs."""

import contextlib
import functools
import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from phasegpt.core.composition import compose, plain
from phasegpt.data import synthetic
from phasegpt.data.corpus import prepare
from phasegpt.model import checkpoint
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.training import config
from phasegpt.training.config import RunConfig
from phasegpt.training.run_folder import read_metrics

ROOT = Path(__file__).resolve().parents[1]

# Public domain; enough English for gradients and order parameters on real text.
TEXT = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance, or nature's changing course, untrimm'd;
But thy eternal summer shall not fade
Nor lose possession of that fair thou ow'st;
Nor shall Death brag thou wander'st in his shade,
When in eternal lines to time thou grow'st;
So long as men can breathe, or eyes can see,
So long lives this, and this gives life to thee.
"""

#: Overrides of a small model; see run_config.
TWO_LAYERS = [
    "model=nano",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=32",
    "attention.layers=[1]",
    "attention.num_oscillators=4",
    "trainer.max_steps=10",
]

#: A whole training of six steps with a phase layer, watched every other step; add text.
SIX_STEPS = [
    "attention.layers=[1]",
    "attention.num_oscillators=8",
    "attention.steps=3",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "data=text",
    "data.batch_size=4",
    "trainer=cpu",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
    "callbacks.phase_monitor.every_n_steps=2",
    "callbacks.checkpoint.every_n_train_steps=2",
    "callbacks.progress_bar=false",
]

NOISY_STEPS = 12
#: A training with every source of randomness and a regularizer; add text.
NOISY = [
    "attention=kuramoto",
    "attention.layers=[1]",
    "attention.num_oscillators=8",
    "attention.steps=3",
    "attention.noise_sigma=0.05",
    "attention.frequency_jitter=0.02",
    "regularizer=ceiling",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "model.dropout=0.1",
    "data=text",
    "data.batch_size=4",
    "optimizer.warmup_steps=3",
    f"trainer.max_steps={NOISY_STEPS}",
    "trainer=cpu",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_train_steps=3",
    "callbacks.sample_text.max_new_tokens=5",
    "callbacks.progress_bar=false",
]

#: The shortest training of two layers on characters; add text.
TWO_STEPS = [
    *("attention.layers=[1]", "attention.num_oscillators=4"),
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16"),
    *("data=text", "data.tokenizer=char", "data.variant=null", "data.batch_size=4"),
    *("trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2"),
    *("optimizer.warmup_steps=1", "compile=false", "callbacks.progress_bar=false"),
    *("callbacks.sample_text.max_new_tokens=0", "callbacks.phase_monitor.every_n_steps=null"),
]


@functools.cache
def composed(*overrides: str) -> RunConfig:
    return config.run_config(compose(list(overrides)))


def model_of(run: RunConfig, vocab_size: int = 65) -> GPTConfig:
    return GPTConfig.from_sections(run.model, run.attention, vocab_size)


def at(values: dict[str, Any], key: str) -> Any:
    """values["a"]["b"] for key "a.b"."""
    for part in key.split("."):
        values = values[part]
    return values


def run_config(*overrides: str) -> RunConfig:
    return RunConfig.parse(plain(compose([*TWO_LAYERS, *overrides])))


def payload(run: RunConfig, *, scale: float = 0.2, seed: int = 0) -> dict[str, Any]:
    """A checkpoint's content; the weights are moved by N(0, scale^2), so that text varies."""
    tokenizer = prepare(run.data).tokenizer
    model = GPT(run.gpt(tokenizer.vocab_size), seed=run.seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return {
        "hyper_parameters": {
            "config": run.to_dict(),
            "tokenizer": tokenizer.state(),
            "vocab_size": tokenizer.vocab_size,
        },
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
    }


def make_run(folder: Path, *overrides: str) -> Path:
    """A run folder with two checkpoints of different weights: best at step 10, last at step 20."""
    run = run_config(*overrides)
    directory = folder / "checkpoints"
    for step, name in ((10, "best.ckpt"), (20, "last.ckpt")):
        path = directory / f"step-{step:08d}.ckpt"
        checkpoint.save(payload(run, seed=step), path)
        checkpoint.link(path, name)
    return folder


def text_data(folder: Path, text: str, tokenizer: str = "char") -> list[str]:
    """Overrides for data=text with `text`; files and token cache are in `folder`."""
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return [
        "data=text",
        f"data.tokenizer={tokenizer}",
        f"data.path={path}",
        f"data.cache_dir={folder / 'cache'}",
    ]


def need_compiler() -> None:
    """Skip where there is no C++ compiler. One that is there and fails is a failure of the test."""
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")):
        pytest.skip("needs a C++ compiler and there is none on PATH")


def play(folder: Path, characters: int = 4000) -> list[str]:
    """Overrides for data=text with `characters` of the synthetic play, written to `folder`."""
    (folder / "play.txt").write_text(synthetic.generate(1, characters))
    return [f"data.path={folder / 'play.txt'}", f"data.cache_dir={folder / 'cache'}"]


def outcome(folder: Path) -> tuple[int, dict, list, list]:
    """Weights, optimizer state and every metric column but perf/*."""
    last = checkpoint.read(folder / "checkpoints" / "last.ckpt")
    rows = [
        {k: v for k, v in row.items() if not k.startswith("perf/")}
        for row in read_metrics(folder / "metrics.csv")
    ]
    return last["global_step"], last["state_dict"], last["optimizer_states"], rows


def assert_identical(a: Path, b: Path) -> None:
    """Two trainings of NOISY have the same outcome."""
    (step_a, weights_a, optimizer_a, rows_a) = outcome(a)
    (step_b, weights_b, optimizer_b, rows_b) = outcome(b)
    assert step_a == step_b == NOISY_STEPS
    assert weights_a.keys() == weights_b.keys()
    for name, value in weights_a.items():
        assert torch.equal(value, weights_b[name]), name
    assert repr(optimizer_a) == repr(optimizer_b)  # shapes, counters and hyperparameters
    for state_a, state_b in zip(optimizer_a, optimizer_b, strict=True):
        for index, moments in state_a["state"].items():
            for key, value in moments.items():
                assert torch.equal(value, state_b["state"][index][key]), (index, key)
    assert rows_a == rows_b
    assert [row["step"] for row in rows_a] == list(range(1, NOISY_STEPS + 1))
    assert [row["step"] for row in rows_a if "val/ppl" in row] == [4, 8, 12]


@contextlib.contextmanager
def crash_at(batch: int) -> Iterator[None]:
    """Training fails at micro-batch number `batch`, from 0; the block must get there."""
    from phasegpt.training.lit import LitGPT

    real = LitGPT.training_step

    def fails(self: LitGPT, given: Any, batch_idx: int) -> Any:
        if batch_idx == batch:
            raise RuntimeError("crash")
        return real(self, given, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        patch.setattr(LitGPT, "training_step", fails)
        yield


def command(monkeypatch: pytest.MonkeyPatch, name: str, *words: str | Path) -> None:
    """Run `python -m phasegpt.NAME WORD...` in this process."""
    module = f"phasegpt.{name}"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        patch.delitem(sys.modules, module, raising=False)  # runpy warns of a second import
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def script(monkeypatch: pytest.MonkeyPatch, name: str, *words: str | Path) -> None:
    """Run `python scripts/NAME WORD...` in this process."""
    path = str(ROOT / "scripts" / name)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, words)])
        runpy.run_path(path, run_name="__main__")
