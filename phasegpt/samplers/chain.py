"""The usual chain of processors `(ids, logits) -> logits`, and its order.

A chain is a plain list that is applied in order and may be edited; Hugging Face's processors can
stand in it, and ours in `model.generate(logits_processor=[...])` of Hugging Face.
"""

from __future__ import annotations

from phasegpt.samplers import _values
from phasegpt.samplers.penalties import DRY, RepetitionPenalty
from phasegpt.samplers.processor import Processor
from phasegpt.samplers.temperature import Temperature
from phasegpt.samplers.truncation import (
    Epsilon,
    Eta,
    MinP,
    PLess,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)


def build_chain(
    *,
    temperature: float | Processor = 1.0,
    allowed: Processor | None = None,
    repetition_penalty: float | None = None,
    dry: DRY | None = None,
    top_n_sigma: float | None = None,
    top_h: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    epsilon_cutoff: float | None = None,
    eta_cutoff: float | None = None,
    p_less: bool = False,
) -> list[Processor]:
    """The usual chain: allowed tokens, penalties, truncation, temperature; None: left out.

    The order is that of the arguments after `temperature`, which comes last: what is unlikely is
    decided on the model's own probabilities (T = 1), and a negative temperature turns round only
    what is left. `temperature` may be a processor, such as DynamicTemperature. Raises ConfigError
    for a value out of range.
    """
    links: list[Processor | None] = [
        _values.processor("allowed", allowed),
        None if repetition_penalty is None else RepetitionPenalty(repetition_penalty),
        _values.processor("dry", dry),
        None if top_n_sigma is None else TopNSigma(top_n_sigma),
        None if top_h is None else TopH(top_h),
        None if top_k is None else TopK(top_k),
        None if top_p is None else TopP(top_p),
        None if min_p is None else MinP(min_p),
        None if typical_p is None else Typical(typical_p),
        None if epsilon_cutoff is None else Epsilon(epsilon_cutoff),
        None if eta_cutoff is None else Eta(eta_cutoff),
        PLess() if _values.flag("p_less", p_less) else None,
        temperature if callable(temperature) else Temperature(temperature),
    ]
    return [link for link in links if link is not None]
