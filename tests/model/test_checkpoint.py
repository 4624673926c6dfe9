"""Checkpoints: whole or not there, verified, never run as code."""

import hashlib
import os
import pickle
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TEXT, make_run, payload, run_config, text_data

import phasegpt
from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.core.files import write_atomic
from phasegpt.model import checkpoint, loading


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    """A run folder that no test writes to."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return make_run(folder / "run", *text_data(folder, TEXT))


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run", symlinks=True)


@pytest.fixture
def idx(text_ids: Any) -> torch.Tensor:
    return text_ids(2, 20) % 40


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number:08d}.ckpt"


def sign(path: Path) -> None:
    """Write the sha256 that `path` has, as sha256sum does."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


def logits(target: Path, idx: torch.Tensor, which: Any = "best") -> torch.Tensor:
    with torch.no_grad():
        return phasegpt.load(target, which=which)(idx).logits


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path: Path) -> None:
    content = {"weights": torch.randn(3, 4), "plain": {"a": [1, 2.5, "x", None, True]}}
    checkpoint.save(content, tmp_path / "new" / "a.ckpt")
    back = checkpoint.read(tmp_path / "new" / "a.ckpt")
    assert torch.equal(back["weights"], content["weights"])
    assert back["plain"] == content["plain"]


def test_sha256sum_agrees_with_the_file_beside_the_checkpoint(whole: Path) -> None:
    path = step(whole, 10)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.with_name(path.name + ".sha256").read_text() == f"{digest}  {path.name}\n"


def test_which_chooses_between_best_and_last(whole: Path, idx: torch.Tensor) -> None:
    best, last = logits(whole, idx, "best"), logits(whole, idx, "last")
    assert torch.equal(best, logits(step(whole, 10), idx))
    assert torch.equal(last, logits(whole / "checkpoints" / "last.ckpt", idx))
    assert not torch.equal(best, last)
    with pytest.raises(ConfigError, match="best, last"):
        phasegpt.load(whole, which="first")  # type: ignore[arg-type]


def test_before_any_validation_the_last_checkpoint_is_the_best(run: Path) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()
    assert checkpoint.find(run, "best") == step(run, 20)


def test_a_loaded_model_is_in_eval_mode_and_has_its_tokenizer(whole: Path) -> None:
    model = phasegpt.load(whole)
    assert not model.training
    assert model.tokenizer.decode(model.tokenizer.encode("Shall I")) == "Shall I"
    loaded = loading.load_run(whole)
    assert loaded.config is not None and loaded.config["data"]["tokenizer"] == "char"
    assert loaded.path == step(whole, 10)
    assert loaded.sha256 == hashlib.sha256(step(whole, 10).read_bytes()).hexdigest()


def test_one_flipped_bit_anywhere_is_found_and_another_checkpoint_offered(run: Path) -> None:
    path = step(run, 20)
    content = path.read_bytes()
    rng = random.Random(0)
    places = [0, len(content) * 8 - 1, *(rng.randrange(len(content) * 8) for _ in range(40))]
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError) as error:
            phasegpt.load(run, which="last")
        assert "is damaged" in str(error.value)
        assert str(step(run, 10)) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_torch_alone_would_load_a_flipped_bit(run: Path) -> None:
    """Why the sha256 is there."""
    path = step(run, 20)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        weights = [info for info in archive.infolist() if "/data/" in info.filename]
    largest = max(weights, key=lambda info: info.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 64
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


def test_a_damaged_checkpoint_is_not_offered(run: Path) -> None:
    for number in (10, 20):
        content = bytearray(step(run, number).read_bytes())
        content[1000] ^= 1
        step(run, number).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        phasegpt.load(run)
    assert "whole" not in str(error.value)


def test_a_truncated_checkpoint_is_found(run: Path) -> None:
    path = step(run, 20)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=re.escape(f"is whole: {step(run, 10)}")):
        checkpoint.read(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


def test_a_checkpoint_without_its_sha256_is_refused(run: Path) -> None:
    step(run, 20).with_name("step-00000020.ckpt.sha256").unlink()
    with pytest.raises(CheckpointError, match=r"has no step-00000020\.ckpt\.sha256") as error:
        phasegpt.load(run, which="last")
    assert str(step(run, 10)) in str(error.value)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, how: str) -> None:
    path, marker = tmp_path / "step-00000001.ckpt", tmp_path / "ran"
    content = {"hyper_parameters": Payload(marker), "state_dict": {}}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    sign(path)  # the hash is right: what stops it is weights_only
    with pytest.raises(CheckpointError, match="could run code"):
        phasegpt.load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the payload was live


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 nor a zip"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    sign(path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        phasegpt.load(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"hyper_parameters": {}}, {"state_dict": {}}])
def test_another_programs_checkpoint_is_named_as_such(tmp_path: Path, content: Any) -> None:
    checkpoint.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="not a PhaseGPT checkpoint"):
        phasegpt.load(tmp_path / "a.ckpt")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    content = payload(run_config(*text_data(tmp_path, TEXT)))
    content["state_dict"].pop("model.transformer.ln_f.weight")
    checkpoint.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"ln_f\.weight"):
        phasegpt.load(tmp_path / "a.ckpt")


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        phasegpt.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        phasegpt.load(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.read(tmp_path / "step-00000001.ckpt")


def broken(*_: Any) -> None:
    raise OSError("the machine stopped here")


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    for what in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, what, broken)
            with pytest.raises(OSError, match="stopped"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("survives", [0, 1, 2, 3])
def test_a_save_over_a_checkpoint_can_stop_at_any_rename(
    tmp_path: Path, monkeypatch: Any, survives: int
) -> None:
    """Old or new, but always whole."""
    path = tmp_path / "a.ckpt"
    checkpoint.save({"step": 1}, path)
    replace, calls = os.replace, []

    def stops(*names: Any) -> None:
        calls.append(names)
        if len(calls) > survives:
            broken()
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stops)
        if survives < 3:
            with pytest.raises(CheckpointError, match=r"cannot write.*the machine stopped here"):
                checkpoint.save({"step": 2}, path)
            assert {file.name for file in tmp_path.iterdir()} == {"a.ckpt", "a.ckpt.sha256"}
        else:
            checkpoint.save({"step": 2}, path)
    assert checkpoint.read(path) == {"step": 1 if survives < 2 else 2}


