"""How a run of copying copies when it writes the string itself, token by token with its cache.

    python scripts/copy_freely.py RUN --out FILE.json

Validation gives the right letters before; here one wrong letter is read on. The likeliest token is
taken. Strings are drawn anew, 32 of each length of validation.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from phasegpt.cli import guarded
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import write_json
from phasegpt.data.config import DataSection, task_class
from phasegpt.data.copying_tasks import Copying
from phasegpt.model.loading import load_run
from phasegpt.samplers import decode

STRINGS, SEED = 32, 2026


def main() -> None:
    """Write {LENGTH: {letters, strings}}: shares of right letters, and of strings without error."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder of copying")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    loaded = load_run(args.run)
    data = loaded.config and DataSection.parse(loaded.config["data"])
    task = data and task_class(data.corpus)(data) if data and data.corpus == "copying" else None
    if not isinstance(task, Copying):
        raise ConfigError(f"{args.run} is no run of data=copying; give one that is")
    rng, found = np.random.default_rng(SEED), {}
    for length in task.config.loads_with(loaded.model.config.extrapolates):
        letters = rng.integers(0, task.config.letters, (STRINGS, length))
        marks = [np.full((STRINGS, 1), mark) for mark in (task.begin, task.bar)]
        asked = torch.tensor(np.concatenate([marks[0], letters, marks[1]], axis=1))
        out = decode(loaded.model, asked, max_new_tokens=length, seeds=None, greedy=True)
        right = out[:, -length:].numpy() == letters
        found[length] = {"letters": right.mean(), "strings": right.all(axis=1).mean()}
    write_json(args.out, found)
    print(args.out)


if __name__ == "__main__":
    guarded(main)
