"""The one decoding loop: any model, any chain, any number of rows, each with its own stream.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError, UserError
from phasegpt.core.eval_mode import inference
from phasegpt.core.randomness import global_state, keyed_generator
from phasegpt.model.gpt import GPT
from phasegpt.samplers.intervene import Intervention, Memory
from phasegpt.samplers.models import Decoder, decoder
from phasegpt.samplers.processor import Processor
from phasegpt.samplers.stopping import Stop

#: Share of the context that is kept when it is full and its window moves on.
KEEP = 0.75


class Streamer(Protocol):
    """Hugging Face's streamers: `put` gets the prompt, then the B new ids of every step."""

    def put(self, value: Tensor) -> None:
        """[B,T] first, then [B]."""
        ...

    def end(self) -> None:
        """Nothing more will come."""
        ...


def decode(
    model: Any,
    ids_BT: Tensor,
    *,
    max_new_tokens: int,
    seeds: Sequence[int] | None,
    chain: Sequence[Processor] = (),
    greedy: bool = False,
    intervention: Intervention | None = None,
    attention_mask: Tensor | None = None,
    stop_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    tokenizer: Any = None,
    stopping: Sequence[Callable[[Tensor, None], Tensor]] = (),
    pad_id: int | None = None,
    streamer: Streamer | None = None,
    on_tokens: Callable[[list[int]], None] | None = None,
    use_cache: bool = True,
    past_key_values: Any = None,
) -> Tensor:
    """Continue each row of ids_BT by up to `max_new_tokens` tokens; returns ids[B,T+n].

    `model` is a GPT of ours or a Hugging Face causal model. Each step maps the last float32
    logits through `chain` in order and draws one token per row from their softmax (`greedy`: takes
    the largest). Row i draws from its own CPU generator seeded with seeds[i], so it equals that
    row decoded alone, and the device does not change the stream; torch's global generator is not
    touched. seeds=None draws as Hugging Face does, all rows from torch's global generator.

    `attention_mask` [B,T] is 0 on left padding. A row ends with one of `stop_ids`, when one of
    `stop_strings` is in its new text (decoded by `tokenizer`), or when one of `stopping`, called
    as Hugging Face's criteria (ids, None) -> bool[B], says so. From there it gets `pad_id`, or
    repeats its last token; when all rows have ended, decoding does. `on_tokens` gets the B new ids
    of every step, `streamer` the prompt, every step and the end. `intervention` edits the memory;
    its random streams are its own.

    A GPT of ours sees at most block_size tokens: when one more would not fit, the window restarts
    at the last KEEP block_size tokens (a longer prompt likewise), with the cache and without.
    Hugging Face's stop at their context, which is an error told beforehand. `use_cache=False`
    recomputes the window for every token: the only way for models that see the future.
    `past_key_values` is an empty cache for a Hugging Face model that should not use its usual one.

    Raises ConfigError, and UserError when there is no finite probability to draw from.
    """
    with ExitStack() as stack:
        if streamer is not None:
            stack.callback(streamer.end)  # whoever waits for it is released by an error too
        decoding = decoder(model, past_key_values)
        pads = _checked(decoding, ids_BT, max_new_tokens, seeds, attention_mask)
        seeds = None if seeds is None else [int(seed) for seed in seeds]
        strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        stop = Stop(frozenset(stop_ids), strings, tokenizer, tuple(stopping))
        acting = intervention if intervention is not None and intervention.active else None
        if acting is not None and not use_cache:
            raise ConfigError(
                "an intervention edits the decode cache, so it cannot act with use_cache=False "
                "(nor on a model that sees the future)"
            )
        job = _Job(
            decoding, max_new_tokens, chain, greedy, acting, stop, pad_id, streamer, on_tokens,
            use_cache,
        )  # fmt: skip
        if acting is not None:
            stack.callback(acting.stop)
            acting.start(decoding)
        stack.enter_context(inference(decoding.module))
        if streamer is not None:
            streamer.put(ids_BT.cpu())
        if isinstance(model, GPT) and any(pads):
            out_BT = _by_length(job, ids_BT, pads, seeds)
        else:
            out_BT = job.run(range(len(pads)), ids_BT, pads, attention_mask, seeds)
    return out_BT.clone()  # made outside of inference mode, so that gradients may follow


