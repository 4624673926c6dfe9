"""Every kind of figure, drawn from small records: no text on another, none cut, few lines."""

import csv
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, TEXT, composed, make_run, text_data
from text_boxes import measured

from phasegpt.analysis import sampling_figure, temperature_study
from phasegpt.analysis.report import pack
from phasegpt.analysis.study_view import study_view
from phasegpt.analysis.tables import summary
from phasegpt.core import figures
from phasegpt.data.corpus import prepare
from phasegpt.interpretation import run_figures
from phasegpt.interpretation.synchronization import measure
from phasegpt.training.loggers import heat_map
from phasegpt.training.run_figure import draw_curves

KURAMOTO = {"name": "kuramoto", "readout": "bias", "steps": 10, "dt": 0.1}


def picture(name: str, *given: Any) -> None:
    """What `python scripts/NAME.py` draws."""
    runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["picture"](*given)


def wrong(found: dict[str, list[str]], *names: str) -> dict[str, list[str]]:
    """What is wrong with the figures `names`, which must have been drawn, and no others."""
    assert set(found) == set(names)
    return {name: faults for name, faults in found.items() if faults}


def test_only_the_house_style_has_colours_sizes_and_figures():
    own = re.compile(r"\bFigure\(|rc_context|rcParams|figsize|#[0-9a-f]{6}\b|\.legend\(")
    files = [*(ROOT / "phasegpt").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    files += (ROOT / "examples").rglob("*.py")
    there = {str(p.relative_to(ROOT)) for p in files if own.search(p.read_text())}
    assert there == {"phasegpt/core/figures.py"}


def write_runs(study: Path) -> None:
    """Two seeds of softmax, of twelve arms that end alike, of one far off and of leaky ones."""
    arms: dict[str, dict[str, Any]] = {
        "softmax": {"name": "softmax"},
        "rope": {"name": "softmax"},
        "far": KURAMOTO | {"coupling": 9.0, "num_oscillators": 32, "omega_spread": 1.0},
    }
    for K in (0.0, 0.5, 1.0, 4.0):
        for n in (16, 32):
            both = {"coupling": K, "num_oscillators": n, "layers": [1, 2], "theta_init": "gpt2"}
            arms[f"k{K}_{n}"] = KURAMOTO | both
        arms[f"s{K}"] = {**both, "name": "phase_sync"}
    for K in (0.5, 1.0):
        arms[f"leak{K}"] = {"name": "phase_sync", "as_coded": True, "coupling": K}
    (study / "runs").mkdir(parents=True)
    for i, (arm, attention) in enumerate(arms.items()):
        positions = "rope" if arm == "rope" else "learned"
        for seed in (1, 2):
            ppl = 30.0 if arm == "far" else 7.0 + 1e-3 * i + 0.3 * seed
            record = {
                **{"seed": seed, "step": 1500, "leaky": arm.startswith("leak")},
                **{"best": {"val/ppl": ppl}, "curves": {"val/ppl": [[750, ppl + 4], [1500, ppl]]}},
                "config": {"attention": attention, "model": {"positions": positions}},
            }
            record["curves"]["train/loss"] = [[s, 2.0 + 1e-4 * (s % 3)] for s in range(1, 21)]
            if attention["name"] != "softmax":
                record["final"] = {"phase/val/R_end/layer1": 0.5, "phase/val/dR/layer1": 0.1}
                for layer in (1, 2):
                    record["curves"][f"phase/R/layer{layer}"] = [[1, 0.9], [1500, 0.4]]
                record["R_histogram"] = {"layer1": [0] * 20 + [3, 5] + [0] * 28}
            (study / "runs" / f"{arm}-seed{seed}.json").write_text(json.dumps(record))


def test_the_figures_of_a_study(tmp_path):
    from phasegpt.analysis import study_figures

    write_runs(tmp_path)
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4, "per": "sequence"}
    both = dict.fromkeys(("baseline", "phase"), estimate)
    maps = dict.fromkeys(both, pack(torch.eye(8).repeat(4, 1, 1), step=1 / 255, bits=8))
    layers = [
        {"layer": i, "phase": i == 1, "maps": maps if i == 1 else None, "entropy": both,
         "distance": both}
        for i in range(12)
    ]  # fmt: skip
    found = {"baseline": {"name": "softmax-seed1"}, "phase": {"name": "k1.0_32-seed1"}}
    found |= {"layers": layers, "units": {"entropy": "entropy of a row", "distance": "tokens"}}
    (tmp_path / "attention.json").write_text(json.dumps(found))
    view = study_view(tmp_path, summary(tmp_path))
    assert view["attention"]["baseline"]["name"] == "softmax, learned positions, seed 1"
    with measured() as drawn:
        study_figures.draw(view, tmp_path)
    names = ("forest", "curves", "phases", "histograms", "spread", "leaky", "attention")
    assert not wrong(drawn, *(f"{name}.png" for name in names))


