"""The contract of an attention layer, continued: decoding, copies, phases, options.

See phasegpt.model.contract. Shapes: B batch, T time, D model width, H heads, N oscillators.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor
from torch.nn import functional as F

from phasegpt.attention import Attention
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, hints_of
from phasegpt.model.contract import Broken, NotApplicable, Subject, close, need, roughen, tokens
from phasegpt.model.gpt import GPT
from phasegpt.phase.steering import NoiseKey

CUTS = {
    "tokens": [1] * 24,
    "prefill then tokens": [17] + [1] * 7,
    "chunks": [5, 1, 11, 7],
    "whole": [24],
}
_CACHE = (
    "with a cache x continues the tokens before: append keys and values with K, V = "
    "cache.update(k, v), keep running sums in cache.state and add T to cache.length, begin "
    "positions at cache.length, give the parts of a layer cache.child(name) each"
)


# --- decoding --------------------------------------------------------------------------------


def decoding(s: Subject, dtype: torch.dtype = torch.float32) -> None:
    """With the cache, in pieces of any size, the logits are the full forward's: 1e-5 in float32,
    1e-11 in float64."""
    # Roughened less in float32: 1e-5 is meant for logits of order 1.
    scale, tolerance = (0.05, 1e-5) if dtype == torch.float32 else (0.2, 1e-11)
    model, idx = roughen(s.gpt(), scale).to(dtype), tokens(2, 24)
    with torch.no_grad():
        full = model(idx).logits
        for name, cuts in CUTS.items():
            cache = model.new_cache()
            parts = [model(piece, cache=cache).logits for piece in idx.split(cuts, dim=1)]
            error = (torch.cat(parts, 1) - full).abs().max().item()
            need(error < tolerance, f"decoded as {name}, logits differ from the full forward's by "
                 f"{error:.1e} ({dtype}); {_CACHE}")  # fmt: skip
            counted = max(part.length for part in cache.parts(1))
            need(
                cache.length == counted == 24,
                f"after 24 tokens the layer's cache.length is {counted}; {_CACHE}",
            )


def rows_of_the_cache(s: Subject) -> None:
    """Rows of the cache can be chosen (beams); it is cut back (drafts), or refuses by name."""
    model, idx = roughen(s.gpt()).double(), tokens(3, 20)
    rows = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        full, cache = model(idx).logits, model.new_cache()
        model(idx[:, :12], cache=cache)
        chosen = cache.select(rows)
        found = model(idx[rows, 12:], cache=chosen).logits
        error = (found - full[rows, 12:]).abs().max().item()
        need(
            error < 1e-11,
            f"after cache.select(rows) logits differ by {error:.1e}; cache.state must be a "
            f"NamedTuple whose tensors of three axes hold the rows on the second",
        )
        try:
            cache.crop(8)
        except ConfigError:
            return
        error = (model(idx[:, 8:], cache=cache).logits - full[:, 8:]).abs().max().item()
        need(error < 1e-11, f"after cache.crop(8) logits differ by {error:.1e}; {_CACHE}")


def phases_while_decoding(s: Subject) -> None:
    """Phases with a cache are the full forward's, or asking for them is a ConfigError."""
    model, idx = s.gpt(), tokens(2, 9)
    full, cache = model(idx, return_phase=True).phase, model.new_cache()
    try:
        parts = [model(t, cache=cache, return_phase=True).phase for t in idx.split([6, 1, 2], 1)]
    except ConfigError as error:
        need("cache" in str(error), f"phases with a cache are refused without saying so: {error}")
        return
    for layer, phase in full.items():
        for name, expected in phase._asdict().items():
            joined = torch.cat([getattr(part[layer], name) for part in parts], 1)
            close(joined, expected, f"{name} while decoding is not the full forward's", atol=1e-5)


# --- phases ----------------------------------------------------------------------------------


def order_parameter(s: Subject) -> None:
    """R of forward is the layer's order_parameter of its phases, over the axis that it names."""
    layer, x_BTD = _with_phases(s), torch.randn(2, 40, 16, dtype=torch.float64)
    with torch.no_grad():
        theta, R = layer(x_BTD, return_phase=True).phase
        close(layer.order_parameter(theta), R, "order_parameter(theta) is not R of forward; one "
              "method of the layer must give both", atol=1e-9)  # fmt: skip
        restricted = layer(x_BTD, return_phase="coupling").phase
        close(tuple(restricted), (theta, R), 'return_phase="coupling" gives other phases; it is '
              "their gradient alone that differs", atol=1e-9)  # fmt: skip
    axis = "prefix" if R.dim() == 4 else "oscillators"
    need(layer.coupled_axis == axis, f"coupled_axis is {layer.coupled_axis}, and R is {axis}'s; "
         f"set coupled_axis = {axis!r}")  # fmt: skip


