"""Our decoding loop inside Hugging Face's generate: model.generate(..., custom_generate=Sampler()).

`generate` prepares masks, processors and criteria and calls the Sampler, which decodes. Imports no
transformers. Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers.intervene import Intervention
from phasegpt.samplers.loop import Streamer, decode

# What generate prepares for its own loop and ours does not need.
_KNOWN = {"position_ids", "cache_position", "logits_to_keep", "use_cache"}


class Sampler:
    """Hand it to generate as `custom_generate`; `intervention` edits the memory, or None.

    model.generate(ids, custom_generate=Sampler(PhaseSlip(angle=0.3)), do_sample=True,
                   seeds=[1, 2, 3], token_streamer=s)

    seeds: one per row (of B x num_return_sequences); without them the tokens are drawn as generate
    draws them, from torch's global generator. token_streamer: as generate's `streamer`, which
    generate itself keeps to the prompt (transformers 5.23); the same holds for `stop_strings`, so
    pass a StopStringCriteria in `stopping_criteria`. Beams and return_dict_in_generate are errors.
    """

    def __init__(self, intervention: Intervention | None = None) -> None:
        self.intervention = intervention

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
        config = generation_config
        for name, plain in (("num_beams", 1), ("return_dict_in_generate", False)):
            value = getattr(config, name, None)
            if value not in (None, plain):
                raise ConfigError(f"{name}={value} is not for this sampler; set {name}={plain}")
        guidance = getattr(config, "guidance_scale", None)
        if self.intervention is not None and guidance not in (None, 1):
            raise ConfigError(
                f"guidance_scale={guidance} runs the model a second time, which would be edited "
                f"too; leave it at 1 with an intervention"
            )
        mask = model_kwargs.pop("attention_mask", None)
        past = model_kwargs.pop("past_key_values", None)
        use_cache = model_kwargs.get("use_cache", True) is not False
        if model_kwargs.pop("cache_params", None) is not None and use_cache:
            raise ConfigError(
                f"{type(model).__name__} keeps a state, no keys and Values, which this sampler "
                f"does not carry on; pass use_cache=False"
            )
        unknown = {k for k, v in model_kwargs.items() if v is not None and k not in _KNOWN}
        if unknown:
            raise ConfigError(
                f"{', '.join(sorted(unknown))}: this sampler decodes from ids and attention_mask "
                f"alone; leave the rest out"
            )
        criteria = list(stopping_criteria or ())
        pad = getattr(config, "_pad_token_tensor", None)
        ends = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        return decode(
            model,
            input_ids,
            max_new_tokens=config.max_length - input_ids.shape[1],
            seeds=seeds,
            chain=list(logits_processor or ()),
            greedy=not config.do_sample,
            intervention=self.intervention,
            attention_mask=mask,
            stopping=criteria,
            pad_id=int(pad) if ends and pad is not None else None,
            streamer=token_streamer,
            use_cache=use_cache,
            past_key_values=past,
        )