@dataclass(frozen=True)
class _Job:
    """What is the same for every group of rows."""

    decoding: Decoder
    max_new_tokens: int
    chain: Sequence[Processor]
    greedy: bool
    acting: Intervention | None
    stop: Stop
    pad_id: int | None
    streamer: Streamer | None
    on_tokens: Callable[[list[int]], None] | None
    use_cache: bool

    def run(
        self,
        rows: Sequence[int],
        ids_BT: Tensor,
        pads: Sequence[int],
        mask_BT: Tensor | None,
        seeds: Sequence[int] | None,
    ) -> Tensor:
        """decode() for the rows `rows` of the batch."""
        batch, prompt = ids_BT.shape
        total = prompt + self.max_new_tokens
        device = next(self.decoding.module.parameters()).device
        out_BT = torch.empty(batch, total, dtype=torch.int64, device=device)
        out_BT[:, :prompt] = ids_BT
        if mask_BT is not None:
            mask_BT = torch.cat((mask_BT.to(device), mask_BT.new_ones(
                batch, self.max_new_tokens, device=device)), dim=1)  # fmt: skip
        tokens = None if seeds is None else [torch.Generator().manual_seed(s) for s in seeds]
        if seeds is None:
            state = global_state(device)
            slips = [keyed_generator("slip", state, row) for row in rows]
        else:
            slips = [keyed_generator("slip", seed) for seed in seeds]
        slides = isinstance(self.decoding.module, GPT)
        done, length, start, cache = [False] * batch, prompt, 0, None
        with ExitStack() as stack:
            for _ in range(self.max_new_tokens):
                if slides and length - start > (self.decoding.context or length):
                    start, cache = length - max(1, int(KEEP * (self.decoding.context or 1))), None
                seen = None if mask_BT is None else mask_BT[:, start:length]
                if cache is None:
                    logits_BV, cache = self.decoding.read(
                        out_BT[:, start:length], seen, self.use_cache
                    )
                    if self.acting is not None:
                        cache = self.decoding.editable(cache)
                        shown = max(0, prompt - start)
                        self.acting.watch(Memory(cache, rows, pads, shown, slips))
                        stack.enter_context(self.decoding.expanding(cache))
                else:
                    if self.acting is not None:
                        self.acting.before()
                    logits_BV = self.decoding.step(out_BT[:, length - 1 : length], seen, cache)
                    if self.acting is not None:
                        logits_BV = self.acting.after(logits_BV, out_BT[:, :length], done)
                for process in self.chain:
                    logits_BV = process(out_BT[:, :length], logits_BV)
                drawn_B = self._draw(logits_BV, tokens)
                if any(done):
                    ended = torch.tensor(done, device=device)
                    after_B = out_BT[:, length - 1] if self.pad_id is None else self.pad_id
                    drawn_B = torch.where(ended, after_B, drawn_B)
                out_BT[:, length] = drawn_B
                length += 1
                ends = self.stop(out_BT[:, :length], prompt)
                done = [old or new for old, new in zip(done, ends, strict=True)]
                if self.on_tokens is not None:
                    self.on_tokens(drawn_B.tolist())
                if self.streamer is not None:
                    self.streamer.put(drawn_B.cpu())
                if all(done):
                    break
        return out_BT[:, :length].to(ids_BT.device)

    def _draw(self, logits_BV: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
        """One id per row from softmax(logits), by a race of exponential clocks with rates p.

        The same draw as torch.multinomial(p, 1) on the CPU, for any device.
        """
        if self.greedy:
            best, ids = logits_BV.max(dim=-1)
            bad = ~best.isfinite()
        elif generators is None:
            probs_BV = logits_BV.softmax(dim=-1)
            bad = probs_BV.sum(dim=-1).isnan()
            if not bad.any():
                ids = torch.multinomial(probs_BV, num_samples=1).squeeze(1)
        else:
            V = logits_BV.shape[-1]
            clocks = [torch.empty(V).exponential_(generator=g) for g in generators]
            speed_BV = logits_BV.softmax(dim=-1) / torch.stack(clocks).to(logits_BV.device)
            first, ids = speed_BV.max(dim=-1)
            bad = first.isnan()
        if bad.any():
            raise UserError(
                "no token can be drawn: the model's logits are not finite, or the chain removed "
                "every token"
            )
        return ids


def _by_length(
    job: _Job, ids_BT: Tensor, pads: Sequence[int], seeds: Sequence[int] | None
) -> Tensor:
    """Rows of unequal length, for models that know no padding: one batch per length."""
    if job.streamer is not None or job.on_tokens is not None:
        raise ConfigError(
            "rows of unequal length are decoded one length after the other with this model, so "
            "they cannot be streamed; stream rows of one length"
        )
    results: list[Tensor] = [ids_BT[0]] * len(pads)
    for pad in sorted(set(pads)):
        rows = [i for i, p in enumerate(pads) if p == pad]
        given = None if seeds is None else [seeds[i] for i in rows]
        out_BT = job.run(rows, ids_BT[rows, pad:], [0] * len(rows), None, given)
        for i, row in zip(rows, out_BT, strict=True):
            results[i] = torch.cat((ids_BT[i, :pad], row))
    length = max(map(len, results))
    for i, row in enumerate(results):
        fill = row[-1:] if job.pad_id is None else row.new_tensor([job.pad_id])
        results[i] = torch.cat((row, fill.expand(length - len(row))))
    return torch.stack(results)


def _checked(
    decoding: Decoder,
    ids_BT: Tensor,
    max_new_tokens: int,
    seeds: Sequence[int] | None,
    mask_BT: Tensor | None,
) -> list[int]:
    """The left padding of every row; ConfigError for what cannot be decoded."""
    if ids_BT.ndim != 2 or 0 in ids_BT.shape:
        raise ConfigError(
            f"ids have shape {list(ids_BT.shape)}; they must be [B,T] with at least one row and "
            f"one token to continue"
        )
    if seeds is not None:
        listed = isinstance(seeds, Sequence)
        if not listed or any(not isinstance(s, Integral) or not 0 <= s < 2**64 for s in seeds):
            raise ConfigError(f"seeds={seeds!r} must be a list of whole numbers in 0..2^64 - 1")
        if len(seeds) != len(ids_BT):
            raise ConfigError(f"{len(seeds)} seeds for {len(ids_BT)} rows; give one seed per row")
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens={max_new_tokens} is out of range; it must be >= 0")
    low, high = int(ids_BT.min()), int(ids_BT.max())
    if low < 0 or high >= decoding.vocab_size:
        raise ConfigError(
            f"token {low if low < 0 else high} is outside the model's vocabulary "
            f"0..{decoding.vocab_size - 1}"
        )
    pads = [0] * len(ids_BT)
    if mask_BT is not None:
        if mask_BT.shape != ids_BT.shape:
            raise ConfigError(
                f"attention_mask has shape {list(mask_BT.shape)}, ids {list(ids_BT.shape)}; they "
                f"must be equal"
            )
        if (mask_BT[:, -1] == 0).any() or (mask_BT.long().diff(dim=1) < 0).any():
            raise ConfigError(
                "attention_mask must be 0 on padding to the left and 1 from the first token of "
                "the prompt to its last; pad on the left, and give every row a token (generate "
                "masks the pad token inside a prompt too, where it is not given a mask)"
            )
        pads = (mask_BT == 0).sum(dim=1).tolist()
    if not isinstance(decoding.module, GPT) and decoding.context is not None:
        longest = ids_BT.shape[1] - min(pads)
        room = decoding.context + 1 - longest
        if longest > decoding.context or max_new_tokens > room:
            raise ConfigError(
                f"the prompt has {longest} tokens and max_new_tokens is {max_new_tokens}; the "
                f"model attends to {decoding.context}, so "
                + (f"at most {room} can follow" if room > 0 else "the prompt must be shorter")
            )
    return pads