def trajectory(s: Subject) -> None:
    """The trajectory ends in the phases and the R of forward, and its path leads there."""
    layer, x_BTD = _with_phases(s), torch.randn(2, 40, 16, dtype=torch.float64)
    link: Any = roughen(s.gpt()).double().link
    with torch.no_grad():
        handed = {} if link is None else {"carry": link(x_BTD, layer(x_BTD).carry)}
        found = layer.trajectory(x_BTD, return_path=True, **handed)
        if found is None:
            raise NotApplicable("no trajectory, so interpretation and phase_monitor show nothing")
        theta, R = layer(x_BTD, return_phase=True, **handed).phase
    close(found.theta, theta, "the trajectory does not end in the phases of forward", atol=1e-9)
    if not layer.leaky:
        close(found.R[..., -1], R, "the last R of the trajectory is not R of forward", atol=1e-9)
    need(found.path is not None, "trajectory(return_path=True) has no path")
    path: Any = found.path
    need(path.shape == (found.steps + 1, *theta.shape), f"path is {list(path.shape)}; it must be "
         "[S+1,B,T,H,N]")  # fmt: skip
    close(path[0], found.theta0, "the path does not begin in theta0", atol=1e-9)
    close(path[-1], theta, "the path does not end in theta", atol=1e-9)
    H = found.coupling.shape
    need(H == (2,) and found.omega.shape == theta.shape[-2:], f"coupling is {list(H)} and omega "
         f"{list(found.omega.shape)}; they must be [H] and [H,N]")  # fmt: skip


def _with_phases(s: Subject) -> Any:
    layer = s.layer()
    if not layer.has_phases:
        raise NotApplicable("has_phases is False")
    return roughen(layer).double()


# --- copies and options ----------------------------------------------------------------------


def copies(s: Subject) -> None:
    """A deep copy, and a fresh model with the state_dict, give the same logits bit for bit."""
    model, idx = roughen(s.gpt()), tokens(2, 9)
    with torch.no_grad():
        logits = model(idx).logits
        again = copy.deepcopy(model)(idx).logits
        need(torch.equal(logits, again), "a deepcopy gives other logits; keep no state in closures")
        fresh = s.gpt(seed=1)
        fresh.load_state_dict(model.state_dict())
        need(
            torch.equal(logits, fresh(idx).logits),
            "a model of another seed with the same state_dict gives other logits; what is drawn "
            "must be a parameter or a registered buffer",
        )


def options_round_trip(s: Subject) -> None:
    """Options are JSON and come back as they were; unknown ones are refused, all have a meaning."""
    Config = s.layer_class.Config
    config = Config.parse(s.options)
    config.check_idle()
    again = Config.parse(json.loads(json.dumps(config.to_dict())))
    need(again == config, f"{config} comes back from its dict as {again}; see Section.to_dict")
    try:
        Config.parse({**s.options, "no_such_option": 1})
    except ConfigError:
        pass
    else:
        raise Broken(
            "Config.parse takes the key no_such_option; see phasegpt.core.sections.Section"
        )
    for f in fields(Config):
        need(
            f.metadata.get("meaning") or issubclass(Section, Config) or _is_section(Config, f.name),
            f"option {f.name} has no meaning; write {f.name}: ... = option(default, 'meaning')",
        )


def _is_section(config: Any, name: str) -> bool:
    hint: Any = hints_of(config)[name]
    return isinstance(hint, type) and issubclass(hint, Section)


def options_act(s: Subject) -> None:
    """Every option changes something: logits, weights, gradients, noise; or check_idle refuses."""
    base = _signature(s, {})
    for name, values in _changes(s):
        need(
            not values or not all(_same(_signature(s, {name: value}), base) for value in values),
            f"option {name} changes nothing when it is {', '.join(map(str, values))}; use it, or "
            f"refuse it in Config.check_idle with self.refuse_idle",
        )


