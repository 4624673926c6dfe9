"""The right hash over the wrong content is one error that names the file."""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TEXT, make_run, payload, run_config, text_data

from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.model import checkpoint, loading
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT


@pytest.fixture(scope="module")
def content(tmp_path_factory: Any) -> dict[str, Any]:
    return payload(run_config(*text_data(tmp_path_factory.mktemp("content"), TEXT)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    return loading.export(make_run(folder / "run", *text_data(folder, TEXT)), folder / "shared")


def set_(*keys: str, to: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        if to is Ellipsis:
            del content[keys[-1]]
        else:
            content[keys[-1]] = to

    return change


HYPER = "hyper_parameters"
WTE = "model.transformer.wte.weight"


@pytest.mark.parametrize(
    "change",
    [
        set_("state_dict", to=...),
        *(set_("state_dict", to=value) for value in (None, [], {}, 3, {1: 2}, {"a": "b"})),
        set_("state_dict", WTE, to=...),
        *(set_("state_dict", WTE, to=value) for value in (None, 1.0, torch.zeros(3), [[1.0]])),
        *(set_(HYPER, to=value) for value in (None, [], 3)),
        *(set_(HYPER, "config", to=value) for value in (None, [], 3, {}, {"model": 3})),
        *(set_(HYPER, "config", "model", to=value) for value in (..., [], {"n_layer": "x"})),
        set_(HYPER, "config", "model", "n_layer", to=99999999999999999999),
        set_(HYPER, "config", "model", "n_embd", to=10**30),
        *(set_(HYPER, "config", "attention", to=value) for value in (..., 3, {"name": 3}, [])),
        set_(HYPER, "config", "attention", to={"name": "../../evil"}),
        *(set_(HYPER, "config", "data", to=value) for value in (..., 3, {"path": 3})),
        *(set_(HYPER, "tokenizer", to=value) for value in (None, 3, {}, {"name": "other"})),
        set_(HYPER, "tokenizer", to={"name": "char", "alphabet": "aa"}),
        set_(HYPER, "tokenizer", to={"name": "char", "alphabet": "ab"}),
    ],
)
def test_a_checkpoint_of_wrong_content_is_refused_by_name(
    content: dict[str, Any], tmp_path: Path, change: Callable[[Any], None]
) -> None:
    wrong = copy.deepcopy(content)
    change(wrong)
    path = tmp_path / "step-00000001.ckpt"
    checkpoint.save(wrong, path)
    with pytest.raises(CheckpointError) as error:
        loading.load_run(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 20


@pytest.mark.parametrize("value", [None, [1], 3, "text", torch.zeros(2)])
def test_a_checkpoint_that_is_no_mapping_is_refused(tmp_path: Path, value: Any) -> None:
    checkpoint.save(value, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt holds a .* not a PhaseGPT checkpoint"):
        loading.load_run(tmp_path / "a.ckpt")


def test_a_checkpoint_that_cannot_be_trained_on_names_what_it_lacks(
    content: dict[str, Any], tmp_path: Path
) -> None:
    state = {"global_step": 1, "epoch": 0, "loops": {}, "callbacks": {}}
    whole = {**content, **state, "optimizer_states": [], "lr_schedulers": []}
    checkpoint.save(whole, tmp_path / "whole.ckpt")
    checkpoint.check_resumable(tmp_path / "whole.ckpt")
    for key in ("loops", "state_dict", "optimizer_states", "global_step"):
        for wrong in ({k: v for k, v in whole.items() if k != key}, {**whole, key: "x"}):
            checkpoint.save(wrong, tmp_path / "a.ckpt")
            says = f"its {key} is missing or no"
            if "optimizer_states" not in wrong:
                says = "holds weights alone; resume from the run's folder"
            with pytest.raises(CheckpointError, match=says):
                checkpoint.check_resumable(tmp_path / "a.ckpt")


def sign(folder: Path) -> None:
    names = ("config.json", "model.safetensors", "run.json", "tokenizer.json")
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("model.safetensors", value) for value in (b"", b"x" * 9, b"\xff" * 64)),
        *(("config.json", value) for value in (b"[]", b"{", b"3", b"{}", b'{"config": 3}')),
        ("config.json", b'{"model_type": "phasegpt", "n_layer": 2}'),
        ("config.json", b'{"model_type": "phasegpt", "attention_options": 3}'),
        *(("tokenizer.json", value) for value in (b"[]", b"{", b"{}", b'{"name": "char"}')),
        ("tokenizer.json", b'{"name": "char", "alphabet": [1]}'),
        *(("run.json", value) for value in (b"[]", b'{"config": 3}', b'{"config": []}')),
        *(("run.json", value) for value in (b'{"data": 3}', b'{"data": {"fingerprint": 3}}')),
    ],
)
def test_an_export_of_wrong_content_is_refused_by_name(
    exported: Path, tmp_path: Path, file: str, content: bytes
) -> None:
    folder = shutil.copytree(exported, tmp_path / "shared")
    (folder / file).write_bytes(content)
    sign(folder)
    with pytest.raises(CheckpointError) as error:
        loading.load_run(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value).splitlines()) <= 20


def test_an_export_cannot_name_files_outside_its_folder(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "shared")
    (tmp_path / "x").write_bytes(b"x")
    sums = folder / "SHA256SUMS"
    for name in ("../x", "/etc/passwd", "..", ""):
        sign(folder)
        line = f"{hashlib.sha256(b'x').hexdigest()}  {name}\n"
        sums.write_text(sums.read_text() + line)
        with pytest.raises(CheckpointError, match="SHA256SUMS is damaged"):
            loading.load_run(folder)


def test_an_export_that_cannot_be_written_is_told_before(
    exported: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(loading, "load_run", None)  # the work would fail
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(ConfigError, match="the folder of the export: cannot write"):
            loading.export(exported, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broken_record_beside_a_checkpoint_is_named(exported: Path, tmp_path: Path) -> None:
    run = shutil.copytree(exported.parent / "run", tmp_path / "run", symlinks=True)
    for wrong in ("[]", "{", json.dumps({"data": [1]})):
        (run / "run.json").write_text(wrong)
        with pytest.raises(CheckpointError, match=r"run\.json"):
            loading.load_run(run)


def test_a_model_beyond_memory_is_refused_before_it_is_allocated() -> None:
    sizes = {"n_head": 1, "vocab_size": 10, "block_size": 8}
    for layers, width in ((10_000, 100_000), (4, 10**6), (1, 2**20)):
        with pytest.raises(ConfigError, match=r"too large for memory.* bytes in float32"):
            GPT(GPTConfig(n_layer=layers, n_embd=width, **sizes))
