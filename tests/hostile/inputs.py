"""Hostile words of a command line, configurations and arguments of public functions."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from hostile.judge import Case
from hostile.values import OBJECTS, WORDS, spoil
from hostile.workshop import TINY, Workshop

import phasegpt
from phasegpt import ops, phase, samplers
from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.evaluate import EvaluateConfig
from phasegpt.generate import GenerateConfig, generate
from phasegpt.interpret import InterpretConfig
from phasegpt.training.config import run_config

#: Parameters up to which a case also builds what its configuration describes.
SMALL = 2_000_000


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return [prefix]
    return [prefix, *(x for key in node for x in _leaves(node[key], f"{prefix}.{key}".strip(".")))]


@functools.cache
def _groups() -> dict[str, list[str]]:
    names = (
        "attention",
        "model",
        "data",
        "optimizer",
        "regularizer",
        "trainer",
        "logger",
        "sampler",
    )
    return {name: sorted(p.stem for p in (CONF_DIR / name).glob("*.yaml")) for name in names}


@functools.cache
def _composed(config_name: str, *words: str) -> dict[str, Any]:
    return plain(compose(words, config_name=config_name))


def _settle(config: Any) -> None:
    """Take a training configuration as far as is cheap."""
    run = run_config(config)
    _ = run.hash
    sizes = run.model
    if 12 * sizes.n_layer * sizes.n_embd**2 < SMALL and sizes.block_size <= 4096:
        shape = run.gpt(run.model.vocab_size or 65)
        if shape.vocab_size * sizes.n_embd < SMALL:
            model = phasegpt.GPT(shape, seed=run.seed)
            model(torch.zeros(1, min(4, sizes.block_size), dtype=torch.long))


def option(rng: random.Random, shop: Workshop) -> Case:
    """`python -m phasegpt.train KEY=WORD`, any group option chosen."""
    groups = {k: v for k, v in _groups().items() if k != "sampler"}
    group = rng.choice(sorted(groups))
    choice = rng.choice(groups[group])
    base = ["model=nano", "model.n_layer=2", "model.n_embd=16", "attention.layers=[1]"]
    words = [*base, f"{group}={choice}"]
    key = rng.choice([k for k in _leaves(_composed("config", *words)) if k])
    given = [*words, f"{key}={rng.choice(WORDS)}"]
    return Case(f"train {' '.join(given)}", lambda: _settle(compose(given)))


def command_option(rng: random.Random, shop: Workshop) -> Case:
    """`python -m phasegpt.evaluate|generate|interpret KEY=WORD`, as far as their settings."""
    name = rng.choice(("evaluate", "generate", "interpret"))
    words = [f"sampler={rng.choice(_groups()['sampler'])}"] if name == "generate" else []
    key = rng.choice([k for k in _leaves(_composed(name, *words)) if k])
    given = [*words, f"{key}={rng.choice(WORDS)}"]

    def call() -> None:
        values = plain(compose(given, config_name=name))
        if name == "generate":
            values |= {"checkpoint": str(shop.run), "max_new_tokens": 2, "num_samples": 1} | {
                k: values[k] for k in ("checkpoint",) if key == k
            }
            settings = GenerateConfig.parse(values)
            generate(settings)
        elif name == "evaluate":
            EvaluateConfig.parse(values)
        else:
            InterpretConfig.parse(values)

    return Case(f"{name} {' '.join(given)}", call)


def mapping(rng: random.Random, shop: Workshop) -> Case:
    """`phasegpt.build` of a configuration that a program put together."""
    attention = rng.choice(_groups()["attention"])
    values = copy.deepcopy(_composed("config", *TINY[:5], f"attention={attention}"))
    what, spoilt = spoil(values, rng)
    return Case(f"run_config {attention}: {what}", lambda: _settle(spoilt))


def _calls(shop: Workshop) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions and classes, each with sound values of what it cannot do without."""
    model, tokenizer = shop.model, shop.model.tokenizer
    ids = torch.randint(model.config.vocab_size, (2, 5))
    rows = {"theta": torch.randn(1, 3, 2, 4), "omega": torch.zeros(2, 4), "coupling": torch.ones(2)}
    scan = {"theta": torch.randn(1, 3, 8), "omega": torch.zeros(8), "coupling": torch.ones(8)}
    needs: dict[str, dict[str, Any]] = {
        "AllowedTokens": {"allowed": [1, 2]},
        "AllowedWords": {"words": ["to", "be"], "texts": samplers.token_texts(tokenizer)},
        "DynamicTemperature": {"low": 0.5, "high": 1.5},
        "MinP": {"min_p": 0.1},
        "NegativeBursts": {"every": 3},
        "PhaseSlipSampler": {"model": model, "tokenizer": tokenizer},
        "EntropyShockSampler": {"model": model, "tokenizer": tokenizer},
        "RGate": {"threshold": 0.5},
        "RepetitionPenalty": {"penalty": 1.2},
        "TopK": {"k": 3},
        "TopNSigma": {"n": 1.0},
        "TopP": {"p": 0.9},
        "Typical": {"p": 0.9},
        "decode": {"model": model, "ids_BT": ids, "max_new_tokens": 2, "seeds": [1, 2]},
        "fit_temperature": {"model": model, "text": ids},
        "entropy": {"logits": torch.randn(2, model.config.vocab_size)},
    }
    optional = ("DRY", "EntropyGate", "KVShock", "LoopDetector", "LowEntropy", "PhaseSlip",
                "Sampler", "Temperature", "build_chain")  # fmt: skip
    calls = {name: (getattr(samplers, name), needs.get(name, {})) for name in (*needs, *optional)}
    return calls | {
        "kuramoto_rows": (ops.kuramoto_rows, {**rows, "steps": 2, "dt": 0.1}),
        "kuramoto_scan": (ops.kuramoto_scan, {**scan, "steps": 2, "dt": 0.1}),
        "load": (phasegpt.load, {"target": shop.run}),
        "compose": (compose, {"overrides": list(TINY)}),
        "from_hf": (phasegpt.GPT.from_hf, {"name_or_folder": str(shop.folder / "none")}),
        "GPT.forward": (model.forward, {"idx_BT": ids}),
        **{name: (getattr(phase, name), _phases(getattr(phase, name)))
           for name in phase.__all__ if inspect.isfunction(getattr(phase, name))},
    }  # fmt: skip


