"""checkpoints/shakespeare-small is what its card says, and every command takes it as it stands."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, composed

import phasegpt
from phasegpt.evaluate import EvaluateConfig, evaluate
from phasegpt.generate import GenerateConfig, generate
from phasegpt.interpret import InterpretConfig, interpret
from phasegpt.samplers import decode

MODEL = ROOT / "checkpoints" / "shakespeare-small"
TEXT = ROOT / "docs" / "tutorials" / "shakespeare.txt"
RECORD = json.loads((MODEL / "run.json").read_text())


def stated(what: str) -> float:
    """A number of the model card's tables."""
    found = re.search(
        rf"^\| {re.escape(what)} \| ([\d.]+) \|$", (MODEL / "README.md").read_text(), re.M
    )
    assert found, what
    return float(found[1])


def test_its_record_is_of_the_committed_experiment_and_clean() -> None:
    assert RECORD["status"] == "ok" and RECORD["git"]["dirty"] is False
    assert RECORD["config_hash"] == composed("+experiment=shakespeare_small").hash
    assert RECORD["step"] == RECORD["config"]["trainer"]["max_steps"]
    assert stated("validation loss, nats per character") == pytest.approx(
        RECORD["best"]["val/loss"], abs=5e-4
    )


def test_its_folder_is_small_and_names_no_place() -> None:
    sizes = [path.stat().st_size for path in MODEL.glob("*.safetensors")]
    assert 0 < sum(sizes) <= 4_000_000
    for path in (p for p in MODEL.iterdir() if p.suffix != ".safetensors"):
        assert not re.search(r"/(home|root|tmp|work|mnt|Users)/", path.read_text()), path.name


def test_it_predicts_text_that_it_was_not_trained_on_as_stated(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"checkpoint": str(MODEL), "cache_dir": str(tmp_path)}
    result = evaluate(EvaluateConfig(**settings, data_path=str(TEXT), split="val"))
    assert result["training_text"] is False
    assert result["loss"] == pytest.approx(
        stated("docs/tutorials/shakespeare.txt, split=val"), abs=1e-3
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("PHASEGPT_DATA_DIR"), reason="PHASEGPT_DATA_DIR is not set")
def test_its_validation_loss_is_the_recorded_one(tmp_path: Path) -> None:
    result = evaluate(EvaluateConfig(checkpoint=str(MODEL), split="val", cache_dir=str(tmp_path)))
    assert result["training_text"] is True
    assert result["loss"] == pytest.approx(RECORD["best"]["val/loss"], abs=1e-5)


@pytest.mark.filterwarnings("ignore:oscillators are integrated in plain PyTorch")
def test_it_generates_the_same_text_with_the_cache_and_without() -> None:
    model = phasegpt.load(MODEL).double()  # where no CPU rounds to another token
    prompt = torch.tensor(model.tokenizer.encode(TEXT.read_text()[:110]).astype("int64"))[None]
    assert model.config.block_size < prompt.shape[1] + 30  # so that the window moves
    cached, plain = (
        decode(model, prompt, max_new_tokens=30, seeds=[1], use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)


def test_generate_and_its_samplers_take_it() -> None:
    words: dict[str, Any] = {"checkpoint": str(MODEL), "prompt": "ROMEO:", "max_new_tokens": 20}
    (text,) = generate(GenerateConfig(**words))
    for sampler in ({"name": "phase_slip", "angle": 1.0}, {"name": "entropy_shock"}):
        (other,) = generate(GenerateConfig(**words, sampler=sampler))
        assert len(other) == len(text) == 26
    assert generate(GenerateConfig(**words, temperature=-1.0)) != [text]


def test_interpret_finds_that_its_coupling_synchronizes(tmp_path: Path) -> None:
    text = TEXT.read_text()[:1000]
    quick: dict[str, Any] = {"interventions": False, "figures": False, "output": str(tmp_path)}
    found = interpret(InterpretConfig(checkpoint=str(MODEL), text=text, **quick))
    assert (tmp_path / "report.html").is_file()
    assert found["layers"][0]["dR"]["low"] > 0.05
