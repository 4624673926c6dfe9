"""Our decoding loop inside Hugging Face's generate: model.generate(..., custom_generate=Sampler()).

`generate` prepares masks, processors and criteria and calls the Sampler, which decodes. Which of
its options act, and which are refused, stands in generate_options. Shapes: B batch, T time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.model.gpt import GPT
from phasegpt.model.padding import PaddedCache
from phasegpt.samplers import generate_options
from phasegpt.samplers.intervene import Intervention
from phasegpt.samplers.loop import Streamer, decode
from phasegpt.samplers.models import decoder
from phasegpt.samplers.prompt import Prompt
from phasegpt.samplers.stopping import Stop


class Sampler:
    """Hand it to generate as `custom_generate`; `intervention` edits the memory, or None.

    model.generate(ids, custom_generate=Sampler(PhaseSlip(angle=0.3)), do_sample=True,
                   seeds=[1, 2, 3])
    Sampler(PhaseSlip(angle=0.3)).generate(model, ids, do_sample=True, streamer=streamer)

    seeds: one per row (of B x num_return_sequences); without them the tokens are drawn as generate
    draws them, from torch's global generator. The options of generate give its own tokens or are
    errors that name them. `streamer`, and `stop_strings` with their tokenizer, are kept from a
    custom_generate by generate itself (transformers 5.23): the second form takes them.
    """

    def __init__(self, intervention: Intervention | None = None) -> None:
        self.intervention = intervention

    def generate(
        self,
        model: Any,
        inputs: Tensor | None = None,
        *,
        streamer: Streamer | None = None,
        tokenizer: Any = None,
        **options: Any,
    ) -> Tensor:
        """model.generate with this loop: ids[B,T+n], and the tokens one by one to `streamer`.

        `options` are generate's and `seeds`; `tokenizer` reads stop_strings. Raises ConfigError,
        and ValueError where generate itself does.
        """
        if not hasattr(model, "generate"):
            raise ConfigError(
                f"{type(model).__name__} has no generate of Hugging Face's; use phasegpt.samplers."
                f"decode(model, ids, ...), which streams too"
            )
        ending = None if streamer is None else _EndsOnce(streamer)
        try:
            if options.get("cache_implementation") == "paged":
                raise ConfigError(
                    "cache_implementation=paged leaves this loop for continuous batching; leave it "
                    "out"
                )
            configs = (options.get("generation_config"), model.generation_config)
            given = [options.pop("stop_strings", None)]
            given += [getattr(config, "stop_strings", None) for config in configs]
            strings = next((found for found in given if found is not None), None)
            if strings is not None and tokenizer is not None:
                from phasegpt.model.huggingface import stop_strings

                options["stopping_criteria"] = [
                    *(options.get("stopping_criteria") or ()),
                    stop_strings(tokenizer, strings),
                ]
                strings = None
            return model.generate(
                inputs, custom_generate=self, token_streamer=ending, stop_strings=strings, **options
            )
        finally:
            if ending is not None:
                ending.end()  # whoever waits for it is released by an error too

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        seeds: Sequence[int] | None = None,
        token_streamer: Streamer | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """Ids[B,T+n]. Raises ConfigError."""
        decoder(model)
        config = generation_config
        mask = model_kwargs.pop("attention_mask", None)
        past = model_kwargs.pop("past_key_values", None)
        if isinstance(past, PaddedCache) and not past.get_seq_length():
            past = None  # generate made it; the loop knows a GPT of ours and takes its cache
        use_cache = model_kwargs.get("use_cache", True) is not False
        if model_kwargs.pop("cache_params", None) is not None and use_cache:
            raise ConfigError(
                f"{type(model).__name__} keeps a state, no keys and Values, which this sampler "
                f"does not carry on; pass use_cache=False"
            )
        arguments = _arguments(sys._getframe(1))
        if arguments.get("streamer") is not None:
            arguments["streamer"].end()  # it got the prompt, and whoever waits for it may go
        generate_options.check(config, arguments, model_kwargs)
        decoding = decoder(model, past)  # speaks of a filled cache before its positions
        generate_options.check_positions(model_kwargs.get("position_ids"), input_ids, mask)
        guidance = getattr(config, "guidance_scale", None)
        if self.intervention is not None and guidance not in (None, 1):
            raise ConfigError(
                f"guidance_scale={guidance} runs the model a second time, which would be edited "
                f"too; leave it at 1 with an intervention"
            )
        criteria, chain = list(stopping_criteria or ()), list(logits_processor or ())
        prompt = Prompt(input_ids, mask)
        if isinstance(decoding.module, GPT) and any(prompt.pads):
            idle = self.intervention is None or not self.intervention.active
            fits = config.max_length - min(prompt.pads) <= (decoding.context or 0)
            if idle and fits and not decoding.module.leaky:
                past = PaddedCache(decoding.module)
            else:
                _check_alone([*chain, *criteria])
        pad = getattr(config, "_pad_token_tensor", None)
        pad = decoding.vocab_size if pad is None else int(pad)
        ends = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        return decode(
            model,
            prompt,
            max_new_tokens=config.max_length - input_ids.shape[1],
            seeds=seeds,
            chain=chain,
            greedy=not config.do_sample,
            stop=Stop(
                criteria=criteria if ends or seeds is not None else [_together(criteria)],
                pad_id=pad if ends and pad < decoding.vocab_size else None,
            ),
            intervention=self.intervention,
            streamer=token_streamer,
            use_cache=use_cache if past is None else past,
        )


class _EndsOnce:
    """A streamer whose end comes once."""

    def __init__(self, streamer: Streamer) -> None:
        self.put, self._end, self._ended = streamer.put, streamer.end, False

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._end()


def _check_alone(parts: Sequence[Any]) -> None:
    """ConfigError for what looks at the rows of a batch or their lengths, where each row of a GPT
    of ours is decoded at its own length: with an intervention, by a model that sees the future,
    or past the context."""
    plain = {
        *("MaxLengthCriteria", "EosTokenCriteria", "MaxTimeCriteria", "LogitNormalization"),
        *("InfNanRemoveLogitsProcessor", "SuppressTokensLogitsProcessor"),
    }
    wrong = sorted(
        {
            type(part).__name__
            for part in parts
            if not type(part).__name__.endswith("LogitsWarper")
            and not type(part).__module__.startswith("phasegpt.")
            and type(part).__name__ not in plain
        }
    )
    if wrong:
        raise ConfigError(
            f"rows of unequal length are decoded length by length here, and "
            f"{', '.join(wrong)} would be shown other rows than generate shows; give rows of one "
            f"length, or leave the intervention and lengths past the context out"
        )


def _together(criteria: Sequence[Callable[..., Any]]) -> Callable[[Tensor, None], Tensor]:
    """As generate without an end token: ended rows go on drawing until the last has ended.

    Rows that are not longer than those before are another group, which has not ended.
    """
    ended_B, length = torch.zeros(0, dtype=torch.bool), 0

    def all_ended(ids_BT: Tensor, scores: None) -> Tensor:
        nonlocal ended_B, length
        if len(ids_BT) != len(ended_B) or ids_BT.shape[1] <= length:
            ended_B = torch.zeros(len(ids_BT), dtype=torch.bool)
        length = ids_BT.shape[1]
        for criterion in criteria:
            ended_B = ended_B | torch.as_tensor(criterion(ids_BT, scores)).cpu()
        return ended_B.all().expand(len(ended_B))

    return all_ended


def _arguments(frame: FrameType) -> Mapping[str, Any]:
    """Arguments of the generate that called; it hands on neither streamer nor assistant_model."""
    return dict(frame.f_locals) if frame.f_code.co_name == "generate" else {}
