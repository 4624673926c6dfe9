"""The one decoding loop: any model, any chain, any number of rows, each with its own stream.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError, UserError
from phasegpt.core.eval_mode import inference
from phasegpt.core.randomness import global_state, keyed_generator
from phasegpt.model.padding import PaddedCache
from phasegpt.samplers import _values
from phasegpt.samplers.intervene import Intervention, Memory
from phasegpt.samplers.models import Decoder, decoder
from phasegpt.samplers.processor import Processor
from phasegpt.samplers.prompt import Prompt
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


class OnTokens:
    """A streamer that calls `act` with the B new ids of every step, and not with the prompt."""

    def __init__(self, act: Callable[[list[int]], None]) -> None:
        (self._act,) = _values.callables("OnTokens", [act])

    def put(self, value: Tensor) -> None:
        """See Streamer."""
        if value.ndim == 1:
            self._act(value.tolist())

    def end(self) -> None:
        """See Streamer."""


def decode(
    model: Any,
    prompt: Tensor | Prompt,
    *,
    max_new_tokens: int,
    seeds: Sequence[int] | None,
    chain: Sequence[Processor] = (),
    greedy: bool = False,
    stop: Stop | None = None,
    intervention: Intervention | None = None,
    streamer: Streamer | None = None,
    use_cache: bool | Any = True,
) -> Tensor:
    """Continue each row of a prompt by up to `max_new_tokens` tokens; returns ids[B,T+n].

    `model` is a GPT of ours or a Hugging Face causal model; `prompt` are ids[B,T], or a Prompt with
    its attention_mask. Each step maps the last float32 logits through `chain` in order and draws
    one token per row from their softmax (`greedy`: takes the largest). Row i draws from its own CPU
    generator seeded with seeds[i], so it equals that row decoded alone, and the device does not
    change the stream; torch's global generator is not touched. seeds=None draws as Hugging Face
    does, all rows from torch's global generator.

    `stop` says when a row ends; when all have, decoding does. `streamer` gets the prompt, the B new
    ids of every step, and the end. `intervention` edits the memory; its random streams are its own.

    A GPT of ours sees at most block_size tokens: when one more would not fit, the window restarts
    at the last KEEP block_size tokens (a longer prompt likewise), with the cache and without.
    Hugging Face's stop at their context, which is an error told beforehand. `use_cache=False`
    recomputes the window for every token: the only way for models that see the future. It may be
    an empty cache of Hugging Face's, for a model that should not use its usual one. Rows of
    unequal length of a GPT of ours are decoded length by length, so that each equals that row
    alone; with an empty PaddedCache together, as generate does, and no window moves.

    Raises ConfigError, and UserError when there is no finite probability to draw from.
    """
    with ExitStack() as stack:
        # What is asked for, checked before anything runs.
        if streamer is not None:
            _values.having("streamer", streamer, ("put", "end"), "a streamer with put and end")
            stack.callback(streamer.end)  # whoever waits for it is released by an error too
        keep = use_cache is not False
        if not isinstance(use_cache, (bool, PaddedCache)):
            what = "True, False or an empty cache of Hugging Face's"
            _values.having("use_cache", use_cache, ("get_seq_length", "update"), what)
        decoding = decoder(model, None if isinstance(use_cache, bool) else use_cache)
        given = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        given.check(decoding, _values.whole("max_new_tokens", max_new_tokens, 0))
        stop = Stop() if stop is None else stop
        if not isinstance(stop, Stop):
            raise ConfigError(f"stop={stop!r} must be a Stop, such as Stop(ids=[13])")
        stop.check(decoding.vocab_size)
        drawn = _seeds(seeds, len(given.ids))
        acting = _acting(intervention, keep)
        job = _Job(
            decoding, int(max_new_tokens), _values.callables("chain", chain),
            _values.flag("greedy", greedy), acting, stop, streamer, keep,
        )  # fmt: skip
        # The intervention, which may decode by itself to find what it leaves open.
        if acting is not None:
            stack.callback(acting.stop)
            acting.start(decoding)
        # The loop: once for all rows, or once per length.
        stack.enter_context(inference(decoding.module))
        if streamer is not None:
            streamer.put(given.ids.cpu())
        if decoding.slides and any(given.pads):
            out_BT = _by_length(job, given, drawn)
        else:
            out_BT = job.run(range(len(given.ids)), given, drawn)
    return out_BT.clone()  # made outside of inference mode, so that gradients may follow


@dataclass(frozen=True)
class _Job:
    """What is the same for every group of rows."""

    decoding: Decoder
    max_new_tokens: int
    chain: Sequence[Callable[..., Any]]
    greedy: bool
    acting: Intervention | None
    stop: Stop
    streamer: Streamer | None
    use_cache: bool

    def run(self, rows: Sequence[int], prompt: Prompt, seeds: Sequence[int] | None) -> Tensor:
        """decode() for the rows `rows` of the batch."""
        batch, begin = prompt.ids.shape
        device = next(self.decoding.module.parameters()).device
        out_BT = prompt.ids.to(device)
        mask_BT = None if prompt.attention_mask is None else prompt.attention_mask.to(device)
        # One stream per row for the tokens, and another for the intervention.
        tokens = None if seeds is None else [torch.Generator().manual_seed(s) for s in seeds]
        if seeds is None:
            state = global_state(device)
            slips = [keyed_generator("slip", state, row) for row in rows]
        else:
            slips = [keyed_generator("slip", seed) for seed in seeds]
        done, length, start, cache = [False] * batch, begin, 0, None
        with ExitStack() as stack:
            for _ in range(self.max_new_tokens):
                # Room: for the next id, and in the context.
                if length == out_BT.shape[1]:
                    out_BT = _longer(out_BT, 0)
                    mask_BT = None if mask_BT is None else _longer(mask_BT, 1)
                if self.decoding.slides and length - start > (self.decoding.context or length):
                    start, cache = length - max(1, int(KEEP * (self.decoding.context or 1))), None
                seen = None if mask_BT is None else mask_BT[:, start:length]
                # Logits: of the whole window where there is no memory of it, else of one token.
                if cache is None:
                    logits_BV, cache = self.decoding.read(
                        out_BT[:, start:length], seen, self.use_cache
                    )
                    if self.acting is not None:
                        cache = self.decoding.editable(cache)
                        shown = max(0, begin - start)
                        self.acting.watch(Memory(cache, rows, prompt.pads, shown, slips))
                        stack.enter_context(self.decoding.expanding(cache))
                else:
                    if self.acting is not None:
                        self.acting.before()
                    logits_BV = self.decoding.step(out_BT[:, length - 1 : length], seen, cache)
                    if self.acting is not None:
                        logits_BV = self.acting.after(logits_BV, out_BT[:, :length], done)
                # The chain, and the draw.
                for process in self.chain:
                    logits_BV = _processed(process, out_BT[:, :length], logits_BV)
                drawn_B = self._draw(logits_BV, tokens)
                # Rows that ended before get their filling.
                if any(done):
                    ended = torch.tensor(done, device=device)
                    pad = self.stop.pad_id
                    drawn_B = torch.where(
                        ended, out_BT[:, length - 1] if pad is None else pad, drawn_B
                    )
                out_BT[:, length] = drawn_B
                length += 1
                # Who ends now, and who hears of it.
                ends = self.stop(out_BT[:, :length], begin)
                done = [old or new for old, new in zip(done, ends, strict=True)]
                if self.streamer is not None:
                    self.streamer.put(drawn_B.cpu())
                if all(done):
                    break
        return out_BT[:, :length].to(prompt.ids.device)

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


def _by_length(job: _Job, prompt: Prompt, seeds: Sequence[int] | None) -> Tensor:
    """Rows of unequal length, for models that know no padding: one batch per length."""
    if job.streamer is not None:
        raise ConfigError(
            "rows of unequal length are decoded one length after the other with this model, so "
            "they cannot be streamed; stream rows of one length"
        )
    pads = prompt.pads
    results: list[Tensor] = [prompt.ids[0]] * len(pads)
    for pad in sorted(set(pads)):
        rows = [i for i, p in enumerate(pads) if p == pad]
        given = None if seeds is None else [seeds[i] for i in rows]
        out_BT = job.run(rows, Prompt(prompt.ids[rows, pad:]), given)
        for i, row in zip(rows, out_BT, strict=True):
            results[i] = torch.cat((prompt.ids[i, :pad], row))
    length = max(map(len, results))
    for i, row in enumerate(results):
        fill = row[-1:] if job.stop.pad_id is None else row.new_tensor([job.stop.pad_id])
        results[i] = torch.cat((row, fill.expand(length - len(row))))
    return torch.stack(results)


def _seeds(seeds: Any, rows: int) -> list[int] | None:
    """One seed per row as int, or None; ConfigError."""
    if seeds is None:
        return None
    if not isinstance(seeds, Sequence) or any(
        isinstance(s, bool) or not isinstance(s, Integral) or not 0 <= int(s) < 2**64 for s in seeds
    ):
        raise ConfigError(f"seeds={seeds!r} must be a list of whole numbers in 0..2^64 - 1")
    if len(seeds) != rows:
        raise ConfigError(f"{len(seeds)} seeds for {rows} rows; give one seed per row")
    return [int(seed) for seed in seeds]


def _acting(intervention: Any, keep: bool) -> Intervention | None:
    """The intervention if it does something; ConfigError where it could not."""
    if intervention is None:
        return None
    parts = ("active", "start", "watch", "before", "after", "stop")
    what = "an intervention, such as PhaseSlip(angle=0.3), or None"
    _values.having("intervention", intervention, parts, what)
    if not intervention.active:
        return None
    if not keep:
        raise ConfigError(
            "an intervention edits the decode cache, so it cannot act with use_cache=False "
            "(nor on a model that sees the future)"
        )
    return intervention


def _longer(x_BT: Tensor, fill: int) -> Tensor:
    """Twice as long, so that memory follows the text and not max_new_tokens."""
    return torch.cat((x_BT, torch.full_like(x_BT, fill)), dim=1)


def _processed(process: Callable[..., Any], ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
    """The logits after one link of the chain; ConfigError for one that gives something else."""
    found = process(ids_BT, logits_BV)
    if (
        not isinstance(found, Tensor)
        or found.shape != logits_BV.shape
        or not found.is_floating_point()
        or found.device != logits_BV.device
    ):
        given: Any = type(found).__name__
        if isinstance(found, Tensor):
            given = f"{list(found.shape)} of {found.dtype} on {found.device}"
        raise ConfigError(
            f"{process!r} in the chain gave {given}; a processor maps (ids, logits) to logits "
            f"{list(logits_BV.shape)}, floating-point numbers on {logits_BV.device}"
        )
    return found
