"""An optimizer's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from phasegpt.attention import Attention, Link
from phasegpt.core import targets
from phasegpt.core.errors import ConfigError
from phasegpt.training.optimizer_config import OptimizerConfig, OwnConfig, ScheduledConfig
from phasegpt.training.optimizers import Lion, MuonAdamW, ScheduleFree

#: Optimizers that are fused on a GPU, so that they skip a bad gradient there; see finite.
SKIP_ON_DEVICE = ("adamw", "sgd")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Groups for any optimizer: matrices decay, vectors do not, oscillator parameters never.

    Oscillator parameters take lr * oscillator_lr_factor * their own factor (Attention.lr_factors).
    With Muon every group says its `rule`: muon for the matrices of blocks and link, else adamw.
    """
    factors: dict[int, float] = {}
    for module in model.modules():
        if isinstance(module, (Attention, Link)):
            own = dict(module.named_parameters())
            for name, factor in module.lr_factors.items():
                if own.get(name) is not None:
                    factors[id(own[name])] = factor * config.oscillator_lr_factor
    body = [*getattr(model, "blocks", ()), getattr(model, "link", None)]
    parts = [part for part in body if part is not None] if config.name == "muon" else []
    turned = {
        id(p) for part in parts for p in part.parameters() if p.dim() == 2 and id(p) not in factors
    }
    groups: dict[tuple[float, float, str], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        oscillator = id(parameter) in factors
        decay = config.weight_decay if parameter.dim() >= 2 and not oscillator else 0.0
        rule = "muon" if id(parameter) in turned else "adamw"
        groups[factors.get(id(parameter), 1.0), decay, rule].append(parameter)
    return [
        {"params": members, "lr": config.lr * factor, "weight_decay": decay}
        | ({"rule": rule} if config.name == "muon" else {})
        for (factor, decay, rule), members in sorted(groups.items(), key=_order)
    ]


def _order(item: tuple[tuple[float, float, str], Any]) -> tuple[bool, float, float, str]:
    """The groups of plain parameters first: the first group's lr is the one that is logged."""
    (factor, decay, rule), _ = item
    return factor != 1.0, factor, decay, rule


def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """The optimizer that `config`, a section of OPTIMIZERS, names, over `parameter_groups`."""
    groups = parameter_groups(model, config)
    own = {f.name: getattr(config, f.name) for f in fields(config)}
    adam: dict[str, Any] = {key: own[key] for key in ("lr", "betas", "eps") if key in own}
    match config.name:
        case "adamw":
            return torch.optim.AdamW(groups, **adam, fused=True)
        case "sgd":
            momentum = {key: own[key] for key in ("momentum", "nesterov")}
            fused = next(model.parameters()).is_cuda  # on a CPU it rounds otherwise
            return torch.optim.SGD(groups, lr=config.lr, fused=fused, **momentum)
        case "muon":
            muon = {key: own[key] for key in ("lr", "momentum", "nesterov", "ns_steps")}
            muon["adjust_lr_fn"] = "match_rms_adamw"
            return MuonAdamW(groups, muon=muon, adamw={**adam, "fused": True})
        case "lion":
            return Lion(groups, **adam)
        case "adafactor":
            return torch.optim.Adafactor(
                groups, lr=config.lr, beta2_decay=config.beta2_decay, d=config.clip,
                eps=(None, config.min_scale),
            )  # fmt: skip
        case "schedule_free":
            return ScheduleFree(groups, **adam)
        case "own":
            return _own_optimizer(groups, config)
    raise AssertionError(config.name)


def _own_optimizer(groups: list[dict], config: OwnConfig) -> torch.optim.Optimizer:
    optimizer = targets.made("optimizer", config.node, torch.optim.Optimizer, groups, lr=config.lr)
    if config.weight_decay and "weight_decay" not in optimizer.defaults:
        raise ConfigError(
            f"optimizer.weight_decay={config.weight_decay}, but {config.target} has no "
            f"weight_decay among the defaults of its groups ({', '.join(optimizer.defaults)}); set "
            f"it to 0"
        )
    if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
        raise ConfigError(
            f"optimizer._target_={config.target} has one set of weights for steps and another for "
            f"validation, between which nothing here switches it; use optimizer=schedule_free"
        )
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, max_steps: int
) -> LRScheduler:
    """The learning rates of `config` over an optimizer, stepped after each of its steps."""
    own = getattr(config, "schedule", "")
    if isinstance(own, str):
        return LambdaLR(optimizer, schedule(config, max_steps))
    found = targets.made("optimizer.schedule", own, LRScheduler, optimizer)
    if isinstance(found, ReduceLROnPlateau):
        raise ConfigError(
            f"optimizer.schedule: {own['_target_']} follows a metric; a schedule here is stepped "
            f"once per optimizer step, and sees nothing else"
        )
    return found


