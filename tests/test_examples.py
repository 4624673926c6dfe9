"""Every script of examples/ runs as it stands, in an empty folder and without a network."""

import os
from pathlib import Path

import processes
import pytest
from helpers import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs_as_it_stands(script: Path, tmp_path: Path) -> None:
    env = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    done = processes.run(
        processes.python(script), cwd=tmp_path, env=env, before=processes.no_network
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip(), "it shows nothing"
