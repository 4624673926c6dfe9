"""Whether gradients are finite, found out without waiting for the GPU at every step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Steps after which the flags are read at the latest; the batches of as many are kept.
MOST_STEPS = 32


class Failed(NamedTuple):
    """The first step whose gradient was not finite."""

    step: int
    batch: dict[str, Tensor]


class FiniteWatch:
    """Flags of the gradient norms on the device, read every few steps.

    From the first norm that is not finite on, the optimizer leaves the weights as they are (its
    found_inf, which torch's fused optimizers know), so that what failed can still be looked at.
    For other optimizers every flag is read at once.
    """

    def __init__(self, every: int) -> None:
        """Read at step 1 and multiples of `every`, where a row of metrics waits for the device."""
        self.every = every
        self._bad: Tensor | None = None
        self._seen: list[tuple[int, dict[str, Tensor], Tensor]] = []

    def see(
        self, norm: Tensor, step: int, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> Failed | None:
        """Remember the norm before the update after `step` earlier ones; what failed, if read."""
        bad = (~norm.isfinite()).float()
        self._bad = bad if self._bad is None else torch.maximum(self._bad, bad)
        self._seen.append((step, batch, self._bad))
        skips = getattr(optimizer, "_step_supports_amp_scaling", False)
        if skips:
            optimizer.grad_scale, optimizer.found_inf = None, self._bad  # type: ignore[attr-defined]
        due = step == 0 or (step + 1) % self.every == 0 or len(self._seen) >= MOST_STEPS
        return self.read() if due or not skips else None

    def read(self) -> Failed | None:
        """The first step of those not read yet whose gradient was not finite. Waits for the GPU."""
        seen, self._seen = self._seen, []
        flags = torch.stack([bad for *_, bad in seen]).tolist() if seen else []
        for (step, batch, _), flag in zip(seen, flags, strict=True):
            if flag:
                return Failed(step, batch)
        return None
