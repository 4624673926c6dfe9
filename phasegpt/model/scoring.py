"""How well a model predicts a text: one definition of loss, for validation and for evaluation.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from phasegpt.core.allocator import keep_freed_memory
from phasegpt.core.errors import ConfigError
from phasegpt.core.eval_mode import inference
from phasegpt.data.corpus import Corpus
from phasegpt.data.task_batches import ScoredBatches
from phasegpt.data.tasks import Task
from phasegpt.data.tokenizers import Tokenizer
from phasegpt.data.windows import IGNORED, EvalWindows, check_stride
from phasegpt.model import documents
from phasegpt.model.gpt import GPT

#: A token with more others before it in its window is also scored apart.
LATE = 64

#: What one token is, by the tokenizer's name.
UNITS = {
    **{"char": "character", "byte": "byte"},
    **{"gpt2": "BPE token", "bpe": "BPE token", "hf": "token", "symbols": "scored token"},
}


def nats(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the scored targets in nats (float64), and their number (int64).

    Targets of IGNORED are not scored. The sum is taken in float64. Differentiable.
    """
    return token_nats(logits_BTV, targets_BT).double().sum(), (targets_BT != IGNORED).sum()


def token_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy of every target in nats, [B,T], in float32 at least; 0 where IGNORED."""
    logits = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32)).flatten(0, -2)
    losses = F.cross_entropy(logits, targets_BT.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(targets_BT.shape)


def perplexity(total_nats: float, units: float) -> float:
    """exp(nats / units), at most e^709, where floats end: records stay finite."""
    return math.exp(min(total_nats / units, 709.0))


class Tally:
    """What a model scores on rows of a generated task, by load (such as a length)."""

    def __init__(self) -> None:
        """Nothing scored yet."""
        self._sums: dict[int, Tensor] = {}  # what `sums` names: float64 [5]

    def add(self, logits_MV: Tensor, targets_BT: Tensor, load: int) -> None:
        """Rows of one load; the logits are of their M scored positions, row by row."""
        scored_BT = targets_BT != IGNORED
        targets_M, row_M = targets_BT[scored_BT], scored_BT.nonzero()[:, 0]
        total, count = nats(logits_MV, targets_M)
        right_M = logits_MV.argmax(-1) == targets_M
        wrong_B = torch.zeros(len(targets_BT), dtype=torch.int64, device=targets_M.device)
        wrong_B.index_add_(0, row_M, (~right_M).long())
        asked_B = scored_BT.any(1)
        exact = (asked_B & (wrong_B == 0)).sum()
        found = torch.stack([total.detach(), count, right_M.sum(), asked_B.sum(), exact])
        self._sums[load] = self._sums[load] + found if load in self._sums else found

    def sums(self) -> dict[int, list[float]]:
        """By load: nats, scored tokens, right ones, rows with some, rows that are right in all."""
        return {load: found.tolist() for load, found in self._sums.items()}

    @staticmethod
    def scores(sums: Mapping[int, Sequence[float]], trained: int) -> dict[str, float]:
        """loss (nats per scored token), ppl, accuracy and exact of the loads up to `trained`.

        `accuracy` is the share of scored tokens that are right, `exact` that of rows in which all
        are. Of several loads accuracy/LOAD and exact/LOAD of each too, and accuracy/beyond and
        exact/beyond, the mean over those above.
        """
        within = [found for load, found in sums.items() if load <= trained]
        total, count, right, rows, whole = (sum(column) for column in zip(*within, strict=True))
        scores = {"loss": total / count, "ppl": perplexity(total, count)}
        each = {
            "accuracy": {load: found[2] / found[1] for load, found in sums.items()},
            "exact": {load: found[4] / found[3] for load, found in sums.items()},
        }
        for name, value in (("accuracy", right / count), ("exact", whole / rows)):
            scores[name] = value
            if len(sums) > 1:
                scores |= {f"{name}/{load}": share for load, share in each[name].items()}
            beyond = [share for load, share in each[name].items() if load > trained]
            scores |= {f"{name}/beyond": sum(beyond) / len(beyond)} if beyond else {}
        return scores


def score_task(
    model: GPT,
    task: Task,
    split: str,
    *,
    batch_size: int,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    """What Tally.scores says of val or test of a generated task, as a run validates it.

    Raises ConfigError for another split and for examples that do not fit the model.
    """
    loads = task.config.loads_with(model.config.extrapolates)
    longest = max(map(task.config.time, loads))
    if longest > model.config.block_size:
        raise ConfigError(
            f"data={task.config.corpus} has examples of {longest} tokens; the model attends "
            f"to {model.config.block_size} (its block_size)"
        )
    if device is not None:
        model.to(device)
    device, tally = next(model.parameters()).device, Tally()
    for batch in ScoredBatches(task, split, batch_size, loads):
        idx_BT, targets_BT = batch["idx"].to(device), batch["targets"].to(device)
        only_BT = targets_BT != IGNORED
        with inference(model):
            logits_MV = model(idx_BT, only_BT=only_BT).logits
        tally.add(logits_MV, targets_BT, int(batch["load"]))
    return Tally.scores(tally.sums(), trained=task.config.trained)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model scored on a split: totals, and the usual ratios of them.

    Every token but the first, of the split or of each document, is scored once, in windows of
    `context` tokens that advance by `stride`. `floor_nats` is -log p of the text under the source
    that wrote it, where that is known: a causal model beats it by x nats with probability below
    e^-x.
    """

    nats: float
    tokens: int
    bytes: int  # UTF-8 bytes of the scored tokens
    words: int | None  # between white space; None if the split has none, or is documents
    context: int
    stride: int
    floor_nats: float | None = None
    late_nats: float = 0.0  # of tokens with more than LATE others before them in their window
    late_bytes: int = 0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def ppl(self) -> float:
        """Perplexity per token, exp(loss)."""
        return perplexity(self.nats, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 bytes): compares across tokenizers."""
        return self.nats / math.log(2) / self.bytes

    @property
    def late_bits_per_byte(self) -> float | None:
        """The same of tokens with more than LATE others before them; None where there are none."""
        return self.late_nats / math.log(2) / self.late_bytes if self.late_bytes else None

    @property
    def word_ppl(self) -> float | None:
        """exp(nats / words), None where words are not defined."""
        return perplexity(self.nats, self.words) if self.words else None

    @property
    def floor_loss(self) -> float | None:
        """The source's nats per token."""
        return None if self.floor_nats is None else self.floor_nats / self.tokens

    @property
    def floor_ppl(self) -> float | None:
        """The source's perplexity per token."""
        return None if self.floor_nats is None else perplexity(self.floor_nats, self.tokens)


