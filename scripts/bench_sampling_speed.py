"""Tokens per second of sampling against Hugging Face's, alternating in one process.

    python scripts/bench_sampling_speed.py [--tokens 200] [--rounds 5] [--output speed.json]
                                           [--layers 12] [--heads 12] [--width 768] [--vocab 50257]

A randomly initialised GPT-2 (124M by default), prompt of 10 tokens, T=0.8, top-k 40, top-p 0.92,
one thread, float32 and bfloat16. A ratio is Hugging Face's time over ours, of the CPU seconds of
this process, paired in every round; the JSON has all of them and their medians.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from phasegpt.cli import guarded
from phasegpt.core.files import check_output, write_output
from phasegpt.samplers import PhaseSlip, Sampler
from phasegpt.training.run_folder import environment

PROMPT = 10


def arms(layers: int, candidates: int) -> dict[str, tuple[torch.dtype, int, object]]:
    """Name: dtype, batch, custom_generate (None: Hugging Face's own loop)."""
    heads = [(layers * 7 // 12, 0), (layers * 8 // 12, 1), (layers * 9 // 12, 2)]
    full, part = PhaseSlip(heads, angle=0.3), PhaseSlip(heads, angle=0.3, candidates=candidates)
    f32, bf16 = torch.float32, torch.bfloat16
    return {
        "fp32 batch 1, Hugging Face": (f32, 1, None),
        "fp32 batch 1, angle 0": (f32, 1, Sampler(PhaseSlip(heads, angle=0.0))),
        "fp32 batch 1, exact": (f32, 1, Sampler(full)),
        "fp32 batch 1, candidates": (f32, 1, Sampler(part)),
        "fp32 batch 4, Hugging Face": (f32, 4, None),
        "fp32 batch 4, exact": (f32, 4, Sampler(full)),
        "bf16 batch 1, Hugging Face": (bf16, 1, None),
        "bf16 batch 1, exact": (bf16, 1, Sampler(full)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 200), ("rounds", 5), ("layers", 12), ("heads", 12),
                          ("width", 768), ("vocab", 50257), ("candidates", 512)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default="", help="only arms whose name has this")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.output is not None:
        check_output(options.output, "--output")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=options.layers, n_head=options.heads, n_embd=options.width,
        vocab_size=options.vocab, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    models = {torch.float32: GPT2LMHeadModel(config).eval()}
    chosen = {k: v for k, v in arms(options.layers, options.candidates).items()
              if options.only in k}  # fmt: skip
    if any(dtype is torch.bfloat16 for dtype, _, _ in chosen.values()):
        models[torch.bfloat16] = GPT2LMHeadModel(config).eval().to(torch.bfloat16)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for number in range(-1, options.rounds):  # round -1 warms up
        for name, (dtype, batch, custom) in chosen.items():
            prompt = torch.arange(1, PROMPT + 1).expand(batch, -1)
            torch.manual_seed(number)
            begin = time.process_time()
            models[dtype].generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=0.8,
                top_k=40, top_p=0.92, pad_token_id=0, custom_generate=custom,
                max_new_tokens=options.tokens if number >= 0 else 8,
            )  # fmt: skip
            if number >= 0:
                seconds[name].append(time.process_time() - begin)
    table = {}
    for name, own in seconds.items():
        base = seconds[name.split(",")[0] + ", Hugging Face"]
        ratios = [b / s for b, s in zip(base, own, strict=True)]
        table[name] = {"seconds": own, "ratios": ratios, "ratio": statistics.median(ratios)}
        batch = chosen[name][1]
        speed = options.tokens * batch / statistics.median(own)
        print(f"{name:<30} {speed:8.1f} tokens/CPU-s   ratio {table[name]['ratio']:.2f} "
              f"({min(ratios):.2f}-{max(ratios):.2f})")  # fmt: skip
    if options.output is not None:
        record = {"tokens": options.tokens, "rounds": options.rounds,
                  "environment": environment(), "transformers": transformers.__version__,
                  "model": config.to_diff_dict(), "arms": table}  # fmt: skip
        write_output(options.output, (json.dumps(record, indent=2, default=str) + "\n").encode())


if __name__ == "__main__":
    guarded(main)
