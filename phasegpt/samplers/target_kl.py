"""Finding what Phase-Slip leaves open: which heads have phases, and the angle of a target KL.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.core.randomness import keyed_seed
from phasegpt.model.gpt import GPT
from phasegpt.samplers.calibrate import Head
from phasegpt.samplers.loop import decode
from phasegpt.samplers.models import decoder

_MEASUREMENTS = 8
_OWN_TOKENS = 64


def angle_for(
    model: Any,
    ids_BT: Tensor,
    target_kl: float,
    slip: Callable[[float], Any],
    quadratic: float | None,
) -> float:
    """The angle in [0, pi] whose KL(clean || slipped) on ids is `target_kl` nats, within 10%.

    Begins with KL = quadratic angle^2 (None: not known), measures the KL with `slip(angle)`, and
    goes on along a power law: of exponent 2 until the target lies between two measurements, then of
    the one that these have. (Values leave exponent 2 at large angles; phases near synchrony have
    about 4, since slips to both sides cancel at first.) Warns when pi is not enough, and when no
    measurement came within 10%: then it is the angle that came nearest.
    """
    angle = 0.3 if not quadratic else min(math.sqrt(target_kl / quadratic), math.pi / 2)
    below: tuple[float, float] | None = None
    above: tuple[float, float] | None = None
    measured: dict[float, float] = {}
    for _ in range(_MEASUREMENTS):
        kl = measured[angle] = max(measured_kl(model, ids_BT, slip(angle)), 1e-30)
        if abs(math.log(kl / target_kl)) < math.log(1.1):
            break
        if kl < target_kl:
            below = (angle, kl)
        else:
            above = (angle, kl)
        if below is not None and above is not None:
            span = math.log(above[0] / below[0])
            part = math.log(target_kl / below[1]) / math.log(above[1] / below[1])
            angle = below[0] * math.exp(span * min(0.9, max(0.1, part)))  # off the ends
        elif angle < math.pi or kl > target_kl:
            angle = min(angle * math.sqrt(target_kl / kl), math.pi)
        else:
            warnings.warn(
                f"target_kl={target_kl} is out of reach: these heads give {kl:.3g} rotated by pi; "
                f"choose others, a wider window or a smaller target_kl",
                stacklevel=2,
            )
            break
    else:
        angle = min(measured, key=lambda a: abs(math.log(measured[a] / target_kl)))
        warnings.warn(
            f"target_kl={target_kl} was not met within 10% in {_MEASUREMENTS} measurements; the "
            f"nearest is {measured[angle]:.3g} nats at {angle:.4g} rad, which is taken; state "
            f"angle= instead, or choose other heads",
            stacklevel=2,
        )
    return angle


def measured_kl(model: Any, ids_BT: Tensor, slip: Any) -> float:
    """Mean KL(clean || slipped) in nats over the second half of each row of ids, step by step."""
    begin = ids_BT.shape[1] // 2

    def force(ids: Tensor | None, logits: Tensor) -> Tensor:
        assert ids is not None
        chosen = ids_BT[:, ids.shape[1]].to(logits.device).unsqueeze(1)
        return torch.full_like(logits, -math.inf).scatter(1, chosen, 0.0)

    seeds, steps = range(len(ids_BT)), ids_BT.shape[1] - begin
    decode(model, ids_BT[:, :begin], max_new_tokens=steps, chain=[force], seeds=seeds,
           intervention=slip)  # fmt: skip
    return float(torch.stack([step.kl for step in slip.trace if step.kl is not None]).mean())


def phase_heads(model: Any) -> list[Head]:
    """All heads with oscillators of a GPT of ours whose phases later tokens read."""
    found = model.oscillators if isinstance(model, GPT) else {}
    if found and model.link is not None:  # it reads them after every layer but the last one
        found.popitem()
    heads = [(layer, head) for layer, those in found.items() for head in range(those.shape[0])]
    if not heads:
        raise ConfigError("target=phases needs a model with oscillators; this one has none")
    return heads


def own_text(model: Any, *, rows: int = 16) -> Tensor:
    """Text that the model writes by itself at temperature 1, [rows, 64] or less; always the same.

    It begins with the model's first token of a text, where its configuration names one.
    """
    decoding = decoder(model)
    named = (getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id"))
    first = next((x for x in named if isinstance(x, int) and x < decoding.vocab_size), 0)
    tokens = min(_OWN_TOKENS, decoding.context or _OWN_TOKENS)
    ids_B1 = torch.full((rows, 1), first)
    seeds = [keyed_seed("own text", row) for row in range(rows)]
    return decode(model, ids_B1, max_new_tokens=tokens - 1, seeds=seeds)