def score(
    model: GPT,
    corpus: Corpus,
    split: str,
    *,
    context: int,
    stride: int,
    batch_size: int,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Score:
    """Score a split; the same numbers every time.

    The model is moved to `device` (None: where it is), runs in eval mode without gradients, and
    gets its modes back. `progress` shows a bar on a terminal. Raises ConfigError for a split
    that does not exist, a context beyond the model's block_size, a stride beyond the context.
    """
    check_windows(model, context=context, stride=stride)
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be >= 1")
    keep_freed_memory()
    tokens_T = corpus.split(split)
    begins = corpus.documents.get(split)
    windows = EvalWindows(tokens_T, context=context, stride=stride, documents=begins)
    if device is not None:
        model.to(device)
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    scored = torch.zeros((), dtype=torch.int64, device=device)
    late_nats, late_bytes = torch.zeros_like(total), torch.zeros_like(scored)
    bytes_V = bytes_by_token(corpus.tokenizer).to(device)
    for logits_BTV, targets_BT in _predictions(model, windows, batch_size, progress):
        nats_BT, scored_BT = token_nats(logits_BTV, targets_BT).double(), targets_BT != IGNORED
        total, scored = total + nats_BT.sum(), scored + scored_BT.sum()
        if begins is None:  # a window holds one text, so that a place in it is a context
            bytes_BT = bytes_V[targets_BT * scored_BT] * scored_BT
            late_nats = late_nats + nats_BT[:, LATE:].sum()
            late_bytes = late_bytes + bytes_BT[:, LATE:].sum()
    meta = corpus.meta["splits"][split]
    scored_T = np.delete(tokens_T, 0 if begins is None else begins)
    return Score(
        nats=total.item(),
        tokens=int(scored),
        bytes=byte_length(corpus, scored_T),
        words=None if begins is not None else meta["words"] or None,
        context=context,
        stride=stride,
        floor_nats=meta["floor_nats"],
        late_nats=late_nats.item(),
        late_bytes=int(late_bytes),
    )


def losses(model: GPT, tokens_T: np.ndarray, *, context: int, batch_size: int = 16) -> Tensor:
    """Nats of every token but the first, [T-1], as `score` counts them with stride = context."""
    check_windows(model, context=context, stride=context)
    windows = EvalWindows(tokens_T, context=context, stride=context)
    found = [
        token_nats(logits_BTV, targets_BT)[targets_BT != IGNORED].cpu()
        for logits_BTV, targets_BT in _predictions(model, windows, batch_size, True)
    ]
    return torch.cat(found)


def _predictions(
    model: GPT, windows: EvalWindows, batch_size: int, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets of the windows, batch by batch, in evaluation mode."""
    device = next(model.parameters()).device
    count = len(windows)
    batches = range(0, count, batch_size)
    for first in tqdm(batches, disable=None if progress else True, leave=False, unit="batch"):
        rows = [windows[i] for i in range(first, min(first + batch_size, count))]
        idx_BT = torch.stack([row["idx"] for row in rows]).to(device)
        targets_BT = torch.stack([row["targets"] for row in rows]).to(device)
        with inference(model):
            if "begins" in rows[0]:
                begins_BT = torch.stack([row["begins"] for row in rows])
                logits_BTV = documents.forward(model, idx_BT, begins_BT).logits
            else:
                logits_BTV = model(idx_BT).logits
        yield logits_BTV, targets_BT


def check_windows(model: GPT, *, context: int, stride: int) -> None:
    """Raise ConfigError for windows that `model` cannot score."""
    if not 1 <= context <= model.config.block_size:
        raise ConfigError(
            f"context={context} is out of range; the model attends to 1..{model.config.block_size}"
            f" tokens (its block_size)"
        )
    check_stride(context, stride)


def bytes_by_token(tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes of every token of a vocabulary, [V] int64: to sum over targets as they come."""
    return torch.tensor([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])


def byte_length(corpus: Corpus, tokens_T: np.ndarray) -> int:
    """UTF-8 bytes of tokens."""
    ids, counts = np.unique(tokens_T, return_counts=True)
    token_bytes = corpus.tokenizer.token_bytes
    return sum(len(token_bytes(int(token))) * int(n) for token, n in zip(ids, counts, strict=True))
