"""The contract of an attention layer: what it is given, what it returns, what it declares.

phasegpt.model.contract holds every rule as a check: tests/attention runs them over every YAML,
`python -m phasegpt.check NAME` over any mechanism.

Shapes: B batch, T time, D model width, H heads, N oscillators, S steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from phasegpt.attention._cache import LayerCache
from phasegpt.core.sections import Section
from phasegpt.phase import first_prefix, order_parameter
from phasegpt.phase.steering import NoiseKey, Perturbation


class LayerShape(Protocol):
    """What a layer needs to know of its GPT; phasegpt.model.config.GPTConfig has it all."""

    @property
    def n_head(self) -> int:
        """H."""

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, where there are some."""

    @property
    def n_embd(self) -> int:
        """D."""

    @property
    def block_size(self) -> int:
        """T at most."""

    @property
    def bias(self) -> bool:
        """Whether linear maps have one."""

    @property
    def dropout(self) -> float:
        """Probability."""

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have the mechanism, in order."""

    @property
    def positions(self) -> str:
        """learned, or rope: rotary, which each layer does itself."""

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies."""


#: What Attention.forward is asked for: no phases, phases, or "coupling": the same phases, whose
#: gradient reaches the coupling and what differs between the tokens of a sequence, but nothing
#: that its tokens share (phase.bias, omega, the token mean of theta(0)): such offsets can give R
#: any value without coupling, and cancel where two tokens are compared. It costs a second
#: integration.
ReturnPhase = bool | Literal["coupling"]


class Phase(NamedTuple):
    """Phases of one layer after the last step, and their order parameter.

    `R` is over the oscillators of a token and head, [B,T,H] (kuramoto), or over the prefix of a
    channel, [B,T,H,N] (phase_sync).
    """

    theta: Tensor  # [B,T,H,N], radians, not wrapped
    R: Tensor


class Trajectory(NamedTuple):
    """The path of one layer's phases from theta0 through S steps of dt to theta, without noise.

    `R` is that of the field that pulls the phases, before every step and after the last: over the
    oscillators of a token and head, [B,T,H,S+1], or over the prefix of a channel with the weights
    it has there, [B,T,H,N,S+1]. `order_parameter` is the layer's.
    """

    theta0: Tensor  # [B,T,H,N], radians, not wrapped
    theta: Tensor  # [B,T,H,N]
    R: Tensor
    omega: Tensor  # [H,N], radians per unit time
    coupling: Tensor  # [H]
    dt: float
    order_parameter: Callable[[Tensor], Tensor]
    path: Tensor | None = None  # [S+1,B,T,H,N] before every step and after the last, if asked
    free: Tensor | None = None  # the path without coupling, where more than omega moves phases
    drift: Tensor | None = None  # see Attention.drift

    @property
    def steps(self) -> int:
        """S."""
        return self.R.shape[-1] - 1

    @property
    def over_prefix(self) -> bool:
        """Whether it is the tokens of a prefix that are coupled, not the oscillators of a head."""
        return self.R.dim() == self.theta.dim() + 1


class AttentionOutput(NamedTuple):
    """What a layer returns: its contribution to the residual stream, and its phases if asked.

    `carry` is the state that goes from layer to layer, see Link; None from layers without one,
    past which it goes unchanged.
    """

    y: Tensor  # [B,T,D]
    phase: Phase | None = None
    carry: Tensor | None = None


class Off(NamedTuple):
    """The off control of a mechanism: the options that turn it off, and what the layer then is.

    "softmax": softmax attention with the same projections. "alone": no token sees another.
    "uniform": the mean of the same values over the prefix. "own": another layer, which tests of
    the mechanism's own compare. `positions`: the model.positions with which it is so, if one alone.
    `decisive`: the options of the control that credits the coupling, where it is another: one that
    leaves all but the pull as it is, or whose switch is not learned away in training.
    """

    options: Mapping[str, Any]
    equals: Literal["softmax", "alone", "uniform", "own"]
    positions: str | None = None
    decisive: Mapping[str, Any] | None = None


