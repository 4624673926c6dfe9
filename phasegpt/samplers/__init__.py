"""Sampling text: an ordered chain of processors, the one decoding loop, fitted temperatures."""

from phasegpt.samplers.chain import build_chain
from phasegpt.samplers.fit import TemperatureFit, fit_logits, fit_temperature
from phasegpt.samplers.loop import KEEP, decode
from phasegpt.samplers.penalties import DRY, RepetitionPenalty
from phasegpt.samplers.processor import Processor
from phasegpt.samplers.temperature import DynamicTemperature, NegativeBursts, Temperature, entropy
from phasegpt.samplers.truncation import MinP, TopK, TopNSigma, TopP, Typical
from phasegpt.samplers.vocabulary import AllowedTokens, AllowedWords, Vocabulary, token_texts

__all__ = [
    "DRY",
    "KEEP",
    "AllowedTokens",
    "AllowedWords",
    "DynamicTemperature",
    "MinP",
    "NegativeBursts",
    "Processor",
    "RepetitionPenalty",
    "Temperature",
    "TemperatureFit",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "Vocabulary",
    "build_chain",
    "decode",
    "entropy",
    "fit_logits",
    "fit_temperature",
    "token_texts",
]
