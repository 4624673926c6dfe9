"""Samplers compared on one model: a table of arms, sampled and measured under one protocol."""

from phasegpt.benchmark.arms import ARMS, Arm, arms_for
from phasegpt.benchmark.measure import Bench, Protocol, run
from phasegpt.benchmark.subject import PUBLISHED_PROMPTS, Subject

__all__ = ["ARMS", "PUBLISHED_PROMPTS", "Arm", "Bench", "Protocol", "Subject", "arms_for", "run"]
