"""Every script of examples/ runs as it stands, in an empty folder and without a network.

So does the Python of the README, but for fewer steps.
"""

import os
import re
from pathlib import Path

import processes
import pytest
from helpers import ROOT

from phasegpt.training.run_folder import read_record

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands(script: Path, tmp_path: Path) -> None:
    env = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    command = processes.python(script)
    done = processes.run(command, cwd=tmp_path, env=env, before=processes.no_network)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip(), "it shows nothing"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    few = '"trainer.max_steps=2", "trainer.limit_val_batches=2"]'
    monkeypatch.chdir(tmp_path)
    exec(block.replace('coupling=0.5"]', f'coupling=0.5", {few}'), {})
    assert read_record(tmp_path / "runs" / "mine")["step"] == 2
