"""The least likely tokens: what negative temperatures prefer, and what is odd about it.

The folklore to be measured and not assumed: such tokens were rarely seen in training, lie near the
centroid of the embedding, and cannot be repeated by the model.

Shapes: B batch, T time, D model width, V vocabulary.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.core.eval_mode import inference
from phasegpt.data.tokenizers import Tokenizer
from phasegpt.model.gpt import GPT

_AT_ONCE = 1 << 23  # logits of one batch
_SHOWN = 12  # tokens in the text for a person


class TokenRow(NamedTuple):
    """One token; shares and probabilities are means over the positions."""

    token: int
    text: str
    least_likely: float  # share of positions at which it is the least likely: drawn at T = -0
    inverse: float  # probability at T = -1
    probability: float  # at T = 1
    logit: float  # mean, counted from the mean of each position's logits
    train_count: int | None  # None: not known
    centroid_distance: float  # of its embedding from the mean embedding, Euclidean
    centroid_rank: int  # 1: the nearest
    repeat_rank: int  # of the token where it should be repeated; 1: the likeliest there
    repeat_probability: float


def anomalous_tokens(
    model: GPT,
    ids_BT: Tensor,
    tokenizer: Tokenizer,
    *,
    repeat: str,
    counts_V: np.ndarray | None = None,
    rows: int = 100,
) -> dict[str, Any]:
    """The `rows` tokens that T = -1 draws most on the texts ids_BT, and what they have in common.

    `repeat` is a text with {token} in it, at whose end the token should follow again; counts_V
    are each token's occurrences in training. The result is {summary, tokens}, JSON-ready: the
    summary has the correlation over all tokens of `logit` with ln(1 + train_count) and with
    centroid_distance (None where one of them is constant or unknown), the median over positions
    of the gap between the lowest and the second lowest logit, and the share of positions where
    they are equal in float32. Raises ConfigError.
    """
    V = tokenizer.vocab_size
    positions, sums, gaps = _over_positions(model, ids_BT, V)
    least_V, inverse_V, probability_V, logit_V = (sums / positions).tolist()
    with torch.no_grad():
        embedding_VD = model.get_parameter("transformer.wte.weight")[:V].double().cpu()
        distance_V = (embedding_VD - embedding_VD.mean(dim=0)).norm(dim=-1)
    rank_V = _ranks(distance_V)
    chosen = sorted(range(V), key=lambda i: (-least_V[i], -inverse_V[i], i))[:rows]
    repeated = repeat_probe(model, chosen, _pieces(repeat, tokenizer), V)
    table = [
        TokenRow(
            token=i,
            text=tokenizer.decode([i]),
            least_likely=least_V[i],
            inverse=inverse_V[i],
            probability=probability_V[i],
            logit=logit_V[i],
            train_count=None if counts_V is None else int(counts_V[i]),
            centroid_distance=float(distance_V[i]),
            centroid_rank=int(rank_V[i]),
            repeat_rank=rank,
            repeat_probability=probability,
        )
        for i, (rank, probability) in zip(chosen, repeated, strict=True)
    ]
    log_counts = None if counts_V is None else np.log1p(counts_V)
    summary = {
        "positions": positions,
        "vocabulary": V,
        "correlation_logit_log_count": _correlation(logit_V, log_counts),
        "correlation_logit_distance": _correlation(logit_V, distance_V.numpy()),
        "median_gap_to_second_lowest": float(gaps.median()),
        "tied_lowest": float((gaps == 0).double().mean()),
    }
    return {"summary": summary, "tokens": [row._asdict() for row in table]}


def repeat_probe(
    model: GPT, tokens: Sequence[int], pieces: Sequence[Sequence[int]], vocabulary: int
) -> list[tuple[int, float]]:
    """Rank (1: the likeliest of the vocabulary) and probability of each token where it should be
    repeated.

    The prompt is the pieces with the token between them, its end where it is too long.
    """
    device, block_size = next(model.parameters()).device, model.config.block_size
    found = []
    with inference(model):
        for token in tokens:
            prompt = list(pieces[0])
            for piece in pieces[1:]:
                prompt += [token, *piece]
            ids_BT = torch.tensor([prompt[-block_size:]], device=device)
            z_V = model(ids_BT).logits[0, -1, :vocabulary].float()
            rank = 1 + int((z_V > z_V[token]).sum())
            found.append((rank, float(z_V.softmax(-1)[token])))
    return found


def to_csv(result: dict[str, Any]) -> str:
    """The tokens as CSV; texts as Python literals, so that every one is visible on one line."""
    out = io.StringIO()
    writer = csv.DictWriter(out, TokenRow._fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "text": ascii(row["text"])} for row in result["tokens"])
    return out.getvalue()


def as_text(result: dict[str, Any]) -> str:
    """The summary and the first tokens for a person to read."""
    summary, tokens = result["summary"], result["tokens"]
    lines = [
        f"{'token':>16}{'lowest':>9}{'T=-1':>9}{'T=1':>10}{'in train':>10}{'distance rank':>15}"
        f"{'repeat rank':>13}"
    ]
    for row in tokens[:_SHOWN]:
        count = "-" if row["train_count"] is None else f"{row['train_count']:,}"
        lines.append(
            f"{row['text']!a:>16}{row['least_likely']:>9.3f}{row['inverse']:>9.3f}"
            f"{row['probability']:>10.2g}{count:>10}"
            f"{row['centroid_rank']:>9} of {summary['vocabulary']:<4}{row['repeat_rank']:>10}"
        )
    by_count, by_distance = (
        "-" if value is None else f"{value:+.2f}"
        for value in (
            summary["correlation_logit_log_count"],
            summary["correlation_logit_distance"],
        )
    )
    return "\n".join(
        [
            *lines,
            "",
            f"mean logit against ln(1 + count in training): r = {by_count}; against the distance "
            f"to the centroid: r = {by_distance}",
            f"gap of the lowest two logits: median {summary['median_gap_to_second_lowest']:.3g}, "
            f"none at {summary['tied_lowest']:.1%} of {summary['positions']:,} positions",
        ]
    )


def _over_positions(model: GPT, ids_BT: Tensor, V: int) -> tuple[int, Tensor, Tensor]:
    """Positions; sums [4,V] of being lowest, p at -1, p at 1, centred logit; gaps of the lowest."""
    device = next(model.parameters()).device
    sums = torch.zeros(4, V, dtype=torch.float64)
    gaps = []
    with inference(model):
        for rows in ids_BT.split(max(1, _AT_ONCE // (ids_BT.shape[1] * V))):
            z_NV = model(rows.to(device)).logits[..., :V].float().flatten(0, 1).cpu()
            two = z_NV.topk(2, dim=-1, largest=False).values
            gaps.append(two[:, 1] - two[:, 0])
            sums[0] += torch.bincount(z_NV.argmin(-1), minlength=V)
            sums[1] += (-z_NV).softmax(-1).sum(0)
            sums[2] += z_NV.softmax(-1).sum(0)
            sums[3] += (z_NV - z_NV.mean(-1, keepdim=True)).sum(0)
    found = torch.cat(gaps)
    return len(found), sums, found


def _pieces(repeat: str, tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of the text around {token}."""
    texts = repeat.split("{token}")
    if len(texts) < 2:
        raise ConfigError(f"repeat={repeat!r} must have {{token}} in it, and end where it follows")
    try:
        return [tokenizer.encode(text).tolist() for text in texts]
    except DataError as error:
        raise ConfigError(f"repeat={repeat!r} cannot be used: {error}") from error


def _ranks(values: Tensor) -> Tensor:
    """Rank of every value, 1 for the smallest; equal ones in their order."""
    ranks = torch.empty(len(values), dtype=torch.int64)
    ranks[values.argsort(stable=True)] = torch.arange(1, len(values) + 1)
    return ranks


def _correlation(x: Sequence[float], y: np.ndarray | None) -> float | None:
    """Pearson's r; None where it is not defined."""
    if y is None or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
