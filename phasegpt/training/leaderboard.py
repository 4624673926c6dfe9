"""The jobs of the leaderboard: its arms, which are found by code, its stages, and their rates.

An arm is a mechanism in every layer, or its off control NAME_off: the mechanism's `off` options,
and learn_KEY=false where KEY would be learned away. Runs are named leaderboard-TASK-ARM; in the
stage `rates` with -lrRATE. Every other stage takes for each task and arm the best rate on record.
"""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict, read_write

from phasegpt.attention import layer_class, names
from phasegpt.core import modules
from phasegpt.core.composition import CONF_DIR, offer_mechanisms, plain
from phasegpt.core.console import tell
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import unknown
from phasegpt.data.config import TaskConfig
from phasegpt.model.contract import Subject, switches
from phasegpt.training.config import RunConfig, checked
from phasegpt.training.jobs import finished
from phasegpt.training.planned import Planned, as_job, check_model, of_run, refused

RATES = "rates"  # the stage that finds them
_AXES = ("stage", "task", "arm", "attention", "seed")
_OWN = (*_AXES, "sweep", "scale", "share", "records")
Settings = Mapping[str, Any]  # keys of a configuration and their values


def mechanism_arms(name: str) -> dict[str, Settings]:
    """A mechanism and its off control, if it has one, by name.

    Raises ConfigError for an unknown name.
    """
    if modules.dotted(name):
        modules.imported(name, "attention")
    layer = layer_class(name)
    arms: dict[str, Settings] = {name: {"attention": name}}
    if layer.off is not None:
        options = dict(layer.off.options if layer.off.decisive is None else layer.off.decisive)
        learned = {f"learn_{key}" for key in options} & {
            field.name for field in fields(layer.Config)
        }
        options |= dict.fromkeys(sorted(learned), False)
        _check_off(name, options)
        keys = {f"attention.{key}": value for key, value in options.items()}
        arms[f"{name}_off"] = {"attention": name, **keys}
    return arms


def _check_off(name: str, options: Settings) -> None:
    """ConfigError where a mechanism would learn what its off control switches off."""
    off = layer_class(name).off
    subject = Subject(name, positions=(off and off.positions) or "learned")
    learned = switches(subject.layer(), subject.layer(**options))
    if learned:
        raise ConfigError(
            f"attention={name} with {', '.join(f'{k}={v}' for k, v in options.items())} learns "
            f"{', '.join(sorted(learned))}, which switches it on again; give its Config an option "
            f"learn_KEY that holds it, or its Off the `decisive` options of a control that stays"
        )


def all_arms(more: Mapping[str, Settings]) -> dict[str, Settings]:
    """Those of every mechanism that neither sees the future nor is dead by name, and `more`."""
    arms: dict[str, Settings] = {}
    for name in names():
        if not (layer_class(name).leaky or layer_class(name).dead):
            arms |= mechanism_arms(name)
    return {**arms, **more}


def configured(base: Mapping[str, Any], settings: Settings) -> RunConfig:
    """The plain configuration `base` with keys of an arm set; ConfigError."""
    values = copy.deepcopy(dict(base))
    for key, value in settings.items():
        *parents, last = key.split(".")
        if key == "attention":
            value = {"name": value, "layers": "all"}
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    return as_job(checked(values))


