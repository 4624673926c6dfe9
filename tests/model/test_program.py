"""A model as a program of torch.export: any batch, any length, the model's logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import command

import phasegpt
from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.model.gpt import GPT
from phasegpt.model.program import program


def agree(run: Any, model: GPT, text_ids: Callable[[int, int], torch.Tensor]) -> None:
    longest = model.config.block_size
    for batch, time in ((1, 1), (1, longest), (5, 7), (2, 8)):
        idx = text_ids(batch, time)
        torch.testing.assert_close(run(idx), model(idx).logits, atol=1e-6, rtol=1e-5)
    with pytest.raises(AssertionError, match=str(longest)):
        run(text_ids(1, longest + 1))


@pytest.mark.parametrize(
    "mechanism",
    ["phase_sync", "torus", "fsn", "lohe", "kope", "selective_rope", "fixed_query", "ssa"],
)
def test_a_program_gives_the_models_logits_at_any_shape(
    mechanism: str,
    make_model: Callable[..., GPT],
    roughen: Callable[[Any], Any],
    text_ids: Callable[[int, int], torch.Tensor],
) -> None:
    options = {"num_oscillators": 4, "steps": 3} if mechanism == "phase_sync" else {}
    layers = 2 if mechanism == "kope" else 1
    model = make_model(mechanism, n_layer=layers, block_size=40, positions="rope", **options)
    roughen(model).train()
    run = program(model).module()
    assert model.training
    model.eval()
    agree(run, model, text_ids)


def test_the_command_writes_a_program_that_loads(
    run: Path,
    tmp_path: Path,
    text_ids: Callable[[int, int], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of softmax and kuramoto, with learned positions."""
    out = tmp_path / "program"
    command(monkeypatch, "export", f"checkpoint={run}", f"out={out}", "format=torch")
    names = {"SHA256SUMS", "config.json", "model.pt2", "run.json", "tokenizer.json"}
    assert {file.name for file in out.iterdir()} == names
    assert json.loads((out / "tokenizer.json").read_text())["name"] == "char"
    loaded = torch.export.load(out / "model.pt2").module()
    agree(loaded, phasegpt.load(run), text_ids)
    with pytest.raises(CheckpointError, match="holds a program of torch"):
        phasegpt.load(out)


def test_a_scan_that_export_cannot_unroll_is_refused_by_name(
    make_model: Callable[..., GPT],
) -> None:
    model = make_model("phase_sync", forget=0.9, num_oscillators=4, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"attention.forget is not for torch.export where the"):
        program(model)