def _phases(function: Callable[..., Any]) -> dict[str, Any]:
    """Sound values for a function of phasegpt.phase, by the names of its parameters."""
    theta_BTHN = torch.randn(1, 3, 2, 4)
    sound = {
        "omega": torch.zeros(2, 4), "coupling": torch.ones(2), "steps": 2, "dt": 0.1, "dim": -1,
        "n": 4, "q": 0.9, "low": 0.2, "high": 0.8, "tokens": 5, "duration": 1.0, "tolerance": 0.1,
        "time": 1, "community": 2, "threshold": 0.5, "plv": torch.rand(4, 4),
        "loss_BT": torch.rand(1, 3), "attention_BHTT": torch.rand(1, 2, 3, 3).softmax(-1),
        "R": torch.rand(1, 3, 2),
    }  # fmt: skip
    return {
        p.name: sound.get(p.name, theta_BTHN)
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty or p.name in sound
    }


#: Called, but no processors of a chain.
OTHERS = ("EntropyGate", "RGate", "Sampler", "LoopDetector", "LowEntropy")
#: Of a torch user's mistakes.
TENSORS = (
    torch.tensor(math.nan),
    torch.zeros(0),
    torch.arange(3),
    torch.full((2, 3), -7),
    torch.zeros(2, 5),
)


def argument(rng: random.Random, shop: Workshop) -> Case:
    """One argument of a public function is hostile, the others are sound; what it makes is used."""
    calls = _calls(shop)
    name = rng.choice(sorted(calls))
    function, sound = calls[name]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.items()
    places = [key for key, parameter in parameters if parameter.kind in kinds]
    required = [key for key, parameter in parameters if parameter.default is parameter.empty]
    # Names in the signature may carry shapes (theta_BTHN): sound values stand in its order.
    if not set(sound) <= set(places):
        sound = dict(zip(required, sound.values(), strict=False))
    key = rng.choice(places)
    hostile = rng.choice((*OBJECTS, *TENSORS, np.zeros((2, 2))))

    def call() -> None:
        made = function(**{**sound, key: hostile})
        ids = torch.randint(shop.model.config.vocab_size, (1, 5))
        if name in ("PhaseSlip", "KVShock"):
            samplers.decode(shop.model, ids, max_new_tokens=2, seeds=[1], intervention=made)
        elif inspect.isclass(function) and callable(made) and name not in OTHERS:
            samplers.decode(shop.model, ids, max_new_tokens=2, seeds=[1], chain=[made])

    return Case(f"{name}({key}={hostile!r:.60})", call)