def starts(s: Subject) -> None:
    """An option that says nothing but where a parameter begins is named in Attention.starts, so
    that init_from does not pass it over."""
    model = roughen(s.gpt(**s.shrunk()))
    weights, base = dict(model.named_parameters()), _behaviour(model)
    shapes = {name: p.shape for name, p in weights.items()}
    named = {k: v for m in model.blocks[1].attn.modules() if isinstance(m, Attention)
             for k, v in m.starts.items()}  # fmt: skip
    for name, values in _changes(s):
        for value in values[:2]:
            other = s.gpt(**{**s.shrunk(), name: value})
            if shapes != {k: p.shape for k, p in other.named_parameters()}:
                break
            other.load_state_dict(weights, strict=False)
            if not _same(base, _behaviour(other)):
                break
        else:
            need(not values or name in named, f"option {name} says where a parameter begins and "
                 f"nothing more; name both in {s.layer_class.__name__}.starts")  # fmt: skip


def per_position(s: Subject) -> None:
    """A layer whose parameters grow with model.block_size says per_position: it cannot be asked
    about positions beyond those that it was trained at."""
    shapes = [
        {name: p.shape for name, p in s.layer(block_size=size).named_parameters()}
        for size in (96, 97)
    ]
    found = shapes[0] != shapes[1]
    name = s.layer_class.__name__
    need(found == s.layer_class.per_position, f"{name}.per_position is not {found}, and parameters "
         f"{'depend' if found else 'do not depend'} on model.block_size; set it")  # fmt: skip


def _changes(s: Subject) -> Iterator[tuple[str, list[Any]]]:
    """Options, those of a section in a section too, and other values that may be asked for."""
    Config = s.layer_class.Config
    inner = [v for v in vars(Config.parse(s.options)).values() if isinstance(v, Section)]
    parts: list[Any] = [Config, *map(type, inner)]
    for section in parts:
        for f in fields(section):
            if "meaning" not in f.metadata:
                continue
            tried = []
            for value in _others(hints_of(section)[f.name], s.keys[f.name]):
                with suppress(ConfigError):
                    Config.parse({**s.options, f.name: value}).check_idle()
                    s.gpt(**{f.name: value})
                    tried.append(value)
            yield f.name, tried


def _others(hint: Any, value: Any) -> list[Any]:
    """Other values that an option may have."""
    hints = [hint, *get_args(hint)]
    words = [a for h in hints if get_origin(h) is Literal for a in get_args(h)]
    if bool in hints:
        words += [True, False]
    if int in hints and not isinstance(value, bool):
        words += [(value or 1) + 1, 2 * (value or 1), 1]
    if float in hints:
        words += [(value or 0.0) + 0.3, 0.5 * (value or 0.0) + 0.1, (value or 0.0) + 0.01]
    return [w for w in dict.fromkeys(words) if w != value]


def _signature(s: Subject, changed: dict[str, Any]) -> dict[str, Any]:
    """What a mechanism does with some options, by name."""
    found: dict[str, Any] = {}
    for scale in (0.0, 0.2):
        model = roughen(s.gpt(**changed), scale)
        found |= {f"{scale} {k}": v for k, v in model.state_dict().items()}
        found |= {f"{scale} {k}": v for k, v in _behaviour(model).items()}
    return found


def _behaviour(model: GPT) -> dict[str, Any]:
    """What a model does with its weights, by name: logits in both modes, and gradients."""
    idx = torch.arange(24).view(2, 12)
    found: dict[str, Any] = {"eval": model.eval()(idx).logits}
    model.train()
    model.zero_grad()
    drawn = model.draw_perturbations(NoiseKey(seed=1, step=2, sample_B=(3, 4)), 12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found["train"] = _trained(model, idx, drawn)
    return found | {f"grad {n}": p.grad for n, p in model.named_parameters()}


def _trained(model: GPT, idx: Tensor, drawn: Any) -> Tensor:
    """Logits in training; gradients are left in the model."""
    out = model(idx, perturbations=drawn, return_phase=True)
    loss = F.cross_entropy(out.logits.flatten(0, 1), idx.flatten())
    for phase in out.phase.values():
        loss = loss + phase.R.square().mean()
    loss.backward()
    return out.logits


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two signatures agree bit for bit."""
    if a.keys() != b.keys():
        return False
    for name, x in a.items():
        y = b[name]
        if (x is None) != (y is None):
            return False
        if x is not None and not (x.shape == y.shape and torch.equal(x, y)):
            return False
    return True