def test_a_link_moves_atomically_and_is_relative(run: Path, tmp_path: Path) -> None:
    checkpoint.link(step(run, 20), "best.ckpt")
    moved = run.rename(tmp_path / "elsewhere")
    assert checkpoint.find(moved, "best") == step(moved, 20)


def test_remove_takes_the_sha256_along(run: Path) -> None:
    checkpoint.remove(step(run, 20))
    assert not list((run / "checkpoints").glob("step-00000020*"))
    checkpoint.remove(step(run, 20))  # twice does no harm


def test_an_exported_folder_gives_bit_identical_logits(
    whole: Path, tmp_path: Path, idx: torch.Tensor
) -> None:
    folder = loading.export(whole, tmp_path / "shared", which="last")
    names = {"SHA256SUMS", "config.json", "model.safetensors", "run.json", "tokenizer.json"}
    assert {file.name for file in folder.iterdir()} == names
    assert torch.equal(logits(folder, idx), logits(whole, idx, "last"))
    back, origin = loading.load_run(folder), loading.load_run(whole)
    assert back.config == origin.config
    assert back.tokenizer.fingerprint == origin.tokenizer.fingerprint
    again = loading.export(folder, tmp_path / "again")
    assert torch.equal(logits(again, idx), logits(folder, idx))


def test_a_runs_record_travels_with_an_exported_checkpoint_file(run: Path, tmp_path: Path) -> None:
    (run / "run.json").write_text('{"status": "ok"}')
    folder = loading.export(step(run, 10), tmp_path / "shared")
    assert (folder / "run.json").read_text() == '{"status": "ok"}'
    assert loading.load_run(folder).config is None  # that record has no config


def test_one_flipped_bit_in_any_file_of_an_exported_folder_is_found(
    whole: Path, tmp_path: Path
) -> None:
    folder = loading.export(whole, tmp_path / "shared")
    rng = random.Random(1)
    for file in sorted(folder.iterdir()):
        if file.name == "SHA256SUMS":
            continue
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=re.escape(file.name)):
            phasegpt.load(folder)
        file.write_bytes(content)
    phasegpt.load(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="has no SHA256SUMS"):
        phasegpt.load(folder)


def test_export_does_not_write_into_a_folder_that_is_not_empty(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="not empty"):
        loading.export(whole, whole)


def test_which_that_could_choose_nothing_is_refused(whole: Path, tmp_path: Path) -> None:
    file = whole / "checkpoints" / "best.ckpt"
    loading.load(file)
    loading.load(whole / "checkpoints" / "last.ckpt", "last")
    with pytest.raises(CheckpointError, match=r"which=last chooses .* is one file"):
        loading.load(file, "last")
    loading.export(whole, tmp_path / "export")
    with pytest.raises(CheckpointError, match=r"which=last chooses .* holds one model"):
        loading.load(tmp_path / "export", "last")
