"""The `optimizer` group: one section per optimizer, with the schedule that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, cast

from phasegpt.core import targets
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import REQUIRED, Section, option, shown, unknown

#: The order in which a group is written; an optimizer's own keys follow, before the last.
_FIRST = ("name", "lr", "min_lr", "warmup_steps", "schedule", "decay_steps", "weight_decay")
_LAST = "oscillator_lr_factor"
#: Schedules that end at min_lr.
_FALLING = ("cosine", "linear", "wsd")


def _betas(first: float, second: float) -> Any:
    form = f"two numbers in [0,1), like [{first},{second}]"
    return option((first, second), "decay of the two moments", form=form)


def _weight_decay(default: float) -> Any:
    meaning = "of matrices; oscillator parameters are never decayed"
    return option(default, meaning, ge=0, le=1000)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """What every optimizer has: a learning rate with linear warm-up in optimizer steps, and decay.

    `parse` gives the section of the optimizer that is named; a group without a name, as runs
    before there was a choice have it, is AdamW's, and AdamW's is written without one.
    """

    section: ClassVar[str] = "optimizer"
    name: str = option(REQUIRED, "the optimizer")
    lr: float = option(REQUIRED, "learning rate after the warm-up, at least 1e-12", gt=0, le=1000)
    warmup_steps: int = option(100, "optimizer steps of linear growth; 0: none", ge=0)
    weight_decay: float = _weight_decay(0.1)
    oscillator_lr_factor: float = option(
        1.0, "multiplies the learning rate of oscillator parameters", ge=0, le=1e6
    )

    def __post_init__(self) -> None:
        """Check betas and the learning rate."""
        super().__post_init__()
        betas = getattr(self, "betas", (0.0, 0.0))
        if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
            allowed = type(self).__dataclass_fields__["betas"].metadata["form"]
            raise ConfigError(f"optimizer.betas={list(betas)} must be {allowed}")
        if self.lr < 1e-12:
            raise ConfigError(
                f"optimizer.lr={self.lr} trains nothing: steps so small are lost in float32; it "
                f"must be >= 1e-12"
            )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Any:
        """From the group's keys, those of an old record too; ConfigError."""
        if cls is not OptimizerConfig:
            return super().parse(values)
        name = values.get("name", "adamw")
        if name != "own" and "_target_" in values:
            raise ConfigError(
                f"optimizer._target_={shown(values['_target_'])} beside optimizer={shown(name)}, "
                f"whose keys are not its keys; use optimizer=own optimizer._target_=..."
            )
        if not isinstance(name, str) or name not in OPTIMIZERS:
            said = name if isinstance(name, str) else shown(name)
            raise ConfigError(unknown(f"optimizer={said}", [f"optimizer={n}" for n in OPTIMIZERS]))
        return OPTIMIZERS[name].parse(values)

    def to_dict(self) -> dict[str, Any]:
        """The group's keys, but those at rest that runs before there was a choice did not have."""
        own = super().to_dict()
        if self.name == "adamw":
            del own["name"]
        if own.get("schedule") != "wsd":
            own.pop("decay_steps", None)
        order = [*(key for key in _FIRST if key in own), *own]  # of two, the first place counts
        return {key: own[key] for key in dict.fromkeys(order) if key != _LAST} | {_LAST: own[_LAST]}


