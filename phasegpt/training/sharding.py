"""trainer.strategy=fsdp: parameters, gradients and optimizer state split over the processes.

Every block is a unit of FSDP2 (torch.distributed.fsdp.fully_shard, arXiv 2304.11277), and what is
outside of blocks is one more: a process holds 1/N of each, and has a block whole only while it
computes it. Parameters travel in their own precision, and matrices multiply as under DDP (with
bf16-mixed by autocast), so the losses are those of DDP up to rounding; phases stay in float32.

A checkpoint is the same file as without sharding, assembled on the first process: one process, DDP
and FSDP on any number of processes go on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from phasegpt.model.gpt import GPT


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes, with checkpoints that are those of one process."""

    def __init__(self, processes: int, timeout: timedelta) -> None:
        super().__init__(processes, 1, save_distributed_checkpoint=False, timeout=timeout)

    def shard(self, model: GPT) -> None:
        """Split a model that every process has whole; the first one's weights are what counts."""
        if isinstance(model, FSDPModule):
            return
        model.to(self.root_device)
        for tensor in chain(model.parameters(), model.buffers()):
            torch.distributed.broadcast(tensor.detach(), 0)
        mesh = self.device_mesh["data_parallel"]
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """The whole weights on the CPU; empty but on the first process."""
        assert self.model is not None
        return self._whole(self.model.state_dict(keep_vars=True))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's whole state on the CPU, as one process has it; likewise."""
        return self._whole(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read a checkpoint, and take this process' part of weights and optimizer state."""
        found = self.checkpoint_io.load_checkpoint(Path(checkpoint_path))
        assert self.model is not None
        _take(self.model, found["state_dict"])
        for optimizer, state in zip(self.optimizers, found["optimizer_states"], strict=True):
            optimizer.load_state_dict(_split(optimizer, state))
        return found

    def _whole(self, state: Any) -> Any:
        """Assemble what is split, one tensor at a time; all processes take part, the first keeps.

        A tensor that two names share stays shared.
        """
        made: dict[int, Tensor] = {}

        def assembled(value: Any) -> Any:
            if isinstance(value, Tensor):
                if id(value) not in made:
                    one = whole(value).detach()
                    made[id(value)] = one.cpu() if self.is_global_zero else _NOTHING
                return made[id(value)]
            if isinstance(value, dict):
                return {key: assembled(one) for key, one in value.items()}
            if isinstance(value, list):
                return [assembled(one) for one in value]
            return value

        return assembled(state)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself; of one that is split all of it, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


_NOTHING = torch.empty(0)


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """What this process has of a tensor that is split as `like` is."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor) or whole.shape != like.shape:
        return whole
    there = whole.to(like.device, like.dtype)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def _take(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load whole weights into a module that is split."""
    own = module.state_dict(keep_vars=True)
    if own.keys() != weights.keys():
        raise RuntimeError(f"the weights are of other parameters: {own.keys() ^ weights.keys()}")
    for name, value in weights.items():
        own[name].copy_(_part(value, own[name]))


def _split(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's whole state with this process' part of every tensor."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    members = [member for group in optimizer.param_groups for member in group["params"]]
    of = dict(zip(numbers, members, strict=True))
    parts = {
        number: {
            name: _part(value, of[number]) if isinstance(value, Tensor) else value
            for name, value in one.items()
        }
        for number, one in state["state"].items()
    }
    return {**state, "state": parts}
