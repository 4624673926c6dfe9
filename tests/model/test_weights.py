"""Stored weights that a model would round, leave out or could not use are refused by name."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TEXT, payload, run_config, text_data
from safetensors.torch import load_file, save_file

import phasegpt
from phasegpt.core.errors import CheckpointError
from phasegpt.model import checkpoint, loading

MLP = "model.transformer.h.1.mlp.c_fc.weight"
HEAD = "model.lm_head.weight"


@pytest.fixture(scope="module")
def content(tmp_path_factory: Any) -> dict[str, Any]:
    return payload(run_config(*text_data(tmp_path_factory.mktemp("weights"), TEXT)))


def edited(content: dict[str, Any], name: Any, value: Any) -> dict[str, Any]:
    return {**content, "state_dict": {**content["state_dict"], name: value}}


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        (MLP, torch.Tensor.long, "c_fc.weight is a tensor of torch.int64"),
        (MLP, lambda w: w > 0, "c_fc.weight is a tensor of torch.bool"),
        (MLP, lambda w: w.to(torch.complex64), "c_fc.weight is a tensor of torch.complex64"),
        (MLP, torch.Tensor.tolist, "c_fc.weight': a list, which is no tensor"),
        (HEAD, lambda w: w + 1, "lm_head.weight is not model.transformer.wte.weight"),
        (HEAD, lambda w: w[1:], "lm_head.weight is not model.transformer.wte.weight"),
    ],
)
def test_a_weight_that_a_model_would_not_hold_as_it_is_is_refused(
    content: dict[str, Any], name: str, edit: Callable[[Any], Any], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "step-00000001.ckpt"
    checkpoint.save(edited(content, name, edit(content["state_dict"][name])), path)
    with pytest.raises(CheckpointError, match=says):
        phasegpt.load(path)
    whole = {"global_step": 1, "epoch": 0, "loops": {}, "callbacks": {}, "optimizer_states": [],
             "lr_schedulers": []}  # fmt: skip
    checkpoint.save({**content, **whole}, path)
    checkpoint.check_resumable(path)
    checkpoint.save({**edited(content, name, edit(content["state_dict"][name])), **whole}, path)
    with pytest.raises(CheckpointError, match=f"cannot be trained on: .*{says}"):
        checkpoint.check_resumable(path)


def test_weights_that_are_not_finite_load_and_are_not_exported(
    content: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(edited(content, MLP, content["state_dict"][MLP] * float("nan")), path)
    assert not phasegpt.load(path).blocks[1].mlp.c_fc.weight.isfinite().any()
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight holds NaN or infinity"):
        loading.export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_in_an_exported_folder_is_the_embedding(
    content: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint.save(content, tmp_path / "a.ckpt")
    folder = loading.export(tmp_path / "a.ckpt", tmp_path / "out")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["transformer.wte.weight"]
    for head, fits in ((embedding.clone(), True), (embedding + 1, False)):
        save_file({**tensors, "lm_head.weight": head}, file)
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines = [f"{digest}  {file.name}" if file.name in line else line for line in lines]
        (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
        if fits:
            assert torch.equal(phasegpt.load(folder).lm_head.weight, embedding)
            continue
        with pytest.raises(CheckpointError, match="they are one tensor"):
            phasegpt.load(folder)
