"""Checkpoint files: written whole or not at all, verified by sha256, loaded without code.

A run keeps `checkpoints/step-00000100.ckpt`, each with its `.sha256` beside it, and the links
`last.ckpt` and `best.ckpt`. A checkpoint to share is a folder: model.safetensors, config.json,
tokenizer.json, run.json, and SHA256SUMS over them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import torch

from phasegpt.core.errors import CheckpointError
from phasegpt.core.files import read_json, write_atomic
from phasegpt.data.config import DataConfig
from phasegpt.data.tokenizers import Tokenizer, from_state
from phasegpt.model.config import GPTConfig, ModelSection, gpt_config
from phasegpt.model.gpt import GPT

Which = Literal["best", "last"]
_SUMS = "SHA256SUMS"


class Loaded(NamedTuple):
    """A model with where it comes from."""

    model: GPT
    tokenizer: Tokenizer
    config: dict[str, Any] | None  # the run's; None: an exported folder without run.json
    path: Path  # the .ckpt file or the exported folder
    sha256: str  # of the .ckpt or of model.safetensors


class _Hashed:
    """A file for torch.save that hashes what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(payload: dict[str, Any], path: Path) -> None:
    """Write a checkpoint: its content, then its sha256, then its final name.

    CheckpointError where that cannot be done; what stood there before is whole then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            hashed = _Hashed(file)
            torch.save(payload, hashed)  # type: ignore[arg-type] # it asks for write and flush
            file.flush()
            os.fsync(file.fileno())
        line = f"{hashed.sha256.hexdigest()}  {path.name}\n".encode()
        # While a file is written over, the old hash stays beside the new one: each is whole.
        old = _sidecar(path).read_bytes() if path.is_file() and _sidecar(path).is_file() else b""
        write_atomic(_sidecar(path), line + old)
        os.replace(temporary, path)
        if old:
            write_atomic(_sidecar(path), line)
    except (OSError, RuntimeError) as error:  # torch answers a full disk with a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(
            f"cannot write {path}: {reason}; make room or mend the place, and run the same command "
            f"with resume=true: earlier checkpoints are whole"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Verify and load a checkpoint on the CPU; CheckpointError if missing, damaged or unsafe."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The checkpoint's content and its sha256."""
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
        payload = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler meets in a file that is not ours
        raise CheckpointError(
            f"{path} is refused: it is not a checkpoint, or it holds more than tensors and plain "
            f"values, and loading that could run code ({type(error).__name__})"
        ) from error
    return payload, hashlib.sha256(content).hexdigest()


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


def is_ours(target: str | Path) -> bool:
    """Whether `target` is a run folder, a .ckpt file or an exported folder; else Hugging Face's."""
    path = Path(target)
    return path.is_file() or any((path / name).exists() for name in ("checkpoints", _SUMS))


def load(target: str | Path, which: Which = "best") -> GPT:
    """The trained model of a run folder, a .ckpt file or an exported folder, in eval mode.

    `model.tokenizer` is the tokenizer it was trained with. `which` chooses between a run's best
    and last checkpoint. Raises CheckpointError.
    """
    return load_run(target, which).model


def load_run(target: str | Path, which: Which = "best") -> Loaded:
    """Like load, with the run's configuration, the file and its sha256."""
    if which not in ("best", "last"):
        raise CheckpointError(f"which={which!r}; choose from: best, last")
    if (Path(target) / "model.safetensors").is_file():
        return _load_exported(Path(target))
    path = find(target, which)
    payload, sha256 = _read(path)
    hyper = payload.get("hyper_parameters") if isinstance(payload, dict) else None
    if not isinstance(hyper, dict) or not {"config", "tokenizer"} <= hyper.keys():
        raise CheckpointError(f"{path} is not a PhaseGPT checkpoint; it has no configuration")
    config, tokenizer = hyper["config"], from_state(hyper["tokenizer"])
    gpt = gpt_config(
        ModelSection.parse(config["model"]),
        config["attention"],
        DataConfig.parse(config["data"]),
        tokenizer.vocab_size,
    )
    weights = {k.removeprefix("model."): v for k, v in payload["state_dict"].items()}
    model = _assemble(gpt, weights, tokenizer)
    return Loaded(model, tokenizer, config, path, sha256)


def run_folder(path: Path) -> Path:
    """The folder of the run that a checkpoint file belongs to; a folder is its own."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def export(target: str | Path, folder: str | Path, which: Which = "best") -> Path:
    """Write a model as a folder to share; returns the folder. Raises CheckpointError."""
    from safetensors.torch import save_file

    loaded, folder = load_run(target, which), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: v.contiguous() for k, v in loaded.model.state_dict().items() if k != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", {"model_type": "phasegpt", **loaded.model.config.to_dict()})
    _write_json(folder / "tokenizer.json", loaded.tokenizer.state())
    record = run_folder(loaded.path) / "run.json"
    if record.is_file():
        write_atomic(folder / "run.json", record.read_bytes())
    elif loaded.config is not None:
        _write_json(folder / "run.json", {"config": loaded.config})
    sums = [f"{_hash(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    write_atomic(folder / _SUMS, "".join(sums).encode())
    return folder


def _load_exported(folder: Path) -> Loaded:
    from safetensors.torch import load_file

    sums = _verify_exported(folder)
    values = read_json(folder / "config.json")
    if values.pop("model_type", None) != "phasegpt":
        raise CheckpointError(f"{folder}/config.json is not a PhaseGPT model; try GPT.from_hf")
    tokenizer = from_state(read_json(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    record = read_json(folder / "run.json") if "run.json" in sums else {}
    model = _assemble(GPTConfig.parse(values), weights, tokenizer)
    return Loaded(model, tokenizer, record.get("config"), folder, sums["model.safetensors"])


def _verify_exported(folder: Path) -> dict[str, str]:
    """sha256 by file name, after comparing every one; CheckpointError for the first that differs.

    A folder in Hugging Face's own form has no SHA256SUMS.
    """
    if not (folder / _SUMS).is_file():
        raise CheckpointError(
            f"{folder} has no {_SUMS}, so it is no exported PhaseGPT model, or not whole; "
            f"copy it too (a GPT-2 in Hugging Face's form loads with GPT.from_hf)"
        )
    lines = (folder / _SUMS).read_text(encoding="ascii", errors="replace").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        if name not in sums:
            raise CheckpointError(f"{folder}/{_SUMS} is damaged: it does not list {name}")
    for name, digest in sums.items():
        if not (folder / name).is_file() or _hash(folder / name) != digest:
            raise CheckpointError(
                f"{folder}/{name} is missing or damaged: its sha256 is not the one in {_SUMS}"
            )
    return sums


def _assemble(config: GPTConfig, weights: dict[str, torch.Tensor], tokenizer: Tokenizer) -> GPT:
    with torch.random.fork_rng(devices=[]):  # making a layer draws numbers that are not used
        model = GPT(config, seed=0)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the configuration: {error}") from error
    model.tokenizer = tokenizer
    return model.eval()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _verified(path: Path, content: bytes) -> bool:
    expected = _sidecar(path).read_text(encoding="ascii", errors="replace").split()[::2]
    return hashlib.sha256(content).hexdigest() in expected


def _offer(path: Path) -> str:
    """Name the newest other checkpoint of the folder that is whole, if there is one."""
    for other in sorted(path.parent.glob("step-*.ckpt"), reverse=True):
        if other != path and _sidecar(other).is_file() and _verified(other, other.read_bytes()):
            return f". Another checkpoint is whole: {other}"
    return ""
