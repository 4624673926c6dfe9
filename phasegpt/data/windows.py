"""Windows of a token sequence: training batches as a function of (seed, k), evaluation windows.

Shapes: B batch, T time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data._draws import IGNORED, Order


class TrainBatches(Dataset):
    """Training batches: number k is a pure function of (seed, k).

    Sample i belongs to epoch e = i // windows and takes the window that stands at place
    i % windows of a permutation keyed by (seed, e). The windows of an epoch do not overlap; they
    start at an offset keyed likewise, so their borders move from epoch to epoch and each epoch
    sees each token about once. Of `world_size` processes, `rank` gets its part of batch k; the
    parts in order make the batch of one process with `world_size` times the batch size.

    `documents` are the places where documents begin: a batch then has `begins` [B,T] too, and no
    document's first token is a target.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        documents: np.ndarray | None = None,
    ) -> None:
        if len(tokens) <= block_size:
            raise DataError(
                f"the train split has {len(tokens)} tokens, too few for one window of "
                f"model.block_size={block_size} and its targets; use more text or a smaller block"
            )
        _check_documents(tokens, documents)
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.documents = documents
        # One window less than fit, so that the offset has room for every place in a block.
        self.windows = max(1, (len(tokens) - 1) // block_size - 1)
        self._slack = len(tokens) - 1 - self.windows * block_size
        self._order = Order(seed, self.windows)

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        """Batch k: idx [B,T], targets [B,T], sample [B] (the index i), all int64."""
        first = (k * self.world_size + self.rank) * self.batch_size
        sample_B = np.arange(first, first + self.batch_size, dtype=np.int64)
        offset_B = self._order.drawn(sample_B, self._slack + 1)
        start_B = offset_B + self._order[sample_B] * self.block_size
        window = self.tokens[start_B[:, None] + np.arange(self.block_size + 1)].astype(np.int64)
        batch = {
            "idx": torch.from_numpy(window[:, :-1].copy()),  # of one row too, which is contiguous
            "targets": torch.from_numpy(window[:, 1:].copy()),
            "sample": torch.from_numpy(sample_B),
        }
        if self.documents is not None:
            rows = [_begins(self.documents, int(start), self.block_size) for start in start_B]
            batch["targets"][torch.stack([begins[1:] for begins in rows])] = IGNORED
            batch["begins"] = torch.stack([begins[:-1] for begins in rows])
        return batch


def _check_documents(tokens: np.ndarray, documents: np.ndarray | None) -> None:
    """DataError for documents of one token each, in which there is nothing to predict."""
    if documents is not None and len(documents) >= len(tokens):
        raise DataError(
            f"each of the {len(documents)} documents of a split has one token, so none can be "
            f"predicted; use data.documents=false, or longer documents"
        )


def _begins(documents: np.ndarray, start: int, length: int) -> torch.Tensor:
    """Whether each of the `length` + 1 tokens from `start` on begins a document, [T+1]."""
    low, high = np.searchsorted(documents, [start, start + length + 1])
    begins = torch.zeros(length + 1, dtype=torch.bool)
    begins[torch.from_numpy(documents[low:high] - start)] = True
    return begins


def check_stride(context: int, stride: int) -> None:
    """Raise ConfigError for a stride that would leave tokens out."""
    if not 1 <= stride <= context:
        raise ConfigError(f"stride={stride} is out of range; it must be in 1..context={context}")


class EvalWindows(Dataset):
    """Windows over a whole split in which every token but the first is scored exactly once.

    A window has `context` inputs and starts `stride` after the one before; targets that an
    earlier window scored are -100. The last window is moved back so that it is full; a split of
    at most `context` tokens makes one shorter window. With `documents`, the places where they
    begin, the first token of each is not scored, and a window has `begins` [T] too.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        context: int,
        stride: int,
        documents: np.ndarray | None = None,
    ) -> None:
        if len(tokens) < 2:
            raise DataError(
                f"a split of {len(tokens)} tokens cannot be scored; it needs at least 2"
            )
        check_stride(context, stride)
        _check_documents(tokens, documents)
        self.tokens, self.stride, self.documents = tokens, stride, documents
        self.tokens_scored = len(tokens) - 1
        self.length = min(context, self.tokens_scored)

    def __len__(self) -> int:
        return 1 - (self.length - self.tokens_scored) // self.stride

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Window i: idx [T] and targets [T], int64."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        end = min(self.length + i * self.stride, self.tokens_scored)
        scored = 0 if i == 0 else self.length + (i - 1) * self.stride
        start = end - self.length
        window = torch.from_numpy(self.tokens[start : end + 1].astype(np.int64))
        targets = window[1:].clone()
        targets[: max(0, scored - start)] = IGNORED
        found = {"idx": window[:-1].clone(), "targets": targets}
        if self.documents is not None:
            begins = _begins(self.documents, start, self.length)
            targets[begins[1:]] = IGNORED
            found["begins"] = begins[:-1]
        return found
