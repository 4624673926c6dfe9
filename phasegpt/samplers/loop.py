"""The one decoding loop: any chain, any number of rows, each with its own random stream.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from phasegpt.errors import ConfigError, UserError
from phasegpt.inference import inference
from phasegpt.samplers.chain import Processor

if TYPE_CHECKING:
    from phasegpt.model import GPT

#: Share of the context that is kept when it is full and its window moves on.
KEEP = 0.75


def decode(
    model: GPT,
    ids_BT: Tensor,
    *,
    max_new_tokens: int,
    seeds: Sequence[int],
    chain: Sequence[Processor] = (),
    stop_ids: Collection[int] = (),
    on_tokens: Callable[[list[int]], None] | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue each row of ids_BT by up to `max_new_tokens` sampled tokens; returns ids[B,T+n].

    Each step maps the last float32 logits through `chain` in order and draws one token per row
    from their softmax. Row i draws from its own CPU generator seeded with seeds[i], so it equals
    that row decoded alone, and the device does not change the stream; torch's global generator
    is not touched. A row that draws one of `stop_ids` repeats it from there; when all rows have,
    decoding ends. `on_tokens` gets the B new ids of every step.

    The model sees at most block_size tokens. When one more would not fit, the window restarts at
    the last KEEP block_size tokens (a longer prompt likewise), with the cache and without.
    `use_cache=False` recomputes the window for every token: the only way for models that see the
    future. Raises ConfigError, and UserError when there is no finite probability to draw from.
    """
    batch, length = _checked(model, ids_BT, max_new_tokens, seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    block_size, device = model.config.block_size, next(model.parameters()).device
    out_BT = torch.empty(batch, length + max_new_tokens, dtype=torch.int64, device=device)
    out_BT[:, :length] = ids_BT
    stopped: list[int | None] = [None] * batch
    start, cache = 0, None
    with inference(model):
        for _ in range(max_new_tokens):
            if length - start > block_size:
                start, cache = length - max(1, int(KEEP * block_size)), None
            if not use_cache or cache is None:
                fresh_BT = out_BT[:, start:length]
                cache = model.new_cache() if use_cache else None
            else:
                fresh_BT = out_BT[:, length - 1 : length]
            # forward, not __call__: a compiled model would compile again for every length.
            logits_BV = model.forward(fresh_BT, cache=cache).logits[:, -1].float()
            for process in chain:
                logits_BV = process(out_BT[:, :length], logits_BV)
            drawn = _draw(logits_BV, generators).tolist()
            drawn = [new if old is None else old for new, old in zip(drawn, stopped, strict=True)]
            stopped = [token if token in stop_ids else None for token in drawn]
            out_BT[:, length] = torch.tensor(drawn, device=device)
            length += 1
            if on_tokens is not None:
                on_tokens(drawn)
            if None not in stopped:
                break
    return out_BT[:, :length].to(ids_BT.device)


def _draw(logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One id per row from softmax(logits), by a race of exponential clocks with rates p.

    The same draw as torch.multinomial(p, 1) on the CPU, for any device.
    """
    clocks = [torch.empty(logits_BV.shape[-1]).exponential_(generator=g) for g in generators]
    speed_BV = logits_BV.softmax(dim=-1) / torch.stack(clocks).to(logits_BV.device)
    first, ids = speed_BV.max(dim=-1)
    if first.isnan().any():
        raise UserError(
            "no token can be drawn: the model's logits are not finite, or the chain removed "
            "every token"
        )
    return ids


def _checked(
    model: GPT, ids_BT: Tensor, max_new_tokens: int, seeds: Sequence[int]
) -> tuple[int, int]:
    """B and T; ConfigError for what cannot be decoded."""
    if ids_BT.ndim != 2 or 0 in ids_BT.shape:
        raise ConfigError(
            f"ids have shape {list(ids_BT.shape)}; they must be [B,T] with at least one row and "
            f"one token to continue"
        )
    if len(seeds) != len(ids_BT):
        raise ConfigError(f"{len(seeds)} seeds for {len(ids_BT)} rows; give one seed per row")
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens={max_new_tokens} is out of range; it must be >= 0")
    low, high = int(ids_BT.min()), int(ids_BT.max())
    if low < 0 or high >= model.config.vocab_size:
        raise ConfigError(
            f"token {low if low < 0 else high} is outside the model's vocabulary "
            f"0..{model.config.vocab_size - 1}"
        )
    return ids_BT.shape[0], ids_BT.shape[1]