class Flops(NamedTuple):
    """Forward FLOPs of one token in a layer of T tokens, as they run; a multiply-add is two.

    What torch.utils.flop_counter counts, matrix products, is weights + mixing; elementwise work
    is a rough count beside it.
    """

    weights: float  # linear maps of the token by itself
    mixing: float  # between tokens, with all T keys: what a kernel without skipping computes
    causal: float  # the same with the keys before it and its own: (T + 1) / 2 on average
    elementwise: float = 0.0  # sines, exponentials, sums: not matrix products

    @classmethod
    def of(cls, weights: float, per_pair: float, time: int, elementwise: float = 0.0) -> Flops:
        """From FLOPs of one pair of tokens, summed over heads."""
        return cls(weights, per_pair * time, per_pair * (time + 1) / 2, elementwise)

    @classmethod
    def sum(cls, parts: Iterable[Flops]) -> Flops:
        """Those of several parts of a model."""
        return cls(*map(sum, zip(*parts, strict=True)))

    @property
    def products(self) -> float:
        """All matrix products, with all T keys: what torch.utils.flop_counter counts."""
        return self.weights + self.mixing

    @property
    def causal_products(self) -> float:
        """The same with the keys before a token and its own alone."""
        return self.weights + self.causal

    @classmethod
    def preceding(
        cls, weights: float, per_pair: float, time: int, elementwise: float = 0.0
    ) -> Flops:
        """The same where a token sees those before it alone, and the first one none."""
        mixing = per_pair * (time - 1) ** 2 / time
        return cls(weights, mixing, per_pair * (time - 1) / 2, elementwise)


class Link(nn.Module, ABC):
    """What a mechanism does between its blocks with the state they carry from layer to layer.

    A GPT whose layers name it in `Attention.link` makes one, shared by all of them, as
    `transformer.link`. It runs after every block of the mechanism but the last one; a layer
    gets what it returns as `carry`, None in the first one, and returns the state for the next call.
    """

    #: As Attention.lr_factors.
    lr_factors: ClassVar[Mapping[str, float]] = {}

    def __init__(self, config: LayerShape, options: Section) -> None:
        """From the same sizes and options as the layers."""
        super().__init__()

    @abstractmethod
    def forward(self, x_BTD: Tensor, carry: Tensor, *, cache: LayerCache | None = None) -> Tensor:
        """What the next layer of the mechanism is handed, [B,T,...], from the block's output x and
        the state that its layer returned, causally; a cache holds what it needs of the past."""

    def reset(self, generator: Callable[[str], torch.Generator]) -> None:
        """Initialise what GPT-2's rule must not touch; `generator(name)` is keyed by name."""

    def flops(self, time: int) -> Flops:
        """FLOPs of one call, see Flops."""
        return Flops(linear_flops(self), 0.0, 0.0)


def linear_flops(module: nn.Module) -> float:
    """2 for each weight of the linear maps in a module."""
    return 2.0 * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Section):
    """Base of a mechanism's options: a frozen dataclass of fields `option(...)`, or none."""

    section: ClassVar[str] = "attention"


