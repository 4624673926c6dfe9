"""Checkpoint files: written whole or not at all, verified by sha256, loaded without code.

A run keeps `checkpoints/step-00000100.ckpt`, each with its `.sha256` beside it, and the links
`last.ckpt` and `best.ckpt`. A checkpoint to share is a folder: model.safetensors + config.json +
tokenizer.json + run.json.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from phasegpt.build import gpt_config
from phasegpt.config import GPTConfig, RunConfig
from phasegpt.errors import CheckpointError
from phasegpt.model import GPT
from phasegpt.tokenizers import from_state

Which = Literal["best", "last"]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save(payload: dict[str, Any], path: Path) -> None:
    """Write a checkpoint: its sha256 first, then the file under its final name."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_sidecar(path), f"{digest}  {path.name}\n".encode())
    write_atomic(path, content)


def read(path: Path) -> dict[str, Any]:
    """Verify and load a checkpoint on the CPU; CheckpointError if missing, damaged or unsafe."""
    path = path.resolve()
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist{_offer(path)}")
    content = path.read_bytes()
    if not _sidecar(path).is_file():
        raise CheckpointError(
            f"{path} has no {_sidecar(path).name} beside it, so damage could not be seen; copy it "
            f"too, or make it with sha256sum if you trust the file{_offer(path)}"
        )
    if not _verified(path, content):
        raise CheckpointError(
            f"{path} is damaged: its sha256 is not the one in {_sidecar(path).name}{_offer(path)}"
        )
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and loading it could run code; "
            f"it is refused"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint ({error}){_offer(path)}") from error


def remove(path: Path) -> None:
    """Delete a checkpoint and its sha256."""
    path.unlink(missing_ok=True)
    _sidecar(path).unlink(missing_ok=True)


def link(path: Path, name: str) -> None:
    """Point `name` in the same folder at `path`, atomically."""
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    os.replace(temporary, path.with_name(name))


def find(target: str | Path, which: Which = "best") -> Path:
    """The .ckpt file meant by a run folder or a file; CheckpointError if there is none.

    A run that has not validated yet has no best checkpoint; its last one stands in.
    """
    target = Path(target)
    if target.is_file():
        return target
    if not target.is_dir():
        raise CheckpointError(
            f"{target} does not exist; give a run folder, a .ckpt file or an exported folder"
        )
    names = ["best.ckpt", "last.ckpt"] if which == "best" else ["last.ckpt"]
    for name in names:
        path = target / "checkpoints" / name
        if path.exists():
            return path.resolve()
    raise CheckpointError(f"{target} holds no checkpoint yet (looked for checkpoints/{names[-1]})")


def load(target: str | Path, which: Which = "best") -> GPT:
    """The trained model of a run folder, a .ckpt file or an exported folder, in eval mode.

    `model.tokenizer` is the tokenizer it was trained with. `which` chooses between a run's best
    and last checkpoint. Raises CheckpointError.
    """
    if which not in ("best", "last"):
        raise CheckpointError(f"which={which!r}; choose from: best, last")
    if (Path(target) / "model.safetensors").is_file():
        return _load_exported(Path(target))
    path = find(target, which)
    payload = read(path)
    if "hyper_parameters" not in payload or "state_dict" not in payload:
        raise CheckpointError(f"{path} is not a PhaseGPT checkpoint; it has no configuration")
    run = RunConfig.parse(payload["hyper_parameters"]["config"])
    tokenizer = from_state(payload["hyper_parameters"]["tokenizer"])
    weights = {k.removeprefix("model."): v for k, v in payload["state_dict"].items()}
    return _assemble(gpt_config(run, tokenizer.vocab_size), weights, tokenizer)


def export(target: str | Path, folder: str | Path, which: Which = "best") -> Path:
    """Write a model as a folder to share; returns the folder. Raises CheckpointError."""
    from safetensors.torch import save_file

    model, folder = load(target, which), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", {"model_type": "phasegpt", **model.config.to_dict()})
    _write_json(folder / "tokenizer.json", model.tokenizer.state())
    record = Path(target) / "run.json"
    if record.is_file():
        shutil.copyfile(record, folder / "run.json")
    return folder


def _load_exported(folder: Path) -> GPT:
    from safetensors.torch import load_file

    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if values.pop("model_type", None) != "phasegpt":
        raise CheckpointError(f"{folder}/config.json is not a PhaseGPT model; try GPT.from_hf")
    tokenizer = from_state(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return _assemble(GPTConfig.parse(values), weights, tokenizer)


def _assemble(config: GPTConfig, weights: dict[str, torch.Tensor], tokenizer: Any) -> GPT:
    model = GPT(config, seed=0)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the configuration: {error}") from error
    model.tokenizer = tokenizer
    return model.eval()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _verified(path: Path, content: bytes) -> bool:
    expected = _sidecar(path).read_text(encoding="ascii", errors="replace").split()
    return bool(expected) and hashlib.sha256(content).hexdigest() == expected[0]


def _offer(path: Path) -> str:
    """Name the newest other checkpoint of the folder that is whole, if there is one."""
    for other in sorted(path.parent.glob("step-*.ckpt"), reverse=True):
        if other != path and _sidecar(other).is_file() and _verified(other, other.read_bytes()):
            return f". An earlier checkpoint is whole: {other}"
    return ""
