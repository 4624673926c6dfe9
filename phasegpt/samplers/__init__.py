"""Sampling text: an ordered chain of processors, one decoding loop, and what acts on its memory."""

from phasegpt.samplers.building import build_sampler
from phasegpt.samplers.calibrate import HeadScores, calibrate_heads
from phasegpt.samplers.chain import build_chain
from phasegpt.samplers.classic import EntropyShockSampler, PhaseSlipSampler
from phasegpt.samplers.fit import TemperatureFit, fit_logits, fit_temperature
from phasegpt.samplers.huggingface import Sampler
from phasegpt.samplers.intervene import EntropyGate, Intervention, RGate
from phasegpt.samplers.loop import KEEP, OnTokens, decode
from phasegpt.samplers.penalties import DRY, RepetitionPenalty
from phasegpt.samplers.phase_slip import PhaseSlip
from phasegpt.samplers.processor import Processor
from phasegpt.samplers.prompt import Prompt
from phasegpt.samplers.shock import KVShock, LoopDetector, LowEntropy
from phasegpt.samplers.stopping import Stop
from phasegpt.samplers.temperature import DynamicTemperature, NegativeBursts, Temperature, entropy
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
from phasegpt.samplers.vocabulary import AllowedTokens, AllowedWords, Vocabulary, token_texts

__all__ = [
    "DRY",
    "KEEP",
    "AllowedTokens",
    "AllowedWords",
    "DynamicTemperature",
    "EntropyGate",
    "EntropyShockSampler",
    "Epsilon",
    "Eta",
    "HeadScores",
    "Intervention",
    "KVShock",
    "LoopDetector",
    "LowEntropy",
    "MinP",
    "NegativeBursts",
    "OnTokens",
    "PLess",
    "PhaseSlip",
    "PhaseSlipSampler",
    "Processor",
    "Prompt",
    "RGate",
    "RepetitionPenalty",
    "Sampler",
    "Stop",
    "Temperature",
    "TemperatureFit",
    "TopH",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "Vocabulary",
    "build_chain",
    "build_sampler",
    "calibrate_heads",
    "decode",
    "entropy",
    "fit_logits",
    "fit_temperature",
    "token_texts",
]
