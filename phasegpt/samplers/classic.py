"""The two samplers under the names and parameters of their first publication, text in, text out.

`PhaseSlipSampler` rotates Values beside the clean path, `EntropyShockSampler` shocks the memory
when the model stagnates. Both take a GPT of ours or any Hugging Face causal model, with its
tokenizer.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import _values
from phasegpt.samplers.calibrate import Head, HeadScores, calibrate_heads
from phasegpt.samplers.chain import build_chain
from phasegpt.samplers.intervene import EntropyGate, Intervention
from phasegpt.samplers.loop import Streamer, decode
from phasegpt.samplers.models import decoder
from phasegpt.samplers.options import EntropyShockOptions, PhaseSlipOptions
from phasegpt.samplers.phase_slip import AUTO_HEADS, PhaseSlip
from phasegpt.samplers.processor import Processor
from phasegpt.samplers.shock import KVShock, LoopDetector, LowEntropy
from phasegpt.samplers.stopping import Stop
from phasegpt.samplers.vocabulary import Vocabulary, token_count

#: Mean rotation per unit of noise_scale in the published sampler before it is diluted: 0.057 rad
#: at 0.03, measured on a small character GPT-2. It divides by the norm of each Value, so single
#: vectors had 0.025 to 0.141 rad and other models have other means.
RADIANS_PER_NOISE = 0.057 / 0.03

#: The published noise and its dilution.
NOISE_SCALE, BLEND_BETA = 0.03, 0.15

#: Tokens that calibrate_heads lets the model write after the prompt.
CALIBRATION_TOKENS = 128


def rotation_of(noise_scale: float, blend_beta: float) -> float:
    """Radians of (1 - beta) v + beta v', v' being v rotated by RADIANS_PER_NOISE noise_scale."""
    angle = RADIANS_PER_NOISE * noise_scale
    return math.atan2(blend_beta * math.sin(angle), (1 - blend_beta) + blend_beta * math.cos(angle))


class _TextSampler:
    """Prompt in, text out, through `decode`."""

    intervention: Intervention

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        decoder(model)  # an error now rather than at the first text

    def _encode(self, prompt: str) -> Tensor:
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt={prompt!r} must be a text")
        ids = torch.as_tensor([int(i) for i in self.tokenizer.encode(prompt)])
        if not len(ids):
            raise ConfigError(f"prompt={prompt!r} has no tokens; give a text to continue")
        return ids.unsqueeze(0)

    def _text(self, ids: Sequence[int]) -> str:
        if hasattr(self.tokenizer, "all_special_ids"):  # Hugging Face's
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        return self.tokenizer.decode(ids)

    def _at(self, temperature: float | Processor) -> None:
        """The next text is drawn at this temperature."""

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 50,
        temperature: float | Processor = 0.65,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        stop_strings: Sequence[str] = (),
        streamer: Streamer | None = None,
    ) -> str:
        """The prompt and its continuation; the same for a seed, else from torch's generator.

        temperature: a number of any sign, or a processor such as DynamicTemperature. Ends early
        with an end-of-text token of the model or one of `stop_strings`. Raises ConfigError.
        """
        chain: list[Processor] = build_chain(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
        )
        chain.insert(0, Vocabulary(token_count(self.tokenizer)))
        self._at(temperature)
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        size = decoder(self.model).vocab_size
        out = decode(
            self.model,
            self._encode(prompt),
            max_new_tokens=max_new_tokens,
            seeds=None if seed is None else [seed],
            chain=chain,
            stop=Stop([i for i in ends if i < size], stop_strings, self.tokenizer),
            intervention=self.intervention,
            streamer=streamer,
        )
        return self._text(out[0].tolist())


class PhaseSlipSampler(_TextSampler):
    """Phase-Slip with the published parameters; what they amount to is written to stderr.

    noise_scale and blend_beta: the published noise and its dilution, here an exact rotation by
    rotation_of(noise_scale, blend_beta): 0.0085 rad by default, next to nothing. `angle`: the
    rotation itself, in radians, instead of both. logit_fusion_alpha: the anchor, the share of the
    clean path with an open gate. perturbation_window: newest positions that are rotated. heads: see
    PhaseSlip.
    `intervention` is the PhaseSlip that acts, with its `trace`. Raises ConfigError.
    """

    intervention: PhaseSlip

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        noise_scale: float = NOISE_SCALE,
        logit_fusion_alpha: float = PhaseSlipOptions.anchor,
        perturbation_window: int = PhaseSlipOptions.window,
        *,
        blend_beta: float = BLEND_BETA,
        angle: float | None = None,
        heads: Sequence[Head] | None = None,
        protect_prompt: bool = True,
    ) -> None:
        super().__init__(model, tokenizer)
        if angle is not None:
            _values.idle("noise_scale", noise_scale, NOISE_SCALE, f"beside angle={angle}")
            _values.idle("blend_beta", blend_beta, BLEND_BETA, f"beside angle={angle}")
        mapped = rotation_of(
            # Above it the vector would have turned by more than half a circle, and be back.
            _values.between("noise_scale", noise_scale, 0, math.pi / RADIANS_PER_NOISE),
            _values.between("blend_beta", blend_beta, 0, 1),
        )
        self.intervention = PhaseSlip(
            "auto" if heads is None else heads,
            angle=mapped if angle is None else angle,
            window=perturbation_window,
            anchor=logit_fusion_alpha,
            protect_prompt=protect_prompt,
        )
        if angle is None:
            sys.stderr.write(
                f"noise_scale={noise_scale} diluted by blend_beta={blend_beta} is a rotation of "
                f"{mapped:.4f} rad ({math.degrees(mapped):.2f} degrees); angle= states it\n"
            )

    def calibrate_heads(
        self, prompt: str, search_layers: int = 6, *, save: str | Path | None = None
    ) -> HeadScores:
        """Choose the 3 heads of the last `search_layers` layers that move the logits most.

        The scores are taken on the prompt and what the model writes after it at temperature 1,
        always the same text. The table goes to stderr, and as CSV to `save`. Raises ConfigError.
        """
        _values.whole("search_layers", search_layers, 1)
        ids = self._encode(prompt)
        room = decoder(self.model).context
        more = CALIBRATION_TOKENS if room is None else min(CALIBRATION_TOKENS, room - ids.shape[1])
        ids = decode(self.model, ids, max_new_tokens=max(0, more), seeds=[0])
        scores = calibrate_heads(self.model, ids, window=self.intervention.window)
        heads = scores.top(AUTO_HEADS, layers=search_layers)
        self.intervention.heads = heads
        sys.stderr.write(f"{scores}\nchosen (layer, head): {', '.join(map(str, heads))}\n")
        if save is not None:
            scores.save(save)
        return scores

    def _at(self, temperature: float | Processor) -> None:
        if isinstance(self.intervention.gate, EntropyGate):
            T = 1.0 if callable(temperature) or temperature <= 0 else temperature
            self.intervention.gate = EntropyGate(self.intervention.gate.center, T)


class EntropyShockSampler(_TextSampler):
    """Shocks the memory when the model stagnates: `patience` tokens of entropy below a threshold.

    noise_scale: of the shock, in standard deviations. detector="loop" watches for repeated text
    (LoopDetector) instead of the entropy; see KVShock for window, cooldown, target and heat.
    `intervention.events` tells every shock of the last text. Raises ConfigError.
    """

    intervention: KVShock

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stagnation_threshold: float = EntropyShockOptions.stagnation_threshold,
        patience: int = EntropyShockOptions.patience,
        noise_scale: float = EntropyShockOptions.noise_scale,
        *,
        detector: str = EntropyShockOptions.detector,
        window: int = EntropyShockOptions.window,
        cooldown: int = EntropyShockOptions.cooldown,
        target: Literal["keys", "values", "both"] = EntropyShockOptions.target,
        heat: float = EntropyShockOptions.heat,
    ) -> None:
        super().__init__(model, tokenizer)
        if detector not in ("entropy", "loop"):
            raise ConfigError(f"detector={detector!r} must be 'entropy' or 'loop'")
        if detector == "loop":
            usual = EntropyShockOptions.stagnation_threshold
            _values.idle(
                "stagnation_threshold", stagnation_threshold, usual, "beside detector='loop'"
            )
        self.intervention = KVShock(
            noise_scale,
            detector=LowEntropy(stagnation_threshold, patience)
            if detector == "entropy"
            else LoopDetector(patience=patience),
            window=window, cooldown=cooldown, target=target, heat=heat,
        )  # fmt: skip
