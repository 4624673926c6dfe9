"""GPT.from_hf computes what transformers computes from the same folder, or says what it cannot."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from phasegpt.core.errors import CheckpointError
from phasegpt.model import published
from phasegpt.model.gpt import GPT

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 40}
IDS = torch.arange(40).view(2, 20)


@functools.cache
def build(**options: Any) -> Any:
    """A GPT2LMHeadModel far from its initial weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build().save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, *drop: str, **values: Any) -> None:
    """Edit config.json."""
    file = folder / "config.json"
    found = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in found.items() if k not in drop}))


def store(folder: Path, edit: Callable[[dict], Any]) -> None:
    """Edit the weights."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


@torch.no_grad()
def same(folder: Path, theirs: Any) -> None:
    ours = GPT.from_hf(folder)
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"activation_function": "gelu_pytorch_tanh"}, {"n_inner": 64}],
    ids=lambda options: next(iter(options)),
)
def test_variants_that_compute_the_same_function_are_read(options: dict, tmp_path: Path) -> None:
    build(**options).save_pretrained(tmp_path)
    same(tmp_path, build(**options))


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    same(tmp_path, build())
    missing = min(tmp_path.glob("model-*.safetensors"))
    missing.unlink()
    with pytest.raises(CheckpointError, match=f"has no {missing.name}, which"):
        GPT.from_hf(tmp_path)


@pytest.mark.parametrize("names", [{}, [], {"x": "../model.safetensors"}, {"x": 3}])
def test_an_index_that_leads_elsewhere_is_refused(names: Any, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="no weight_map of files in its own folder"):
        GPT.from_hf(folder)


def test_keys_left_out_take_the_defaults_of_transformers(folder: Path) -> None:
    from transformers import GPT2Config

    change(folder, *(k for k in GPT2Config().to_dict() if k not in (*SIZES, "model_type")))
    same(folder, build())
    change(folder, *SIZES)
    found, theirs = published.config(folder), GPT2Config()
    names = ("n_layer", "n_head", "n_embd", "vocab_size", "layer_norm_epsilon")
    assert [getattr(found, x) for x in names] == [getattr(theirs, x) for x in names]
    assert (found.block_size, found.dropout) == (theirs.n_positions, theirs.resid_pdrop)
    change(folder, **SIZES | {"n_embd": None})
    with pytest.raises(CheckpointError, match=r"n_embd=null must be a whole number"):
        GPT.from_hf(folder)


def test_a_width_of_its_own_inside_the_mlp_is_read(tmp_path: Path) -> None:
    model = build(n_inner=40)
    model.save_pretrained(tmp_path)
    assert GPT.from_hf(tmp_path).config.mlp_width == 40
    same(tmp_path, model)


def test_general_names_of_sizes_are_read_as_transformers_reads_them(folder: Path) -> None:
    general = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    change(folder, "n_embd", "n_layer", "n_head", **general)
    same(folder, build())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"n_inner": 32}, r"shape \[64, 16\].* expected \[32, 16\]"),
        ({"activation_function": "gelu"}, "activation_function='gelu'"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True"),
        ({"scale_attn_weights": None}, "scale_attn_weights=None"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ({"embd_pdrop": 0.2}, "embd_pdrop=0.2.*make the three equal"),
        ({"n_layer": "two"}, r"config\.json is no GPT-2.*n_layer"),
        ({"n_head": 3}, "not divisible"),
        ({"n_layer": 1}, r"h\.1\.attn\.c_attn\.bias.* and 9 more would not be used"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_configuration_that_computes_something_else_is_refused(
    values: dict, says: str, folder: Path
) -> None:
    change(folder, **values)
    with pytest.raises(CheckpointError, match=says):
        GPT.from_hf(folder)


def test_a_head_of_its_own_is_refused_and_an_equal_one_read(folder: Path) -> None:
    wte = "transformer.wte.weight"
    store(folder, lambda w: w.update({"lm_head.weight": w[wte].clone()}))
    same(folder, build())
    store(folder, lambda w: w.update({"lm_head.weight": w[wte] + 1}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from transformer\.wte"):
        GPT.from_hf(folder)
    store(folder, lambda w: w.update({"lm_head.weight": w.pop(wte)}))
    GPT.from_hf(folder)  # the one matrix under its other name


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("score.weight", torch.ones(2, 16), r"transformer\.score\.weight would not be used"),
        ("wte.weight", torch.ones(40, 16), r"holds transformer\.wte\.weight a second time"),
        ("transformer.ln_f.bias", torch.ones(16).long(), "int64, expected"),
        ("transformer.ln_f.bias", torch.ones(17), r"shape \[17\]"),
    ],
)
def test_a_tensor_without_its_place_is_refused_by_name(
    name: str, value: torch.Tensor, says: str, folder: Path
) -> None:
    store(folder, lambda w: w.update({name: value}))
    with pytest.raises(CheckpointError, match=says):
        GPT.from_hf(folder)


def test_the_causal_masks_of_old_files_are_left_out(folder: Path) -> None:
    masks = {"h.1.attn.bias": torch.ones(1, 1, 24, 24), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    store(folder, lambda w: w.update(masks))
    same(folder, build())


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle.*save_pretrained"):
        GPT.from_hf(folder)


def test_the_model_comes_in_eval_mode(folder: Path) -> None:
    model = GPT.from_hf(folder)
    assert not any(module.training for module in model.modules())
