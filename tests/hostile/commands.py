"""Settings of the commands, and files of a user's own: YAML, run.json, sweep.json, a plan."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from helpers import ROOT
from hostile.judge import Case
from hostile.values import OBJECTS, damage, spoil
from hostile.workshop import TINY, Workshop

import phasegpt
from phasegpt.core.composition import CONF_DIR, compose
from phasegpt.evaluate import EvaluateConfig, evaluate
from phasegpt.generate import GenerateConfig, generate
from phasegpt.interpret import InterpretConfig, interpret
from phasegpt.model import loading
from phasegpt.training import preregistration
from phasegpt.training.config import run_config
from phasegpt.training.jobs import jobs
from phasegpt.training.resume import newest_unfinished

#: Options that name a place that is written to: nothing is written outside of a room.
PLACES = ("output", "cache_dir", "folder", "run_dir")


def hostile_for(key: str, rng: random.Random) -> Any:
    """A hostile value for an argument; none that would write into the machine's folders."""
    return rng.choice([o for o in OBJECTS if key not in PLACES or o not in ("/", "~", ".")])


def setting(rng: random.Random, shop: Workshop) -> Case:
    """One setting of evaluate, generate or interpret is hostile; the command's function runs."""
    run = str(shop.run)
    section, function, sound = rng.choice((
        (EvaluateConfig, evaluate, {"checkpoint": run, "split": "val", "data_path": None}),
        (GenerateConfig, generate, {"checkpoint": run, "max_new_tokens": 2}),
        (InterpretConfig, interpret, {"checkpoint": run, "tokens": 32, "interventions": False,
                                      "figures": False}),
    ))  # fmt: skip
    key = rng.choice([f.name for f in dataclasses.fields(section)])
    value = hostile_for(key, rng)
    place = shop.room() / "a" / "b"

    def call() -> None:
        place.mkdir(parents=True)
        values = {**sound, key: value}
        if function is interpret and key != "output":
            values["output"] = str(place / "out")
        with contextlib.chdir(place):
            function(section.parse(values))

    return Case(f"{section.__name__}.{key}={value!r:.60}", call)


def entry(rng: random.Random, shop: Workshop) -> Case:
    """An argument of build, fit or export is hostile."""
    place = shop.room() / "a" / "b"
    function, sound = rng.choice((
        (phasegpt.build, {"config": None}),
        (phasegpt.fit, {"config": None, "run_dir": place / "run", "callbacks": (), "loggers": (),
                        "gpu": 0}),
        (loading.export, {"target": shop.run, "folder": place / "out", "which": "best"}),
    ))  # fmt: skip
    key = rng.choice(sorted(sound))
    value = hostile_for(key, rng)

    def call() -> None:
        place.mkdir(parents=True)
        given = {**sound, key: value}
        if "config" in given and key != "config":
            given["config"] = compose(shop.words)
        with contextlib.chdir(place):
            function(**given)

    return Case(f"{function.__name__}({key}={value!r:.60})", call)


def record(rng: random.Random, shop: Workshop) -> Case:
    """A run.json or sweep.json whose JSON is whole and whose content is not."""
    folder = shop.copy(shop.run)
    what = json.loads((folder / "run.json").read_text())
    plan = {"jobs": [{"name": "run", "config_hash": what["config_hash"], "error": None}]}
    way = rng.choice(("load", "jobs", "evaluate", "interpret", "fit", "unfinished", "sweep"))
    kind, spoilt = spoil(plan if way == "sweep" else what, rng)
    file = folder.parent / "sweep.json" if way == "sweep" else folder / "run.json"
    file.write_bytes(json.dumps(spoilt, default=str).encode())

    def call() -> None:
        if way == "load":
            phasegpt.load(folder, which=rng.choice(("best", "last")))
        elif way == "evaluate":
            evaluate(EvaluateConfig(checkpoint=str(folder), split="val"))
        elif way == "interpret":
            interpret(InterpretConfig(checkpoint=str(folder), tokens=32, figures=False))
        elif way == "fit":
            phasegpt.fit(compose([*shop.words, "resume=true"]), folder)
        elif way == "unfinished":
            newest_unfinished(folder.parent, what["config_hash"])
        else:
            jobs(folder.parent)

    return Case(f"{file.name} {kind}: {way}", call)


def yaml(rng: random.Random, shop: Workshop) -> Case:
    """A group's YAML of the user's own, in a folder beside conf/, is damaged."""
    group = rng.choice(("attention", "model", "data", "optimizer", "trainer", "callbacks"))
    source = rng.choice(sorted((CONF_DIR / group).glob("*.yaml")))
    kind, content = damage(source.read_bytes(), rng)
    folder = shop.room()
    (folder / group).mkdir()
    (folder / group / "mine.yaml").write_bytes(content)
    words = [*TINY[:5], f"hydra.searchpath=[file://{folder}]", f"{group}=mine"]
    return Case(f"{group}/{source.name} {kind}", lambda: run_config(compose(words)))


def registration(rng: random.Random, shop: Workshop) -> Case:
    """A damaged preregistration."""
    kind, content = damage((ROOT / "PREREGISTRATION.md").read_bytes(), rng)
    file: Path = shop.room() / "PREREGISTRATION.md"
    file.write_bytes(content)

    def call() -> None:
        preregistration.stamp(file)
        read = preregistration.read(file)
        _ = list(read.cells()), read.registered(), read.scales

    return Case(f"PREREGISTRATION.md {kind}", call)
