"""What trainer.tf32=true would change, emulated on a CPU.

    python scripts/emulate_tf32.py

Trains a small model with exact first phases and with those of products whose factors are rounded to
TF32's 10 bits, forward and backward, and prints validation loss and R of both.
"""

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

import phasegpt
from phasegpt.attention import _oscillators
from phasegpt.cli import guarded

WORDS = [
    *("+experiment=quickstart", "model=nano", "trainer=cpu", "compile=false"),
    *(
        "model.n_layer=4",
        "model.block_size=64",
        "data.batch_size=8",
        "trainer.limit_val_batches=50",
    ),
    *("callbacks.sample_text.max_new_tokens=0", "callbacks.progress_bar=false"),
    "callbacks.phase_monitor.every_n_steps=1000000",  # at validations alone
]


def rounded(x: Tensor) -> Tensor:
    """float32 to the nearest number of 10 mantissa bits, ties away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Product(torch.autograd.Function):
    """x W^T of rounded factors, and its gradients likewise."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = rounded(x), rounded(weight)
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        (x, weight), grad = ctx.saved_tensors, rounded(grad)
        return grad @ weight, grad.flatten(0, -2).T @ x.flatten(0, -2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = Product.apply(x, weight)
    return y if bias is None else y + bias


def trained(seed: int, steps: int, tf32: bool) -> tuple[float, float]:
    """Validation loss and R of its windows, after training."""
    words = [*WORDS, f"seed={seed}", f"trainer.max_steps={steps}"]
    words.append(f"trainer.val_check_interval={steps}")
    place = SimpleNamespace(linear=linear if tf32 else F.linear)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(_oscillators, "F", place):
        final = phasegpt.fit(phasegpt.compose(words), Path(folder) / "run")["final"]
    R = [value for name, value in final.items() if name.startswith("phase/val/R_end/layer")
         and name.count("/") == 3]  # fmt: skip
    return final["val/loss"], sum(R) / len(R)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    for seed in args.seeds:
        (loss, R), (loss_tf32, R_tf32) = (trained(seed, args.steps, tf32) for tf32 in (False, True))
        print(
            f"seed {seed}: val/loss {loss:.5f}, in TF32 {loss_tf32 - loss:+.5f}; "
            f"R {R:.5f}, in TF32 {R_tf32 - R:+.6f}",
            flush=True,
        )


if __name__ == "__main__":
    guarded(main)
