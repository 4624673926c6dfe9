"""`hybrid`: a blend of softmax attention and a phase mechanism in one layer.

    y = (1 - g) softmax(x) + g partner(x), g one number per layer, learned or fixed.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args, get_type_hints

import torch
from torch import Tensor, nn

from phasegpt.attention import (
    Attention,
    AttentionConfig,
    AttentionOutput,
    Flops,
    LayerShape,
    Off,
    ReturnPhase,
    Trajectory,
    build,
    layer_class,
)
from phasegpt.attention._cache import LayerCache
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, option, unknown
from phasegpt.phase.steering import NoiseKey, Perturbation


@dataclass(frozen=True, kw_only=True)
class HybridConfig(AttentionConfig):
    """Options of `hybrid`; every other key is an option of the partner."""

    partner: Literal["kuramoto", "phase_sync", "as_coded"] = option(
        "kuramoto", "the mechanism to blend in"
    )
    blend: float = option(
        0.5, "g, share of the partner at the start; 0 is softmax, 1 the partner", ge=-1e6, le=1e6
    )
    learn_blend: bool = option(True, "false: g stays as it is")
    partner_options: Section = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """The partner has its defaults where nothing else is given."""
        super().__post_init__()
        if self.partner_options is None:
            object.__setattr__(self, "partner_options", layer_class(self.partner).Config())

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Split the keys between the blend and its partner, and check both."""
        own = {f.name for f in fields(cls)} - {"partner_options"}
        mine = cls(**{k: v for k, v in values.items() if k in own})
        partner = layer_class(mine.partner).Config
        theirs = {k: v for k, v in values.items() if k not in own}
        names = [*own, *(f.name for f in fields(partner))]
        for key in theirs:
            if key in _of_others(mine.partner) and key not in names:
                raise ConfigError(
                    f"attention.{key} is no option of the partner {mine.partner}; name both on the "
                    f"command line, attention=hybrid attention.partner={mine.partner}, which then "
                    f"begins with the partner's own options (to sweep over partners sweep over "
                    f"attention=hybrid,hybrid_phase_sync)"
                )
            if key not in names:
                raise ConfigError(unknown(f"attention.{key}", [f"attention.{n}" for n in names]))
        return replace(mine, partner_options=partner.parse(theirs))

    def to_dict(self) -> dict[str, Any]:
        """The blend's options and the partner's, side by side."""
        own = super().to_dict()
        return {**own.pop("partner_options"), **own}


def _of_others(partner: str) -> set[str]:
    """Names of options that another partner has."""
    others = {*get_args(get_type_hints(HybridConfig)["partner"])} - {partner}
    return {f.name for other in others for f in fields(layer_class(other).Config)}


class Hybrid(Attention):
    """Softmax and `partner` side by side, blended; blend = 0 equals softmax exactly."""

    Config = HybridConfig
    options: HybridConfig
    has_phases = True
    off = Off({"blend": 0.0}, "softmax", decisive={"coupling": 0.0, "learn_coupling": False})
    lr_factors: ClassVar[Mapping[str, float]] = {"blend": 1.0}
    starts: ClassVar[Mapping[str, str]] = {"blend": "blend"}

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Both layers, and the blend."""
        super().__init__(config, options, layer)
        self.softmax = build("softmax", config, None, layer)
        self.partner = build(self.options.partner, config, self.options.partner_options, layer)
        self.leaky, self.coupled_axis = self.partner.leaky, self.partner.coupled_axis
        theirs = (f"partner.{part}" for part in self.partner.softmax_parts)
        self.softmax_parts = ("softmax.", *theirs)
        blend = torch.tensor(self.options.blend)
        if self.options.learn_blend:
            self.blend = nn.Parameter(blend)
        else:
            self.register_buffer("blend", blend)

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """Initialise the partner and the blend."""
        self.partner.reset_oscillators(generator)
        nn.init.constant_(self.blend, self.options.blend)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """See Attention.forward; the phases are the partner's."""
        soft_cache = None if cache is None else cache.child("softmax")
        partner_cache = None if cache is None else cache.child("partner")
        soft = self.softmax(x_BTD, cache=soft_cache).y
        other = self.partner(
            x_BTD, cache=partner_cache, perturbation=perturbation, return_phase=return_phase
        )
        return AttentionOutput(soft + self.blend * (other.y - soft), other.phase)

    def draw_perturbation(
        self, key: NoiseKey, time: int, device: torch.device
    ) -> Perturbation | None:
        """The partner's."""
        return self.partner.draw_perturbation(key, time, device)

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """The partner's."""
        return self.partner.order_parameter(theta_BTHN)

    def flops(self, time: int) -> Flops:
        """Those of both layers."""
        return Flops.sum((self.softmax.flops(time), self.partner.flops(time)))

    def drift(self, time: int) -> Tensor | None:
        """The partner's."""
        return self.partner.drift(time)

    def trajectory(self, x_BTD: Tensor, *, return_path: bool = False) -> Trajectory | None:
        """The partner's."""
        return self.partner.trajectory(x_BTD, return_path=return_path)