class Leaderboard:
    """The jobs that a command line with +sweep=leaderboard asks for, stage by stage."""

    def __init__(self, config: Any, overrides: Sequence[Any], loader: Any) -> None:
        """`config` is Hydra's of the multirun, `overrides` its parsed words. ConfigError."""
        own: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for override in overrides:  # of a key that is given twice the last one counts
            key = override.get_key_element().lstrip("+~")
            (own if key in _OWN else rest)[key] = override
        if several := [o.input_line for o in rest.values() if o.is_sweep_override()]:
            raise ConfigError(
                f"+sweep=leaderboard varies {', '.join(_AXES)}; give one value in "
                f"{', '.join(several)}"
            )
        if inside := [o.input_line for key, o in rest.items() if key.startswith("attention.")]:
            raise ConfigError(
                f"+sweep=leaderboard sets the options of attention itself, and all layers have it; "
                f"leave out {', '.join(inside)}, or make an arm of it: '+leaderboard.arms.NAME="
                f"{{attention:lohe,attention.steps:1}}'"
            )
        self._config, self._loader = config, loader
        said = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
        self._again = [
            shlex.quote(word)
            for word in said
            if word.partition("=")[0] not in ("stage", "seed", "share", "hydra.mode")
        ]
        ours = ("leaderboard.", "hydra.")
        self._words = [o.input_line for key, o in rest.items() if not key.startswith(ours)]
        tables: Any = OmegaConf.to_container(config.leaderboard, resolve=True)
        self.scale = str(config.hydra.runtime.choices.scale)
        self.seeds: dict[str, list[int]] = tables["seeds"]
        self.rates = [float(rate) for rate in tables["rates"][self.scale]]
        tasks = _values(own["task"])
        self.stages = _values(own["stage"]) if "stage" in own else [str(config.stage)]
        for stage in self.stages:
            if stage not in self.seeds:
                known = [f"stage={name}" for name in self.seeds]
                raise ConfigError(unknown(f"stage={stage}", known))
        self._given = [_whole(word) for word in _values(own["seed"])] if "seed" in own else None
        if self._given is not None and RATES in self.stages:
            raise ConfigError(
                f"{own['seed'].input_line} with stage={RATES}, whose rates are read for seed "
                f"{self.seeds[RATES][0]} alone; leave seed out there, and give it to another stage"
            )
        self.arms = _chosen_arms(all_arms(tables["arms"]), own)
        self._base = {task: self._composed(task) for task in tasks}
        #: Settings by task and arm, in the order of jobs.
        self.pairs = {(t, a): self._fitting(t, a) for t in tasks for a in self.arms}
        with read_write(config), open_dict(config):
            # Jobs are composed without +sweep, so that each of them is a run of its own too.
            config.hydra.overrides.hydra += [
                f"hydra.sweep.dir='{config.hydra.sweep.dir}'",
                "hydra.sweep.subdir='${name}-seed${seed}'",
            ]

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """That of the words of a command line, without a multirun. ConfigError."""
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.types import RunMode

        words = ["+sweep=leaderboard", *words]
        offer_mechanisms(words)
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            config = loader.load_configuration("config", words, RunMode.MULTIRUN)
            words = [f"{k}={v}" for k, v in config.hydra.sweeper.params.items()] + words
            parser = OverridesParser.create(config_loader=loader)
            return cls(config, parser.parse_overrides(words), loader)

    def jobs(self, stage: str) -> list[Planned]:
        """The jobs of a stage, in passes: after each, every task has every arm with one seed more.

        Arms without a rate are said, and are jobs with an error; those all of whose rates collapsed
        are left out. ConfigError where no arm has a rate.
        """
        seeds = self._given or self.seeds[stage]
        if stage == RATES:
            return [
                self._job(task, arm, seed, rate, f"-lr{rate:g}")
                for seed in seeds
                for rate in self.rates
                for task, arm in self.pairs
            ]
        frozen = self._frozen()
        missing = [key for key in self.pairs if key not in frozen]
        if missing:
            said = self._no_rate(missing)
            if len(missing) == len(self.pairs):
                raise ConfigError(said)
            tell(f"these are left out: {said}")
        found = []
        for seed in seeds:
            for (task, arm), rate in frozen.items():
                if rate is not None:
                    found.append(self._job(task, arm, seed, rate, ""))
        for task, arm in missing:
            why = ConfigError(self._no_rate([(task, arm)]))
            job = refused(f"leaderboard-{task}-{arm}", [], why)
            found.append(job._replace(unit=self._unit(task, arm)))
        return found

    def _frozen(self) -> dict[tuple[str, str], float | None]:
        """The best rate of each task and arm, of those that are on record for every rate.

        That with the highest accuracy at its best step, or in a text the lowest loss; None where
        none has a best step.
        """
        there: dict[str, tuple[Path, dict[str, Any]]] = {}
        for folder in (self._config.hydra.sweep.dir, self._config.get("records")):
            there |= {} if folder is None else finished(Path(folder))
        found: dict[tuple[str, str], float | None] = {}
        (seed,) = self.seeds[RATES]
        for key in self.pairs:
            hashes = {rate: self.run(*key, seed, rate).hash for rate in self.rates}
            if not there.keys() >= set(hashes.values()):
                continue
            best = {rate: there[digest][1].get("best") for rate, digest in hashes.items()}
            scores = [
                (-values.get("val/accuracy", 0.0), values["val/loss"], rate)
                for rate, values in best.items()
                if values and there[hashes[rate]][1]["status"] == "ok"
            ]
            found[key] = min(scores)[-1] if scores else None
            if not scores:
                tell(f"{key[1]} stays off {key[0]}: it collapsed at every learning rate")
        return found

    def _no_rate(self, missing: Sequence[tuple[str, str]]) -> str:
        tasks = dict.fromkeys(task for task, _ in missing)
        arms = dict.fromkeys(arm for _, arm in missing)
        told = ", ".join(arms) if len(arms) < len(self.arms) else "any arm"
        return (
            f"no learning rate is on record for {told} in {', '.join(tasks)}; find them first "
            f"(what is on record is left out): python -m phasegpt.train -m {' '.join(self._again)} "
            f"stage={RATES}"
        )

    def _job(self, task: str, arm: str, seed: int, rate: float, said: str) -> Planned:
        settings = {
            **self.pairs[task, arm],
            **{"optimizer.lr": rate, "seed": seed, "name": f"leaderboard-{task}-{arm}{said}"},
        }
        words = [self._task_word(task), *self._words]
        for key, value in settings.items():
            text = json.dumps(value) if value is None or isinstance(value, bool) else value
            # Options of a module without a YAML of its own are new keys to Hydra.
            words.append(f"{'++' if key.startswith('attention.') else ''}{key}={text}")
        name = f"leaderboard-{task}-{arm}{said}-seed{seed}"
        run, unit = self.run(task, arm, seed, rate), self._unit(task, arm)
        return of_run(name, words, run, unit)

    def _unit(self, task: str, arm: str) -> int:
        """What is in one share: all runs of an arm in a task, so that it can choose their rate."""
        return list(self.pairs).index((task, arm))

    def run(self, task: str, arm: str, seed: int, rate: float) -> RunConfig:
        """The configuration of a run, but for its name."""
        keys = {"optimizer.lr": rate, "seed": seed}
        return configured(self._base[task], {**self.pairs[task, arm], **keys})

    def _task_word(self, task: str) -> str:
        return f"+task={'' if self.scale == 'full' else f'{self.scale}/'}{task}"

    def _composed(self, task: str) -> dict[str, Any]:
        words = [self._task_word(task), *self._words]
        try:
            job = self._loader.load_sweep_config(self._config, words)
        except HydraException as error:
            raise ConfigError(f"{' '.join(words)}: {error}") from error
        with read_write(job), open_dict(job):
            del job["hydra"]
        return plain(job)

    def _fitting(self, task: str, arm: str) -> Settings:
        """The settings of an arm, with learned positions where it refuses rotary ones.

        ConfigError where it refuses both.
        """
        settings = self.arms[arm]
        for attempt in (dict(settings), {**settings, "model.positions": "learned"}):
            try:
                run = configured(self._base[task], attempt)
                check_model(run)
                return attempt | self._reached(task, attempt, run)
            except ConfigError as error:
                why = error
        raise ConfigError(f"arm {arm} of the leaderboard in {task}: {why}")

    def _reached(self, task: str, settings: Settings, run: RunConfig) -> dict[str, Any]:
        """The width of the MLP for one that has parameters for each position.

        It does not pay for positions beyond the longest row of training, which are never trained.
        """
        own = layer_class(run.attention.name).per_position and run.model.match_parameters
        if not (own and isinstance(run.data, TaskConfig)):
            return {}
        longest = run.data.time(run.data.trained)
        if longest >= run.model.block_size:
            return {}
        shorter = configured(self._base[task], {**settings, "model.block_size": longest})
        return {"model.match_parameters": None, "model.mlp_width": shorter.gpt().mlp_width}


def _chosen_arms(every: dict[str, Settings], own: Mapping[str, Any]) -> dict[str, Settings]:
    """Those that arm= names, and those of attention= with what they are compared with."""
    given = _values(own["attention"]) if "attention" in own else []
    asked = _values(own["arm"]) if "arm" in own else []
    added = {arm: x for name in given for arm, x in mechanism_arms(name).items()}
    every = every | added
    if wrong := [arm for arm in asked if arm not in every and arm != "all"]:
        raise ConfigError(unknown(f"arm={wrong[0]}", [f"arm={arm}" for arm in every]))
    if "all" in asked or not (given or asked):
        return every
    compared = ("softmax", "softmax_learned") if given else ()
    return {arm: x for arm, x in every.items() if arm in {*asked, *added, *compared}}


def _values(override: Any) -> list[str]:
    """The values of a word KEY=A,B; each once."""
    if override.is_sweep_override():
        return list(dict.fromkeys(map(str, override.sweep_string_iterator())))
    return [str(override.get_value_element_as_str())]


def _whole(word: str) -> int:
    if not word.isdecimal():
        raise ConfigError(f"seed={word} must be whole numbers, such as seed=1,2,3")
    return int(word)
