"""Whether gradients are finite, known one step late, so that no step waits for the GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from phasegpt.training.late import Late


class Failed(NamedTuple):
    """A step whose gradient was not finite."""

    step: int
    batch: dict[str, Tensor]


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it leaves everything as it is where found_inf says so: torch's fused ones do.

    A group that was loaded from a checkpoint may have lost `fused`.
    """
    fused = all(group.get("fused", True) for group in optimizer.param_groups)
    return fused and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def restorer(scheduler: LRScheduler) -> Callable[[], None]:
    """What puts a schedule and its optimizer's groups back to where they are now."""
    groups = scheduler.optimizer.param_groups
    kept = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    state, kept = copy.deepcopy((scheduler.state_dict(), kept))

    def restore() -> None:
        scheduler.load_state_dict(state)
        for group, values in zip(groups, kept, strict=True):
            group.update(values)

    return restore


class FiniteWatch:
    """The flag of the last gradient norm, on its way to the host, and how many were bad.

    An optimizer that skips_on_device is given the flag, and the host reads it when the next step
    asks. Others must be told before they step, and all at the first step, which makes their state.
    """

    def __init__(self, allowed: int) -> None:
        """Nothing seen yet; `allowed` is how many in a row may be bad."""
        self.allowed, self.skipped, self.in_a_row = allowed, 0, 0
        #: Whether the last one that was read was bad, until the next is seen.
        self.skipping = False
        self._last: Failed | None = None  # if its flag says so
        self._flag = Late()
        self._made = False  # whether a step was

    def see(
        self, norm: Tensor, step: int, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> bool:
        """Remember the norm before the update after `step` earlier ones, the last one read.

        True: read it before the optimizer steps, and leave that out if it was bad.
        """
        self.skipping = False
        bad = (~norm.isfinite()).float()
        self._flag.send(bad)
        self._last = Failed(step, batch)
        if skips_on_device(optimizer):
            optimizer.grad_scale, optimizer.found_inf = None, bad  # type: ignore[attr-defined]
            return not self._made
        return True

    def read(self) -> Failed | None:
        """The last step, unless it was read before or its gradient was finite; counts it."""
        last, self._last = self._last, None
        if last is None:
            return None
        self.skipping = bool(self._flag.read())
        if not self.skipping:
            self.in_a_row, self._made = 0, True
            return None
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        return last
