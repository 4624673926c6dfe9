"""A GPT that takes the weights of another: what is taken, what is new, what is left over.

The body must be the same. A layer of the same mechanism is taken whole; one of another mechanism
takes the projections of softmax, where both have them, and its oscillators follow their own rule.
So a phase layer is grown into GPT-2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from phasegpt.attention import Attention
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, shown
from phasegpt.model.config import GPTConfig, ModelSection

if TYPE_CHECKING:
    from phasegpt.model.gpt import GPT

#: Options of `model` in which a model may differ from the one that it begins with.
_FREE = ("block_size", "dropout", "activation_checkpointing", "match_parameters")
_POSITIONS, _LAYERS, _LINK = "transformer.wpe.weight", "transformer.h.", "transformer.link."


class Taken(NamedTuple):
    """What a model takes from another, by the names of its own state dict."""

    weights: dict[str, Tensor]
    new: list[str]  # initialised by their rule, or fixed by an option
    left_over: list[str]  # of the other model, under its names
    positions: tuple[int, int] | None  # kept of how many, where some are cut

    def record(self) -> dict[str, Any]:
        """All but the weights, for run.json."""
        cut = None if self.positions is None else list(self.positions)
        return {"new": self.new, "left_over": self.left_over, "positions": cut}


def check_shape(path: str, theirs: GPTConfig, config: GPTConfig) -> None:
    """ConfigError that names every key of `model` in which the two must agree and do not."""
    names = [f.name for f in fields(ModelSection) if f.name not in _FREE]
    if theirs.inner_width == config.inner_width:
        names.remove("mlp_width")
    if differ := [name for name in names if getattr(theirs, name) != getattr(config, name)]:
        asked = ", ".join(f"{name} is {getattr(config, name)}" for name in differ)
        wanted = " ".join(f"model.{name}={_written(getattr(theirs, name))}" for name in differ)
        raise ConfigError(f"init_from={path} is a model of another shape ({asked}); set {wanted}")
    if config.positions == "learned" and config.block_size > theirs.block_size:
        raise ConfigError(
            f"model.block_size={config.block_size} is longer than the {theirs.block_size} "
            f"positions that init_from={path} has learned; set model.block_size="
            f"{theirs.block_size}, or less"
        )


def _written(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def taken(model: GPT, source: GPT, path: str) -> Taken:
    """What `model`, which may be on the meta device, takes from `source`, called `path` in errors.

    Raises ConfigError where the shapes differ.
    """
    check_shape(path, source.config, model.config)
    theirs, ours = source.state_dict(), model.state_dict()
    weights: dict[str, Tensor] = {}
    used = set()
    pairs = list(_pairs(model, source))
    _check_starts(model, source, {name for name, _ in pairs}, path)
    for name, other in pairs:
        value = theirs[other]
        if name == _POSITIONS:
            value = value[: model.config.block_size]
        if value.shape != ours[name].shape:
            raise ConfigError(
                f"init_from={path}: {other} has shape {list(value.shape)}, and the model's is "
                f"{list(ours[name].shape)}; give its model.block_size and its options of attention "
                f"(attention.num_oscillators is one), or another attention"
            )
        weights[name] = value
        used.add(other)
    cut = None
    if _POSITIONS in ours and model.config.block_size < source.config.block_size:
        cut = (model.config.block_size, source.config.block_size)
    return Taken(
        weights,
        [name for name in ours if name not in weights],
        [name for name in theirs if name not in used],
        cut,
    )


def _check_starts(model: GPT, source: GPT, taken: set[str], path: str) -> None:
    """ConfigError for options that say where a parameter begins, if in every layer it goes on."""
    begins: set[tuple[type, str]] = set()  # in a layer that is new
    passed_over: dict[tuple[type, str], str] = {}
    for k, (block, theirs) in enumerate(zip(model.blocks, source.blocks, strict=True)):
        others = dict(theirs.attn.named_modules())
        for part, attn in block.attn.named_modules():
            if not isinstance(attn, Attention):
                continue
            other = others.get(part)
            for option, parameter in attn.starts.items():
                name = ".".join(filter(None, (f"{_LAYERS}{k}.attn", part, parameter)))
                if not isinstance(other, Attention) or type(other) is not type(attn):
                    begins.add((type(attn), option))
                    continue
                if name not in taken:
                    continue
                pair = [getattr(layer.options, option, None) for layer in (attn, other)]
                if pair[0] != pair[1]:
                    said = _passed_over(path, option, pair, attn.options)
                    passed_over.setdefault((type(attn), option), said)
    for key, said in passed_over.items():
        if key not in begins:
            raise ConfigError(said)


def _passed_over(path: str, option: str, pair: list[Any], options: Section) -> str:
    mine, other = (f"attention.{option}={_written(value)}" for value in pair)
    held = ""
    if hasattr(options, switch := f"learn_{option}"):
        held = f", or attention.{switch}=false, which holds it at {_written(pair[0])}"
    return (
        f"{mine} says where a parameter begins, and here it goes on from what init_from={path} has "
        f"learned, which began with {other}; set {other}{held}"
    )


def _pairs(model: GPT, source: GPT) -> Iterator[tuple[str, str]]:
    """Names of a tensor in the model and of the one that it takes."""
    parts = {f"{_LAYERS}{k}.attn.": block.attn for k, block in enumerate(model.blocks)}
    others = [block.attn for block in source.blocks]
    for name in model.state_dict():
        if not name.startswith((*parts, _LINK)):
            yield name, name
    if model.link is not None and type(model.link) is type(source.link):
        whole = model.config.attention_options == source.config.attention_options
        for name in _kept(model.link, source.link, whole):
            yield _LINK + name, _LINK + name
    for (prefix, attn), other in zip(parts.items(), others, strict=True):
        for mine, its in _layer(attn, other):
            yield prefix + mine, prefix + its


def _layer(attn: Attention, other: Attention) -> Iterator[tuple[str, str]]:
    """The same within one layer."""
    # A hybrid's names mean the same only where its partner is of the same class.
    alike = [type(m) for m in attn.modules()] == [type(m) for m in other.modules()]
    if alike:
        # An option fixes what is in a buffer: the other's is taken where all options are the same.
        for name in _kept(attn, other, attn.options == other.options):
            yield name, name
    elif other.softmax_parts:
        for part in attn.softmax_parts:
            for module in ("c_attn", "c_proj"):
                for name in attn.get_submodule(part + module).state_dict():
                    yield f"{part}{module}.{name}", f"{other.softmax_parts[0]}{module}.{name}"


def _kept(module: nn.Module, other: nn.Module, whole: bool) -> Iterator[str]:
    """Names of what a module takes from another of its class; `whole`: buffers too."""
    theirs = other.state_dict()
    mine, learned = (dict(m.named_parameters()) for m in (module, other))
    return (
        name
        for name in module.state_dict()
        if name in theirs and (whole or (name in mine and name in learned))
    )


def fill(model: GPT, found: Taken) -> None:
    """Write what was taken into the model; the rest stays as it is."""
    with torch.no_grad():
        own = model.state_dict()
        for name, value in found.weights.items():
            own[name].copy_(value)


def said(record: dict[str, Any]) -> str:
    """A Taken.record() in one line: "new: attn.beta of layers 6, 7; left over: nothing"."""
    parts = [f"new: {_grouped(record['new'])}", f"left over: {_grouped(record['left_over'])}"]
    if record["positions"]:
        kept, of = record["positions"]
        parts.append(f"the first {kept} of {of} positions")
    return "; ".join(parts)


def _grouped(names: list[str]) -> str:
    """Names; those of layers once for all the layers that have them."""
    layers: dict[str, list[str]] = defaultdict(list)
    for name in names:
        layer, _, rest = name.removeprefix(_LAYERS).partition(".")
        if name.startswith(_LAYERS):
            layers[rest].append(layer)
        else:
            layers[name] = []
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, where in layers.items():
        groups[tuple(where)].append(name)
    return "; ".join(", ".join(found) + _of(where) for where, found in groups.items()) or "nothing"


def _of(layers: tuple[str, ...]) -> str:
    return f" of layer{'s' * (len(layers) > 1)} {', '.join(layers)}" if layers else ""
