"""Optimizers that torch does not have: Lion, Muon with AdamW, schedule-free AdamW.

All of an optimizer's state is in its `state_dict`; loading it goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class _Plain(Optimizer):
    """An optimizer whose step is a rule per parameter."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; returns the closure's loss."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        self._update()
        return loss

    def _update(self) -> None:
        raise NotImplementedError

    def _moved(self) -> Iterator[tuple[dict[str, Any], Tensor, dict[str, Any]]]:
        """Every parameter with a gradient: its group, itself and its state."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    yield group, p, self.state[p]


class Lion(_Plain):
    """The sign of an average of gradient and momentum; arXiv 2302.06675, algorithm 2.

    With m the momentum and g the gradient: p -= lr (sign(b1 m + (1 - b1) g) + decay p), then
    m = b2 m + (1 - b2) g.
    """

    def __init__(self, groups: list[dict], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    def _update(self) -> None:
        for group, p, state in self._moved():
            if not state:
                state["momentum"] = torch.zeros_like(p)
            momentum, (b1, b2) = state["momentum"], group["betas"]
            direction = momentum.lerp(p.grad, 1 - b1).sign_()
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
            momentum.lerp_(p.grad, 1 - b2)


class MuonAdamW(_Plain):
    """Two of torch's optimizers as one: every group's `rule` says which of them moves it.

    Groups and state are this optimizer's; the two are lent them for a step.
    """

    def __init__(self, groups: list[dict], *, muon: dict[str, Any], adamw: dict[str, Any]) -> None:
        """Arguments of torch.optim.Muon and torch.optim.AdamW; groups have lr and weight_decay."""
        super().__init__(groups, {})
        self._rules: dict[str, Optimizer] = {}
        for name, kind, arguments in (("muon", Muon, muon), ("adamw", AdamW, adamw)):
            own = [group for group in self.param_groups if group["rule"] == name]
            self._rules[name] = kind(own, **arguments)

    def _update(self) -> None:
        for name, rule in self._rules.items():
            rule.param_groups = [group for group in self.param_groups if group["rule"] == name]
            rule.state = self.state
            rule.step()


class ScheduleFree(_Plain):
    """Schedule-free AdamW, arXiv 2405.15682, algorithm 1.

    Gradients are taken at y = (1 - b1) z + b1 x, where z is the path and x its mean, weighted by
    the square of the largest learning rate so far. The parameters are x but between `look_ahead`
    and `step`, where they are y: what is validated, saved and loaded needs no switch.
    """

    def __init__(
        self, groups: list[dict], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._ahead = False

    @torch.no_grad()
    def look_ahead(self) -> None:
        """Move the parameters from x to y, before the first gradient of a step."""
        for group in () if self._ahead else self.param_groups:
            for p in group["params"]:
                if "z" in self.state[p]:  # before the first step x is z
                    p.lerp_(self.state[p]["z"], 1 - group["betas"][0])
        self._ahead = True

    def _update(self) -> None:
        if not self._ahead:
            raise RuntimeError("call look_ahead() before the gradients of a step are computed")
        for group, p, state in self._moved():
            (b1, b2), lr = group["betas"], group["lr"]
            if not state:
                state["z"], state["second"] = p.clone(), torch.zeros_like(p)
                for name in ("updates", "lr_max", "weight_sum"):
                    state[name] = p.new_zeros(())
            z, second = state["z"], state["second"]

            # The gradient's direction at y, by Adam's second moment; decay at y.
            state["updates"] += 1
            second.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            root = second.div(1 - b2 ** state["updates"]).sqrt_().add_(group["eps"])
            direction = (p.grad / root).add_(p, alpha=group["weight_decay"])

            # Back to x; then a step of z, of which x takes its share.
            p.lerp_(z, 1 - 1 / b1)
            z.sub_(direction, alpha=lr)
            weight = state["lr_max"].clamp_(min=lr).square()
            state["weight_sum"] += weight
            p.lerp_(z, weight / state["weight_sum"].clamp(min=1e-30))
        self._ahead = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; the parameters that belong to it are x."""
        super().load_state_dict(state_dict)
        self._ahead = False
