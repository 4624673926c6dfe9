"""`sampler=` of the command line: one YAML per sampler, its options checked and explained."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import command, script

from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.generate import GenerateConfig, generate
from phasegpt.samplers import (
    EntropyGate,
    EntropyShockSampler,
    KVShock,
    LowEntropy,
    PhaseSlip,
    build_sampler,
)
from phasegpt.samplers.options import SAMPLERS

KINDS = {"ancestral": type(None), "phase_slip": PhaseSlip, "entropy_shock": KVShock}
QUICK = {"phase_slip": ["sampler.target_kl=1e-3"]}


def settings(run: Path, *overrides: str) -> GenerateConfig:
    values = plain(compose([f"checkpoint={run}", "max_new_tokens=40", *overrides],
                           config_name="generate"))  # fmt: skip
    return GenerateConfig.parse(values)


def test_every_sampler_has_a_yaml_with_the_defaults_of_its_class() -> None:
    files = {path.stem: path for path in (CONF_DIR / "sampler").glob("*.yaml")}
    assert set(files) == set(SAMPLERS) == set(KINDS)
    for name, path in files.items():
        written = yaml.safe_load(path.read_text())
        assert written == SAMPLERS[name]().to_dict()
        assert type(build_sampler(written)) is KINDS[name]


@pytest.mark.parametrize(
    ("made", "name", "respelt"),
    [
        (PhaseSlip, "phase_slip", {}),
        (KVShock, "entropy_shock", {"scale": "noise_scale", "detector": None}),
        (EntropyShockSampler, "entropy_shock", {}),
        (LowEntropy, "entropy_shock", {"threshold": "stagnation_threshold"}),
        (EntropyGate, "phase_slip", {"center": "gate_entropy"}),
    ],
)
def test_a_class_has_the_defaults_of_its_options(
    made: type, name: str, respelt: dict[str, str | None]
) -> None:
    options = SAMPLERS[name]().to_dict()
    parameters = inspect.signature(made).parameters.values()
    found = {respelt.get(p.name, p.name): p.default for p in parameters}
    shared = options.keys() & found.keys()
    assert shared
    assert {key: found[key] for key in shared} == {key: options[key] for key in shared}


def test_the_help_page_names_every_option() -> None:
    page = (CONF_DIR / "generate.yaml").read_text().split("template:")[1]
    for name, cls in SAMPLERS.items():
        assert name in page
        for key in cls().to_dict():
            assert key == "name" or f"{key}=" in page


@pytest.mark.parametrize("name", KINDS)
def test_every_sampler_writes_text_that_the_seed_fixes(name: str, run: Path, capsys: Any) -> None:
    chosen = [f"sampler={name}", *QUICK.get(name, [])]
    first = generate(settings(run, *chosen, "num_samples=2"))
    err = capsys.readouterr().err
    assert (f"{name}: " in err) == (name != "ancestral")
    assert generate(settings(run, *chosen)) == first[:1]
    assert len(first[0]) == 41


def test_the_default_is_ancestral_and_angle_0_is_the_same(run: Path) -> None:
    plain_text = generate(settings(run))
    assert generate(settings(run, "sampler=phase_slip", "sampler.angle=0")) == plain_text
    slipped = settings(run, "sampler=phase_slip", "sampler.angle=3", "sampler.gate=none",
                       "sampler.heads=[[0,0],[0,1],[1,0]]", "sampler.anchor=0")  # fmt: skip
    assert generate(slipped) != plain_text


def test_phases_slip_from_the_command_line(run: Path) -> None:
    chosen = ["sampler=phase_slip", "sampler.target=phases", "sampler.angle=1", "sampler.gate=R"]
    assert len(generate(settings(run, *chosen))[0]) == 41


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sampler=phase_slip", "sampler.angel=1"], "did you mean sampler.angle?"),
        (["sampler=entropy_shock", "sampler.patients=1"], "did you mean sampler.patience?"),
        (["sampler=phase_slop"], "phase_slip"),
        (["sampler=null"], "choose from: ancestral, entropy_shock, phase_slip"),
        (["sampler=phase_slip", "sampler.heads=7"], "[[7,0],[7,3]]"),
        (["sampler=phase_slip", "sampler.rotation=plain"], "did you mean plane?"),
        (["sampler=phase_slip", "sampler.angle=9"], "angle=9.0"),
        (["sampler=phase_slip", "sampler.angle=1", "sampler.heads=[[5,0]]"], "(5, 0)"),
        (["sampler=entropy_shock", "sampler.noise_scale=-1"], "scale=-1.0"),
        (["sampler=entropy_shock", "sampler.match=4"], "sampler.match=4 does nothing while"),
        (["sampler=phase_slip", "sampler.gate_R=0.9"], "nothing while sampler.gate=entropy"),
        (["sampler=phase_slip", "sampler.angle=1", "sampler.target_kl=1"], "sampler.target_kl=1.0"),
    ],
)
def test_a_wrong_option_gives_a_short_message(
    arguments: list[str], says: str, run: Path, monkeypatch: Any, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "generate", f"checkpoint={run}", *arguments)
    assert end.value.code not in (0, None)
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean sampler=ancestral"):
        build_sampler({"name": "ancestrall"})


def test_the_demo_shows_both_texts_side_by_side(run: Path, monkeypatch: Any, capsys: Any) -> None:
    script(monkeypatch, "demo_samplers.py", run, "Shall I", "--tokens", "60")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("GREEDY: ")
    assert "WITH SHOCKS: " in lines[0]
    assert all(" | " in line for line in lines)


def test_the_demo_says_what_is_missing(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SystemExit):
            script(monkeypatch, "demo_samplers.py", path)
        said = f"{path} is neither a checkpoint of ours nor a Hugging Face model"
        assert said in capsys.readouterr().err
