"""Tokens per second of decoding: GPT-2 small of random weights, beside transformers' own loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import bench_ops
import torch

import phasegpt
from gpu import Run
from phasegpt.model.gpt import GPT
from phasegpt.samplers import decode

PROMPT, ROUNDS = 16, 3


def decoding(run: Run) -> dict[str, Any]:
    """Greedy, with a cache; the share of the copy bandwidth that reading the weights takes."""
    bandwidth = bench_ops.copy_bandwidth(bench_ops.Clock(run.device, run.size(9, 1)))
    arms = {
        "softmax": ["attention=softmax"],
        "kuramoto in layer 7": ["attention=kuramoto", f"attention.layers=[{run.size(7, 1)}]"],
        "phase_sync in layer 7": ["attention=phase_sync", f"attention.layers=[{run.size(7, 1)}]"],
    }
    rows = []
    for name, words in arms.items():
        model = _model(run, words)
        for dtype in (torch.float32, torch.bfloat16) if name == "softmax" else (torch.bfloat16,):
            model = model.to(dtype)
            for batch in (1, 8):
                rows.append(_row(run, name, dtype, batch, _ours(run, model), model, bandwidth))
    if find_spec("transformers") is not None and not run.dry:
        theirs = _theirs(run)
        for dtype in (torch.float32, torch.bfloat16):
            model = theirs.to(dtype)
            for batch in (1, 8):
                call = _generate(run, model)
                rows.append(_row(run, "transformers", dtype, batch, call, model, bandwidth))
    return {"tokens": _tokens(run), "copy_bytes_per_s": bandwidth, "rows": rows}


def _row(
    run: Run,
    name: str,
    dtype: torch.dtype,
    batch: int,
    call: Callable[[int], object],
    model: torch.nn.Module,
    bandwidth: float,
) -> dict[str, Any]:
    call(batch)  # builds kernels
    taken = []
    for _ in range(run.size(ROUNDS, 1)):
        _wait(run)
        begin = time.perf_counter()
        call(batch)
        _wait(run)
        taken.append(time.perf_counter() - begin)
    steps = _tokens(run) / statistics.median(taken)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"name": name, "dtype": str(dtype).removeprefix("torch."), "batch": batch,
            "tokens_per_s": batch * steps, "of_bandwidth": size * steps / bandwidth}  # fmt: skip


def _model(run: Run, words: list[str]) -> GPT:
    small = ["model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=32"]
    size = ["model=gpt2", f"model.vocab_size={run.size(50257, 65)}", *run.size([], small)]
    return phasegpt.build(phasegpt.compose([*words, *size])).eval().to(run.device)


def _ours(run: Run, model: GPT) -> Callable[[int], object]:
    def call(batch: int) -> object:
        prompt = torch.arange(1, PROMPT + 1).expand(batch, -1)
        new = _tokens(run)
        return decode(model, prompt, max_new_tokens=new, seeds=[*range(batch)], greedy=True)

    return call


def _theirs(run: Run) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(config).eval().to(run.device)


def _generate(run: Run, model: Any) -> Callable[[int], object]:
    def call(batch: int) -> object:
        prompt = torch.arange(1, PROMPT + 1, device=run.device).expand(batch, -1)
        mask, new = torch.ones_like(prompt), _tokens(run)
        words = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": new}
        return model.generate(prompt, attention_mask=mask, **words)

    return call


def _tokens(run: Run) -> int:
    return run.size(64, 4)


def _wait(run: Run) -> None:
    if run.device == "cuda":
        torch.cuda.synchronize()
