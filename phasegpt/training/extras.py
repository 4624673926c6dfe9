"""Callbacks and loggers of the user's own: as arguments of fit, or by `_target_`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.loggers import Logger

from phasegpt.core import targets
from phasegpt.core.errors import ConfigError
from phasegpt.training.config import RunConfig

#: What would train by other values than the run's record has, and what to do instead.
_AGAINST: dict[type[Callback], str] = {
    GradientAccumulationScheduler: "set trainer.accumulate_grad_batches",
    LearningRateFinder: "set optimizer.lr; Tuner(trainer).lr_find(*phasegpt.lightning(cfg)) finds",
    BatchSizeFinder: "set data.batch_size",
    StochasticWeightAveraging: "use WeightAveraging, which counts steps: a run is one epoch",
}


def own_extras(
    run: RunConfig, callbacks: Iterable[Callback], loggers: Iterable[Logger]
) -> dict[str, list[Any]]:
    """`callbacks` and `loggers` by these names: those of the configuration, then the given ones.

    What callbacks.extra and logger.extra name is imported and called here. Raises ConfigError for
    what cannot be, for what is no callback or logger, and for any in several processes.
    """
    given = {"callbacks": (callbacks, Callback), "loggers": (loggers, Logger)}
    named = {"callbacks": run.callbacks.extra, "loggers": run.logger.extra}
    for name, (those, kind) in given.items():
        if not isinstance(those, Iterable) or isinstance(those, kind):
            raise ConfigError(f"{name} is a {class_name(those)}; give a list of them, {name}=[...]")
    key = {"callbacks": "callbacks.extra", "loggers": "logger.extra"}
    return {
        name: _checked(
            run,
            name,
            [
                *(targets.made(f"{key[name]}[{i}]", x, kind) for i, x in enumerate(named[name])),
                *those,
            ],
            kind,
        )
        for name, (those, kind) in given.items()
    }


def _checked(run: RunConfig, name: str, found: list[Any], kind: type) -> list[Any]:
    for one in found:
        if not isinstance(one, kind):
            raise ConfigError(
                f"{name} holds a {class_name(one)}; each must be a {class_name(kind)}, from the "
                f"package pytorch_lightning"
            )
        for against, remedy in _AGAINST.items():
            if isinstance(one, against):
                raise ConfigError(
                    f"{name} holds a {class_name(one)}, which would train by other values than "
                    f"the configuration's; {remedy}"
                )
        if isinstance(one, WeightAveraging) and run.callbacks.collapse_guard.action == "rollback":
            raise ConfigError(
                f"{name} holds a {class_name(one)}, with which checkpoints hold averages, and "
                f"callbacks.collapse_guard.action=rollback would train on with them; use report, "
                f"or stop"
            )
    states = [one.state_key for one in found if _keeps_state(one)]
    if twice := {key for key in states if states.count(key) > 1}:
        raise ConfigError(
            f"{name} has several of {min(twice):.200} with a state_dict, which a checkpoint could "
            f"not tell apart; leave one, or give the class a state_key that names its arguments"
        )
    if found and run.trainer.processes > 1:
        raise ConfigError(
            f"{name}=[{', '.join(map(class_name, found))}] with trainer.devices="
            f"{run.trainer.devices}: the other processes could not have them; leave them out, or "
            f"train in one process"
        )
    return found


def _keeps_state(one: Any) -> bool:
    return isinstance(one, Callback) and type(one).state_dict is not Callback.state_dict


def class_name(thing: Any) -> str:
    """The dotted name of a class, or of a thing's class."""
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"
