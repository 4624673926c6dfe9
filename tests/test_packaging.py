"""The wheel is whole: it builds, installs elsewhere and trains there without the checkout."""

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import processes
import pytest
from helpers import ROOT

import phasegpt

SHIPPED = {".py", ".typed", ".cu", ".cpp", ".h", ".html", ".css", ".js"}
TOPS = ("phasegpt", "hydra_plugins")  # its top folders
BUILD = [sys.executable, "-m", "build", "--no-isolation"]


def run(*command: str | Path, cwd: Path, timeout: float = 300, **variables: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build_wheel(out: Path, *, from_sdist: bool) -> Path:
    # With no --wheel, `build` makes an sdist and builds the wheel from that.
    run(*BUILD, *([] if from_sdist else ["--wheel"]), "--outdir", out, ROOT, cwd=out)
    (wheel,) = out.glob("phasegpt-*.whl")
    return wheel


def shipped() -> dict[str, bytes]:
    """Every file that an installed PhaseGPT needs, by its name in the wheel."""
    code = [p for top in TOPS for p in (ROOT / top).rglob("*") if p.suffix in SHIPPED]
    conf = (ROOT / "conf").rglob("*.yaml")
    files = {p.relative_to(ROOT).as_posix(): p for p in code}
    files |= {"phasegpt/PREREGISTRATION.md": ROOT / "PREREGISTRATION.md"}
    files |= {f"phasegpt/{p.relative_to(ROOT).as_posix()}": p for p in conf}
    return {name: path.read_bytes() for name, path in files.items()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"), from_sdist=False)


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--target", folder, wheel, cwd=folder)
    return folder


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_all_code_kernels_and_configuration(wheel: Path) -> None:
    built = content(wheel)
    assert "phasegpt/conf/config.yaml" in built
    expected = shipped()
    assert {name: built.get(name) for name in expected} == expected
    tops = {name.split("/")[0] for name in built}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(TOPS)


def test_every_place_names_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert citation is not None
    assert project["version"] == phasegpt.__version__ == citation[1]
    released = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[:1] in ([], [phasegpt.__version__])


def test_an_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    again = content(build_wheel(tmp_path, from_sdist=True))
    assert {k: v for k, v in again.items() if k.startswith("phasegpt/")} == {
        k: v for k, v in content(wheel).items() if k.startswith("phasegpt/")
    }


def test_the_installed_wheel_trains_elsewhere_without_a_network(
    target: Path, tmp_path: Path
) -> None:
    show = "import phasegpt; print(phasegpt.__file__)"
    where = run(sys.executable, "-c", show, cwd=tmp_path, PYTHONPATH=str(target))
    assert Path(where.strip()).is_relative_to(target)

    offline = inspect.getsource(processes.no_network) + "\n\nno_network()\n"
    (tmp_path / "sitecustomize.py").write_text(offline)  # which Python imports as it starts
    folder = tmp_path / "a run"
    run(
        *(sys.executable, "-m", "phasegpt.train", "+experiment=quickstart"),
        *("trainer.max_steps=3", f"hydra.run.dir='{folder}'"),
        cwd=tmp_path,
        timeout=900,
        PYTHONPATH=f"{tmp_path}{os.pathsep}{target}",
    )
    assert (folder / "config.yaml").is_file()
    assert (folder / "metrics.csv").is_file()
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "ok" and len(record["preregistration"]["original"]) == 64