def check_own(config: OptimizerConfig) -> None:
    """Try one step of an optimizer and a schedule of the user's own on two parameters; ConfigError.

    What cannot be imported or called, or cannot be restored from a checkpoint, is known before a
    run begins. The optimizers and schedules of PhaseGPT need no trial.
    """
    if config.name != "own" and isinstance(getattr(config, "schedule", ""), str):
        return
    pair = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    if isinstance(config, OwnConfig):
        decays = (config.weight_decay, 0.0)
        groups = [
            {"params": [p], "lr": config.lr, "weight_decay": decay}
            for p, decay in zip(pair, decays, strict=True)
        ]
        optimizer = _own_optimizer(groups, config)
    else:
        optimizer = torch.optim.SGD(pair, lr=config.lr)
    scheduler = build_schedule(optimizer, config, 1)
    _try(optimizer, scheduler, pair, config)
    for name, state in {
        "optimizer": optimizer.state_dict(),
        "optimizer.schedule": scheduler.state_dict(),
    }.items():
        buffer = io.BytesIO()
        try:
            torch.save(state, buffer)
            buffer.seek(0)
            torch.load(buffer, weights_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{name}: its state_dict() cannot be restored from a checkpoint, which holds "
                f"tensors and plain values alone ({reason:.300}); leave other things out of it"
            ) from error


def _try(
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    parameters: Sequence[nn.Parameter],
    config: OptimizerConfig,
) -> None:
    """One step as in a training; ConfigError for what fails there."""
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    what = f"optimizer._target_={config.target}" if isinstance(config, OwnConfig) else "optimizer"
    try:
        optimizer.step(closure=lambda: 0.0)
        what = "optimizer.schedule"
        scheduler.step()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{what} fails at its first step ({reason:.300}); it must work with dense gradients, "
            f"in several parameter groups"
        ) from error


def schedule(config: OptimizerConfig, max_steps: int) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear warm-up over w steps, then one of

    - cosine, linear: from 1 to min_lr / lr, at step max_steps.
    - wsd (warm-up, stable, decay; arXiv 2404.06395): 1, at last linear to min_lr / lr.
    - inverse_sqrt: sqrt(w / (k + 1)) (arXiv 1706.03762), with w = 1 where there is no warm-up.
    - constant: 1.

    The factor of step k is used by the update that follows k earlier ones.
    """
    warmup = start = config.warmup_steps
    kind, floor = "constant", 1.0
    if isinstance(config, ScheduledConfig):
        assert isinstance(config.schedule, str)
        kind, floor = config.schedule, config.min_lr / config.lr
        if kind == "wsd":
            start = max(warmup, max_steps - (config.decay_steps or math.ceil(max_steps / 5)))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if kind == "constant":
            return 1.0
        if kind == "inverse_sqrt":
            return math.sqrt(max(1, warmup) / (step + 1))
        progress = min(1.0, max(0, step - start) / max(1, max_steps - start))
        if kind == "cosine":
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        return floor + (1 - floor) * (1 - progress)

    return factor