@dataclass(frozen=True, kw_only=True)
class ScheduledConfig(OptimizerConfig):
    """An optimizer whose learning rate follows a schedule after the warm-up."""

    min_lr: float = option(0.0, "where cosine, linear and wsd end", ge=0)
    schedule: Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"] | dict[str, Any] = (
        option("cosine", "of the learning rate afterwards; with _target_ your own, warm-up and all")
    )
    decay_steps: int | None = option(
        None, "wsd: last optimizer steps, of linear fall; null: a fifth of the run", ge=1
    )

    def __post_init__(self) -> None:
        """Also check the learning rates' order and a schedule of one's own."""
        super().__post_init__()
        if not isinstance(self.schedule, str):
            targets.checked("optimizer.schedule", self.schedule)
        if self.min_lr > self.lr:
            raise ConfigError(
                f"optimizer.min_lr={self.min_lr} is above optimizer.lr={self.lr}; lower it"
            )

    def check_idle(self) -> None:
        """See Section.check_idle."""
        if not isinstance(self.schedule, str):
            why = f"beside a schedule of your own ({self.schedule['_target_']})"
            rest = type(self).__dataclass_fields__["warmup_steps"].default
            if self.warmup_steps not in (0, rest):
                raise ConfigError(
                    f"optimizer.warmup_steps={self.warmup_steps} does nothing {why}, which warms "
                    f"up by itself; set it to 0"
                )
            self.refuse_idle(False, why, "min_lr", "decay_steps")
            return
        self.refuse_idle(self.schedule in _FALLING, "schedule", "min_lr")
        self.refuse_idle(self.schedule == "wsd", "schedule", "decay_steps")


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(ScheduledConfig):
    """AdamW (arXiv 1711.05101)."""

    name: Literal["adamw"] = option("adamw", "the optimizer")
    betas: tuple[float, ...] = _betas(0.9, 0.95)
    eps: float = option(1e-8, "added to the root of the second moment", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class SGDConfig(ScheduledConfig):
    """Gradient descent with momentum; the decay is added to the gradient."""

    name: Literal["sgd"] = option("sgd", "the optimizer")
    weight_decay: float = _weight_decay(1e-4)
    momentum: float = option(0.9, "share of the last step that goes on", ge=0, lt=1)
    nesterov: bool = option(False, "true: look ahead along the momentum")

    def check_idle(self) -> None:
        """See Section.check_idle."""
        super().check_idle()
        self.refuse_idle(self.momentum != 0, "momentum", "nesterov")


@dataclass(frozen=True, kw_only=True)
class MuonConfig(ScheduledConfig):
    """Muon for the matrices of the blocks, scaled as AdamW's steps (arXiv 2502.16982); else AdamW.

    One learning rate serves both rules.
    """

    name: Literal["muon"] = option("muon", "the optimizer")
    momentum: float = option(0.95, "Muon: share of the last step that goes on", ge=0, lt=1)
    nesterov: bool = option(True, "Muon: true: look ahead along the momentum")
    ns_steps: int = option(5, "Muon: iterations that make a step orthogonal", ge=1, le=99)
    betas: tuple[float, ...] = _betas(0.9, 0.95)
    eps: float = option(1e-8, "AdamW: added to the root of the second moment", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class LionConfig(ScheduledConfig):
    """Lion (arXiv 2302.06675): steps are signs; less lr and more decay than AdamW."""

    name: Literal["lion"] = option("lion", "the optimizer")
    weight_decay: float = _weight_decay(0.3)
    betas: tuple[float, ...] = _betas(0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class AdafactorConfig(ScheduledConfig):
    """Adafactor (arXiv 1804.04235): lr is a share of a parameter's own size, at most 1/sqrt(step).

    Second moments are kept by row and column.
    """

    name: Literal["adafactor"] = option("adafactor", "the optimizer")
    weight_decay: float = _weight_decay(0.0)
    beta2_decay: float = option(-0.8, "power of the step in the second moment's decay", le=0)
    clip: float = option(1.0, "root mean square to which a step is clipped", ge=1)
    min_scale: float = option(1e-3, "least size of a parameter, for its steps", gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeConfig(OptimizerConfig):
    """Schedule-free AdamW (arXiv 2405.15682): weights are the mean of the path, no schedule.

    Validated and saved are these means; the gradient is taken between mean and path.
    """

    name: Literal["schedule_free"] = option("schedule_free", "the optimizer")
    betas: tuple[float, ...] = _betas(0.9, 0.95)
    eps: float = option(1e-8, "added to the root of the second moment", gt=0, le=1)

    def __post_init__(self) -> None:
        """Also refuse a first beta of 0: the gradient's place would say nothing of the mean."""
        super().__post_init__()
        if self.betas[0] == 0:
            raise ConfigError(f"optimizer.betas={list(self.betas)} must have a first beta above 0")


@dataclass(frozen=True, kw_only=True)
class OwnConfig(ScheduledConfig):
    """An optimizer of your own: the torch.optim.Optimizer that `_target_` names.

    It is called with the parameter groups, which have their lr and weight_decay, and with lr and
    all further keys of the group, such as +optimizer.betas=[0.9,0.95].
    """

    name: Literal["own"] = option("own", "the optimizer")
    target: str | None = option(None, "dotted name of its class, such as torch.optim.RAdam")
    weight_decay: float = _weight_decay(0.0)
    arguments: dict[str, Any] = field(
        default_factory=dict, metadata={"meaning": "its own arguments, by any other name"}
    )

    def __post_init__(self) -> None:
        """Also check what is named; it is not imported."""
        super().__post_init__()
        if self.target is None:
            raise ConfigError(
                "optimizer._target_ is missing; give the dotted name of a torch.optim.Optimizer, "
                "such as optimizer._target_=torch.optim.RAdam"
            )
        targets.checked("optimizer", self.node)

    @property
    def node(self) -> dict[str, Any]:
        """What is named and its own keys, for phasegpt.core.targets."""
        return {"_target_": self.target, **self.arguments}

    @classmethod
    def full_name(cls, name: str) -> str:
        """See Section.full_name."""
        return super().full_name({"target": "_target_", "arguments": "*"}.get(name, name))

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """From the group's keys; those that are not ours are the optimizer's own."""
        ours = {f.name for f in fields(cls)} - {"target", "arguments"}
        own = {k: v for k, v in values.items() if k not in ours and k != "_target_"}
        known = {k: v for k, v in values.items() if k in ours}
        return super().parse({**known, "target": values.get("_target_"), "arguments": own})

    def to_dict(self) -> dict[str, Any]:
        """The group's keys, as one writes them."""
        own = super().to_dict()
        rate = own.pop(_LAST)
        target, arguments = own.pop("target"), own.pop("arguments")
        rest = {k: v for k, v in own.items() if k != "name"}
        return {"name": "own", "_target_": target, **rest, **arguments, _LAST: rate}


#: By the name of their YAML in conf/optimizer.
OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    cast(str, section.__dataclass_fields__["name"].default): section
    for section in (
        AdamWConfig, SGDConfig, MuonConfig, LionConfig, AdafactorConfig, ScheduleFreeConfig,
        OwnConfig,
    )
}  # fmt: skip
