"""What the jobs of a multirun are: the words of each, and which of them are trained here.

Two words are for the whole multirun alone: `records=FOLDER`, a study whose committed records stand
for their runs, and `share=K/N`, the K-th of N parts of the jobs, for several machines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phasegpt.core.errors import ConfigError, UserError
from phasegpt.core.sections import shown
from phasegpt.training.planned import Planned, as_job, check_model, of_run, refused

if TYPE_CHECKING:
    from phasegpt.training.config import RunConfig


#: The jobs of a stage, which may depend on what came out of the stages before it.
Stage = Callable[[], list[Planned]]


def stages(config: Any) -> list[Stage]:
    """The stages of a multirun; none of a search, whose jobs nobody knows. Raises ConfigError."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = config.hydra.sweeper
    share, records = _share(config.get("share")), config.get("records")
    if not sweeper._target_.endswith(".BasicSweeper"):
        if share != (1, 1) or records:
            raise ConfigError("share and records are for sweeps of known jobs; leave them out here")
        return []
    loader = GlobalHydra.instance().config_loader()
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    words += config.hydra.overrides.task
    overrides = [
        override
        for override in OverridesParser.create(config_loader=loader).parse_overrides(words)
        if override.key_or_group not in ("share", "records")
    ]
    folder = None if records is None else Path(records)
    found: list[Stage]
    if config.hydra.runtime.choices.get("sweep") == "leaderboard":
        from phasegpt.training.leaderboard import Leaderboard

        board = Leaderboard(config, overrides, loader)
        found = [partial(board.jobs, name) for name in board.stages]
    else:
        (batch,) = BasicSweeper.split_arguments(overrides, None)
        if not batch:
            raise ConfigError(_why_empty(overrides))
        _name_by_what_varies(config, batch)
        found = [partial(_all_planned, loader, config, batch)]
    return [partial(_chosen, stage, share, folder) for stage in found]


def _all_planned(loader: Any, config: Any, batch: Sequence[Sequence[str]]) -> list[Planned]:
    return [_planned(loader, config, job) for job in batch]


def _chosen(stage: Stage, share: tuple[int, int], records: Path | None) -> list[Planned]:
    """The jobs of a stage, with their records and shares, numbered as they will be started."""
    from phasegpt.training.jobs import finished  # it loads numpy, which --help does without

    there = {} if records is None else finished(records)
    part, parts = share
    found: list[Planned] = []
    number = 0
    for index, job in enumerate(stage()):
        if there and job.run is not None:
            digest = next((name for name in _names_here(job.run) if name in there), None)
            if digest is not None:
                job.entry["record"] = str(there[digest][0])
        job.entry["name"] = re.sub(rf"^{_NUMBER}-", f"{number}-", job.entry["name"])
        unit = index if job.unit is None else job.unit
        found.append(job._replace(mine=unit % parts == part - 1))
        number += found[-1].here
    return found


def _share(value: Any) -> tuple[int, int]:
    """K and N of share=K/N; ConfigError."""
    if value is None:
        return 1, 1
    given = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(value))
    part, parts = map(int, given.groups()) if given else (0, 0)
    if not 1 <= part <= parts:
        raise ConfigError(f"share={shown(value)} must be K/N with 1 <= K <= N, such as share=1/3")
    return part, parts


def _why_empty(overrides: Sequence[Any]) -> str:
    empty = [
        override.input_line
        for override in overrides
        if override.is_sweep_override() and not list(override.sweep_string_iterator())
    ]
    return (
        f"this sweep composes no job: nothing matches {', '.join(map(str, empty))}. A glob "
        f"sees only the direct children of its group, as in '+experiment/phase_a=glob(*)'"
    )


_SUBDIR = "${hydra.job.num}-${name}"  # conf/config.yaml's; sweeps with names of their own keep them
_NUMBER = 987654321  # of a job while it is not known which of them are started


def _name_by_what_varies(config: Any, batch: Sequence[Sequence[str]]) -> None:
    """Have the jobs' folders say in what they differ: 3-quickstart-attention.coupling-2-seed-1."""
    from omegaconf import OmegaConf, open_dict, read_write

    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if sweep["subdir"] != _SUBDIR:
        return
    values: dict[str, set[str]] = {}
    for word in (word for words in batch for word in words):
        key, _, value = word.partition("=")
        values.setdefault(key.lstrip("+"), set()).add(value)
    # A name is one folder, and no folder has a name of 300 letters.
    shown = {
        key
        for key, given in values.items()
        if len(given) > 1 and not any("/" in text or len(text) > 40 for text in (key, *given))
    }
    if not shown or len(shown) > 4:
        return
    quoted = ",".join(f"'{key}'" for key in values if key not in shown)
    naming = "hydra.job.config.override_dirname"
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra += [
            f"{naming}.exclude_keys=[{quoted}]",
            f"{naming}.kv_sep='-'",
            f"{naming}.item_sep='-'",
            f"hydra.sweep.subdir='{_SUBDIR}-${{hydra.job.override_dirname}}'",
        ]


def _planned(loader: Any, config: Any, words: Sequence[str]) -> Planned:
    from omegaconf import OmegaConf, open_dict, read_write

    from phasegpt.training.config import run_config

    job = loader.load_sweep_config(config, list(words))
    with read_write(job), open_dict(job):
        job.hydra.job.num = _NUMBER
        name = str(job.hydra.sweep.subdir)
        OmegaConf.resolve(job.hydra.sweep)
        del job["hydra"]
    digest = None
    try:
        run = as_job(run_config(job))
        digest = run.hash
        check_model(run)
        return of_run(name, words, run)
    except UserError as error:
        return refused(name, words, error, digest)


def _names_here(run: RunConfig) -> Iterator[str]:
    """Hashes of `run` by all names of its device: without a GPU auto is the CPU in 32-true."""
    import torch

    yield run.hash
    t = run.trainer
    if t.accelerator == "cuda" or t.precision not in ("auto", "32-true"):
        return
    if t.accelerator == "auto" and torch.cuda.is_available():
        return
    for device in ("auto", "cpu"):
        for form in ("auto", "32-true"):
            other = replace(t, accelerator=device, precision=form)
            if other != t:
                yield replace(run, trainer=other).hash