class Attention(nn.Module, ABC):
    """Base of every attention layer. Subclasses set Config and implement forward."""

    #: Options of the mechanism; conf/attention/NAME.yaml holds the same defaults.
    Config: ClassVar[type[AttentionConfig]] = AttentionConfig
    #: Learning-rate factors of oscillator parameters by name; these are also never decayed.
    lr_factors: ClassVar[Mapping[str, float]] = {}
    #: Options that say nothing but where a learned parameter begins: name of each, and parameter's.
    starts: ClassVar[Mapping[str, str]] = {}
    #: Whether `forward` has phases to return; without, what acts on phases is refused by name.
    has_phases: bool = False
    #: Its off control; a mechanism without one cannot be told from what it is compared with.
    off: ClassVar[Off | None] = None
    #: A layer that sees the future says so; its runs are marked leaky and stay off leaderboards.
    leaky: bool = False
    #: False for a control that mixes no tokens, or mixes them whatever their order.
    mixes: bool = True
    knows_order: bool = True
    #: Whether it turns by rotary angles, of rope_theta, whatever model.positions says.
    own_rotary: bool = False
    #: Whether parameters belong to positions: beyond those it was trained at it can do nothing.
    per_position: bool = False
    #: Parameters without a gradient at the start, at GPT-2's width: of a named, dead control.
    dead: ClassVar[tuple[str, ...]] = ()
    #: What runs between the blocks of a mechanism whose layers hand a state on; `forward` then
    #: takes `carry=`, None in the first of them, and returns it, see Link.
    link: ClassVar[type[Link] | None] = None
    #: Over what the phases are coupled, and `Phase.R` is taken: "oscillators" or "prefix".
    coupled_axis: str = "oscillators"
    #: How far bf16 autocast may move a phase, radians: more where attention in bf16 moves phases.
    phase_error: float = 1e-5
    #: Where GPT-2's c_attn and c_proj belong in this layer: prefixes of their names there, ("",)
    #: for its own; none where it has no use for them.
    softmax_parts: tuple[str, ...] = ()

    def __init__(self, config: LayerShape, options: AttentionConfig, layer: int) -> None:
        """Keep the shapes; `layer` is the 0-based index, part of the noise key."""
        super().__init__()
        self.options, self.layer = options, layer
        self.n_head, self.n_embd = config.n_head, config.n_embd
        self.head_width = config.n_embd // config.n_head
        self.rope, self.rope_theta = config.positions == "rope", config.rope_theta
        self.dropout = config.dropout

    @abstractmethod
    def forward(
        self,
        x_BTD: Tensor,
        *,
        cache: LayerCache | None = None,
        perturbation: Perturbation | None = None,
        return_phase: ReturnPhase = False,
    ) -> AttentionOutput:
        """Mix tokens causally. With `cache`, x continues the tokens the cache has seen."""

    @classmethod
    def phased(cls, options: Section) -> bool:
        """has_phases of a layer with these options, where it depends on them."""
        return cls.has_phases

    def reset_oscillators(self, generator: Callable[[str], torch.Generator]) -> None:
        """Initialise what GPT-2's rule must not touch; `generator(name)` is keyed by name."""

    def draw_perturbation(
        self, key: NoiseKey, time: int, device: torch.device
    ) -> Perturbation | None:
        """Training noise of the layer's `oscillators` for one batch, or None."""
        oscillators = getattr(self, "oscillators", None)
        if oscillators is None:
            return None
        return oscillators.draw_perturbation(key, self.layer, time, device)

    def order_parameter(self, theta_BTHN: Tensor) -> Tensor:
        """R of any phases over what this layer couples, differentiable: see `Phase.R`.

        The one definition: forward, trajectories, penalties, diagnostics and pictures take it from
        here. `LayerCache.order_parameter` is that of the stored phases at the newest token: where a
        prefix is coupled those that pull, before the last step.
        """
        return order_parameter(theta_BTHN)

    def first_token(self, time: int) -> int:
        """Index of the first of `time` tokens whose R counts: a short prefix agrees by chance."""
        return first_prefix(time) if self.coupled_axis == "prefix" else 0

    def flops(self, time: int) -> Flops:
        """FLOPs of one token among `time`, see Flops; here its linear maps and softmax's mixing."""
        return Flops.of(linear_flops(self), 4.0 * self.n_embd, time)

    def drift(self, time: int) -> Tensor | None:
        """The rotary drift of tokens 1..T, [T,1,N], if phases hold one that the readout takes off.

        R is of phases with it; what phases tell of their tokens is of phases without.
        """
        return None

    def trajectory(self, x_BTD: Tensor, *, return_path: bool = False) -> Trajectory | None:
        """The path of the phases for the layer's input x, or None where there is none to show.

        `return_path`: with the phases at every step. A layer with a link takes `carry=` too.
        """
        return None
