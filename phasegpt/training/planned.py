"""A job of a multirun before it is started."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from phasegpt.core.errors import ConfigError, UserError
from phasegpt.core.secrets import masked

if TYPE_CHECKING:
    from phasegpt.model.config import GPTConfig
    from phasegpt.training.config import RunConfig


class Planned(NamedTuple):
    """A job: the words that compose it, and what sweep.json says of it.

    `entry` has its name, which is its folder's, overrides, config_hash and error, and where a
    record stands for it, that file as `record`.
    """

    words: Sequence[str]
    entry: dict[str, Any]
    run: RunConfig | None = None  # None: it cannot be
    unit: int | None = None  # jobs of one unit are in one share; None: it is one of its own
    mine: bool = True  # whether it is in this share

    @property
    def here(self) -> bool:
        """Whether it is to be started."""
        return self.mine and bool(self.words) and "record" not in self.entry


def of_run(name: str, words: Sequence[str], run: RunConfig, unit: int | None = None) -> Planned:
    """The job that trains `run` in the folder `name`."""
    entry = {"name": name, "overrides": masked(words), "error": None, "config_hash": run.hash}
    return Planned(words, entry, run, unit)


def refused(
    name: str, words: Sequence[str], error: UserError, config_hash: str | None = None
) -> Planned:
    """The job that cannot be; its hash where its configuration can."""
    said = f"{type(error).__name__}: {error}"
    entry = {"name": name, "overrides": masked(words), "error": said, "config_hash": config_hash}
    return Planned(words, entry)


def check_model(run: RunConfig) -> None:
    """ConfigError where the model of `run` cannot be built, as with positions it does not know.

    DataError where its tokenizer cannot be read.
    """
    from phasegpt.data.corpora import known_vocab_size

    known = run.model.vocab_size or known_vocab_size(run.data)
    _build(run.gpt(None if known else 2))  # of another text the size is not known yet


@functools.cache
def _build(config: GPTConfig) -> None:
    import torch

    from phasegpt.model.gpt import GPT

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a layer has to say it says where it is trained
        GPT(config, seed=0)


def as_job(run: RunConfig) -> RunConfig:
    """`run`; ConfigError where no job of a multirun can be it.

    That is where it has several processes, or is to go on with one run by name.
    """
    if run.trainer.processes > 1:
        raise ConfigError(
            f"trainer.devices={run.trainer.devices} in a multirun: every further process would run "
            f"the whole sweep again. One job is one process here: use trainer.devices=1 and run "
            f"several jobs at once (+launcher=joblib), or start the run without -m"
        )
    if isinstance(run.resume, str):
        raise ConfigError(
            f"resume={run.resume} in a multirun: a job goes on with the run that has its "
            f"configuration, by itself; leave resume out, or start that run without -m"
        )
    return run
