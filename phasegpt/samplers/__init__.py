"""Sampling text: an ordered chain of processors, and the one decoding loop."""

from phasegpt.samplers.chain import (
    MinP,
    Processor,
    Temperature,
    TopK,
    TopP,
    Vocabulary,
    build_chain,
)
from phasegpt.samplers.loop import KEEP, decode

__all__ = [
    "KEEP",
    "MinP",
    "Processor",
    "Temperature",
    "TopK",
    "TopP",
    "Vocabulary",
    "build_chain",
    "decode",
]
