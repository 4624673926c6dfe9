"""A GPT as a program of torch.export: one graph for any batch and any length.

Shapes: B batch, T time, V words.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from phasegpt.core.eval_mode import evaluating
from phasegpt.model.exported import contents
from phasegpt.model.gpt import GPT
from phasegpt.model.loaded import Loaded


class _Logits(nn.Module):
    """Token ids[B,T] to logits[B,T,V]: a tensor, which a saved program can return."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, idx_BT: Tensor) -> Tensor:
        return self.gpt(idx_BT).logits


def program(model: GPT) -> ExportedProgram:
    """Token ids[B,T], int64, to logits[B,T,V], for any B and any T up to the block size.

    In eval mode, on the model's device, without a decode cache. A phase layer is in it as the
    operator `phasegpt::rows` or `phasegpt::scan`, where the kernels can integrate it: a process
    that loads a saved program imports phasegpt.ops first.
    """
    longest = model.config.block_size
    example = torch.zeros(2, min(8, longest), dtype=torch.int64, device=model.lm_head.weight.device)
    batch = Dim("batch", min=1)
    time = Dim("time", min=1, max=longest) if longest > 1 else None
    with evaluating(model):
        return torch.export.export(
            _Logits(model), (example,), dynamic_shapes={"idx_BT": {0: batch, 1: time}}
        )


def program_contents(loaded: Loaded) -> dict[str, bytes]:
    """The files of a folder with the program, by name, but for SHA256SUMS."""
    buffer = io.BytesIO()
    torch.export.save(program(loaded.model), buffer)
    files = contents(loaded)
    del files["model.safetensors"]
    return {**files, "model.pt2": buffer.getvalue()}
