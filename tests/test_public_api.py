"""The names of `phasegpt`: any number of times, in any order, after any submodule was imported."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import phasegpt

NAMES = ("GPT", "build", "compose", "fit", "load", "ops")

#: In one fresh interpreter. `forget` is what a new one knows of the package: nothing.
PROGRAM = """
import importlib, itertools, json, pkgutil, sys
names = json.loads(sys.argv[1])

def forget():
    for name in [n for n in sys.modules if n.split(".")[0] == "phasegpt"]:
        del sys.modules[name]
    return importlib.import_module("phasegpt")

def check(phasegpt, name, after):
    found = getattr(phasegpt, name)
    if name == "ops":
        good = found is sys.modules["phasegpt.ops"]
    else:
        good = callable(found) and found.__name__ == name
    assert good, f"phasegpt.{name} is {found!r} after {after}"

for order in itertools.permutations(names, 2):
    phasegpt = forget()
    for name in (*order, *order):
        check(phasegpt, name, order)

phasegpt = forget()
for module in pkgutil.walk_packages(phasegpt.__path__, "phasegpt."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        for name in names:
            check(phasegpt, name, module.name)
"""


def test_the_public_names_are_these():
    assert set(phasegpt.__all__) - {"__version__"} == set(NAMES)


def test_every_name_works_in_any_order_and_after_any_submodule():
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(NAMES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_build_and_load_work_again_and_again(run: Path):
    cfg = phasegpt.compose(["model=nano", "model.n_layer=1", "attention=softmax"])
    calls = {
        "build": lambda: phasegpt.build(cfg),
        "load": lambda: phasegpt.load(run),
        "compose": lambda: phasegpt.build(phasegpt.compose(["model=nano", "attention=softmax"])),
    }
    for first, second in itertools.product(calls, repeat=2):
        for name in (first, second):
            assert isinstance(calls[name](), phasegpt.GPT)
