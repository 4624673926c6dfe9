"""A number that the device has computed, read by the host without a wait for later work."""

from __future__ import annotations

import torch
from torch import Tensor


class Late:
    """One number on its way to the host: sent in one step, read in the next."""

    def __init__(self) -> None:
        """Nothing sent yet."""
        self._sent: Tensor | None = None
        self._ready: torch.cuda.Event | None = None
        self._pinned: Tensor | None = None

    def send(self, value: Tensor) -> None:
        """Start the copy of a number, [], in place of the one before."""
        self._sent = value
        if value.is_cuda:
            if self._pinned is None:
                self._pinned = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._sent, self._ready = self._pinned, torch.cuda.Event()
            self._pinned.copy_(value, non_blocking=True)
            self._ready.record()

    def read(self) -> float | None:
        """What was sent last, waiting for it and for nothing queued after it; None if read."""
        if self._sent is None:
            return None
        if self._ready is not None and not self._ready.query():
            self._ready.synchronize()
        value, self._sent = float(self._sent.numpy()), None
        return value
