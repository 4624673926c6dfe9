"""The names of `phasegpt`: any number of times, in any order, after any submodule was imported."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import phasegpt

NAMES = ("GPT", "build", "compose", "fit", "lightning", "load", "ops")

#: Every first name in a process that has imported nothing of the package, every second in a copy
#: of that process; then all names after every submodule.
PROGRAM = """
import importlib, json, os, pkgutil, sys, traceback
import pytorch_lightning, hydra  # once: they are not what is tested
names = json.loads(sys.argv[1])

def check(name, after):
    import phasegpt
    found = getattr(phasegpt, name)
    good = found is sys.modules["phasegpt.ops"] if name == "ops" else found.__name__ == name
    assert good and (name == "ops" or callable(found)), f"phasegpt.{name}: {found!r} after {after}"

def apart(function, *given):
    child = os.fork()
    if child == 0:
        try:
            function(*given)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)

def begin(first):
    check(first, "nothing")
    for second in names:
        apart(go_on, first, second)

def go_on(first, second):
    for name in (second, first, second):
        check(name, f"{first} and {second}")

for name in names:
    apart(begin, name)

import phasegpt
for module in pkgutil.walk_packages(phasegpt.__path__, "phasegpt."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        for name in names:
            check(name, module.name)
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