def run_of(folder: Path, *words: str, layers: int = 0, **last: float) -> Any:
    """Arguments of draw_curves: a run whose metrics are made up."""
    run = composed(*words, "trainer=cpu", "model=nano")
    names = ["step", "train/loss", *last]
    for n in range(layers):
        names += [f"phase/{m}/layer{n}" for m in ("R", "val/R_end", "val/dR")]
    with open(folder / "metrics.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        for step in range(0, 101, 10):
            values = [2.0 + 1 / (1 + step), *(v + 1 / (1 + step) for v in last.values())]
            rows.writerow([step, *values, *[0.4, 0.4, 0.01] * layers])
    return run, SimpleNamespace(path=folder, record={"step": 100}), prepare(run.data)


@pytest.mark.parametrize("layers", [0, 6])
def test_the_curves_of_a_run_on_text(tmp_path, layers):
    """Loss ends at the trigram model and R at its value without coupling."""
    attention = "kuramoto" if layers else "softmax"
    with measured() as found:
        draw_curves(*run_of(tmp_path, f"attention={attention}", layers=layers, **{"val/loss": 1.5}))
    assert not wrong(found, "curves.png")


def test_the_curves_of_a_run_on_a_task(tmp_path):
    words = ["attention=phase_sync", "data=induction_small"]
    last = {"val/loss": 0.01, "val/accuracy": 0.99, "val/accuracy/beyond": 0.98}
    with measured() as found:
        draw_curves(*run_of(tmp_path, *words, layers=2, **last))
    assert not wrong(found, "curves.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return make_run(folder, "model.block_size=64", *text_data(folder, TEXT))


def test_the_pictures_of_a_measurement_and_of_the_readme(trained):
    import phasegpt

    ids_BT = torch.arange(50).reshape(2, 25) % 40
    with measured() as found:
        run_figures.draw(measure(phasegpt.load(trained), ids_BT, effects=False), trained / "out")
    kinds = ("order", "portraits", "plv", "attention")
    assert not wrong(found, *(f"layer1-{kind}.png" for kind in kinds))
    with measured() as found, figures.house():
        picture("picture_readme", trained)
    assert not wrong(found, "figure 0")


@pytest.mark.parametrize("name", ["picture_offsets", "picture_mechanisms"])
def test_the_pictures_of_the_docs(name):
    with measured() as found, figures.house():
        picture(name)
    assert not wrong(found, "figure 0")


def test_the_picture_of_samplers(tmp_path):
    rows = []
    for i, role in enumerate(sampling_figure.ROLES):
        for k in range(3):
            row = {"arm": f"{role}_{k}_with_a_long_name", "role": role, "gap": 0.1, "gap_low": 0.0}
            place = {"diversity": 0.1 * i + 0.02 * k, "judge": 2.0 + 0.3 * i + 0.1 * k}
            rows.append({**row, **place, "gap_high": 0.2, "temperature": 0.2 + 0.1 * k})
    rows = [row for row in rows if row["role"] != "human" or row["arm"].startswith("human_0")]
    with measured() as found:
        sampling_figure.draw_frontier(tmp_path, rows)
    assert not wrong(found, "frontier.png")


def test_the_picture_of_temperatures(tmp_path):
    names = ("judge_nats", "nll_at_one", "real_words", "distinct_2", "accepted")
    values = {key: 0.5 for name in names for key in (name, f"{name}_high")}
    arms = ["human", *(f"T={T}" for T in (0.01, 0.5, 1, 100000, "inf", "-inf", -100000, -1, -0.01))]
    with measured() as found:
        temperature_study.draw_curve(tmp_path, [{"arm": arm, **values} for arm in arms])
    assert not wrong(found, "curve.png")


@pytest.mark.parametrize("shape", [(2, 3), (144, 300)])
def test_the_heat_map_of_the_loggers(shape):
    rows = [f"layer {i}, head {i}" for i in range(shape[0])]
    with measured() as found:
        pixels = heat_map(np.full(shape, 0.5), rows, "R by position", "token")
    assert pixels.ndim == 3 and not wrong(found, "figure 0")
