"""Checkpoint files: written whole or not at all, verified by sha256, loaded without code.

A run keeps `checkpoints/step-00000100.ckpt`, each with its `.sha256` beside it, and the links
`last.ckpt` and `best.ckpt`; where a copy of the run has lost the links, the files behind them are
found by their hashes and run.json. A checkpoint to share is a folder: model.safetensors,
config.json, tokenizer.json, run.json, and SHA256SUMS over them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import torch

from phasegpt.core import arguments
from phasegpt.core.errors import CheckpointError, UserError
from phasegpt.core.files import check_output, read_bytes, read_json, reading, write_atomic, writing
from phasegpt.data.config import DataConfig
from phasegpt.data.tokenizers import Tokenizer, from_state
from phasegpt.model import weights as stored
from phasegpt.model.config import AttentionSection, GPTConfig, ModelSection, gpt_config
from phasegpt.model.gpt import GPT
from phasegpt.model.migration import migrated
from phasegpt.model.run_checkpoints import (
    best,
    last,
    sha256_of,
    sidecar,
    sums_beside,
    verified,
    whole,
)

Which = Literal["best", "last"]
_SUMS = "SHA256SUMS"
#: Keys of config.json that transformers needs and a GPTConfig does not have.
OF_TRANSFORMERS = ("architectures", "auto_map", "dtype")
#: Our tokenizer's state in a folder whose tokenizer.json is in the form of transformers.
STATE_BESIDE = "phasegpt_tokenizer.json"


class Loaded(NamedTuple):
    """A model with where it comes from."""

    model: GPT
    tokenizer: Tokenizer
    config: dict[str, Any] | None  # the run's; None: an exported folder without run.json
    path: Path  # the .ckpt file or the exported folder
    sha256: str  # of the .ckpt or of model.safetensors
    data_fingerprint: str | None = None  # of the corpus it was trained on, where run.json says


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
        old = sidecar(path).read_bytes() if path.is_file() and sidecar(path).is_file() else b""
        write_atomic(sidecar(path), line + old)
        os.replace(temporary, path)
        if old:
            write_atomic(sidecar(path), line)
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


#: What training needs of a checkpoint, as Lightning writes it: the type of each part.
_STATE: dict[str, type] = {
    **{"global_step": int, "epoch": int, "state_dict": dict, "loops": dict, "callbacks": dict},
    **{"optimizer_states": list, "lr_schedulers": list, "hyper_parameters": dict},
}


def check_resumable(path: Path) -> None:
    """CheckpointError if training could not go on from this checkpoint."""
    payload = read(path)
    if "optimizer_states" not in payload:
        raise CheckpointError(
            f"{path} holds weights alone; resume from the run's folder or a step-*.ckpt of it"
        )
    for key, kind in _STATE.items():
        if not isinstance(payload.get(key), kind):
            raise not_resumable(path, f"its {key} is missing or no {kind.__name__}")
    try:
        stored.check(payload["state_dict"])
    except CheckpointError as error:
        raise not_resumable(path, str(error)) from error


def not_resumable(path: Path, why: str) -> CheckpointError:
    """The error of a checkpoint from which training cannot go on."""
    return CheckpointError(
        f"{path} cannot be trained on: {why}; resume from another checkpoint of the run, or start "
        f"anew"
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The checkpoint's content and its sha256."""
    path = path.resolve()
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist{_offer(path)}")
    with _reading(path):
        content = read_bytes(path)
    if not sums_beside(path):
        raise CheckpointError(
            f"{path} has no {sidecar(path).name} beside it, so damage could not be seen; copy it "
            f"too, or make it with sha256sum if you trust the file{_offer(path)}"
        )
    if not verified(path, content):
        raise CheckpointError(
            f"{path} is damaged: its sha256 is not the one in {sidecar(path).name}{_offer(path)}"
        )
    try:
        payload = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler meets in a file that is not ours
        raise CheckpointError(
            f"{path} is refused: it is not a checkpoint, or it holds more than tensors and plain "
            f"values, and loading that could run code ({type(error).__name__})"
        ) from error
    if not isinstance(payload, dict):
        raise CheckpointError(
            f"{path} holds a {type(payload).__name__} and is not a PhaseGPT checkpoint; give "
            f"one that training wrote"
        )
    return payload, hashlib.sha256(content).hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what content of a wrong form raises into one CheckpointError that names the file."""
    try:
        yield
    except (UserError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
            OverflowError) as error:  # fmt: skip
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        said = cause if str(path) in cause else f"{path} cannot be used: {cause}"
        raise CheckpointError(
            f"{said:.1000}. Copy the file again from where it was made, or give another one"
        ) from error


def remove(path: Path) -> None:
    """Delete a checkpoint and its sha256."""
    path.unlink(missing_ok=True)
    sidecar(path).unlink(missing_ok=True)


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
    if target.name in ("best.ckpt", "last.ckpt") and os.path.lexists(target):
        chosen = best(target.parent) if target.name == "best.ckpt" else last(target.parent)
        if chosen is not None:
            return chosen
    if os.path.isfile(target):
        return target
    if not os.path.isdir(target):
        raise CheckpointError(
            f"{target!s:.300} does not exist; give a run folder, a .ckpt file or an exported folder"
        )
    directory = target / "checkpoints"
    found = (best(directory) if which == "best" else None) or last(directory)
    if found is None:
        raise CheckpointError(f"{target} holds no checkpoint yet (looked for checkpoints/*.ckpt)")
    return found


def is_ours(target: str | Path) -> bool:
    """Whether `target` is a run folder, a .ckpt file or an exported folder; else Hugging Face's."""
    path = Path(target)
    return os.path.isfile(path) or any(
        os.path.exists(path / name) for name in ("checkpoints", _SUMS)
    )


def load(target: str | Path, which: Which = "best") -> GPT:
    """The trained model of a run folder, a .ckpt file or an exported folder, in eval mode.

    `model.tokenizer` is the tokenizer it was trained with. `which` chooses between a run's best
    and last checkpoint. Raises CheckpointError.
    """
    return load_run(target, which).model


def load_run(target: str | Path, which: Which = "best") -> Loaded:
    """Like load, with the run's configuration, the file and its sha256."""
    target = arguments.path("target", target)
    arguments.choice("which", which, ("best", "last"))
    if os.path.isfile(target / "model.safetensors"):
        return _load_exported(target)
    with reading(target):
        path = find(target, which)
    payload, sha256 = _read(path)
    hyper = payload.get("hyper_parameters")
    if not isinstance(hyper, dict) or not {"config", "tokenizer"} <= hyper.keys():
        raise CheckpointError(f"{path} is not a PhaseGPT checkpoint; it has no configuration")
    tokenizer = _tokenizer(path, hyper["tokenizer"])
    with _reading(path):
        config = _of_today(hyper["config"])
        gpt = gpt_config(
            ModelSection.parse(config["model"]),
            AttentionSection.parse(config["attention"]),
            DataConfig.parse(config["data"]),
            tokenizer.vocab_size,
        )
        stored.check(payload["state_dict"])
        weights = {k.removeprefix("model."): v for k, v in payload["state_dict"].items()}
        model = _assemble(gpt, weights, tokenizer)
    record = run_folder(path) / "run.json"
    known = _fingerprint(record) if record.is_file() else None
    return Loaded(model, tokenizer, config, path, sha256, known)


def _tokenizer(path: Path, state: Any) -> Tokenizer:
    if isinstance(state, dict) and state.get("name") == "gpt2":
        return from_state(state)  # where its file is missing, this one is not damaged
    with _reading(path):
        return from_state(state)


def _fingerprint(record: Path) -> str | None:
    """The fingerprint of the text, as a run.json has it."""
    with _reading(record):
        data = read_json(record).get("data") or {}
        known = data.get("fingerprint")
        if not isinstance(known, str | None):
            raise TypeError(f"data.fingerprint={known!r:.80} must be text")
    return known


def run_folder(path: Path) -> Path:
    """The folder of the run that a checkpoint file belongs to; a folder is its own."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def export(target: str | Path, folder: str | Path, which: Which = "best") -> Path:
    """Write a model as a folder to share; returns the folder.

    Raises CheckpointError, and ConfigError or OutputError where the folder cannot be written.
    """
    folder = arguments.path("folder", folder)
    check_folder(folder)
    return write_folder(folder, contents(load_run(target, which)))


def check_folder(folder: Path) -> None:
    """ConfigError or CheckpointError where no export could be written to `folder`."""
    check_output(folder / _SUMS, "the folder of the export")
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; choose another folder")


def contents(loaded: Loaded) -> dict[str, bytes]:
    """The files of an exported folder by name, but for SHA256SUMS."""
    from safetensors.torch import save as to_bytes

    stored.check_finite(loaded.model.state_dict())
    tensors = {
        k: v.contiguous() for k, v in loaded.model.state_dict().items() if k != "lm_head.weight"
    }
    files = {
        "model.safetensors": to_bytes(tensors, metadata={"format": "pt"}),
        "config.json": as_json({"model_type": "phasegpt", **loaded.model.config.to_dict()}),
        "tokenizer.json": as_json(loaded.tokenizer.state()),
    }
    record = run_folder(loaded.path) / "run.json"
    if record.is_file():
        files["run.json"] = record.read_bytes()
    elif loaded.config is not None:
        files["run.json"] = as_json({"config": loaded.config})
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Write an exported folder, with SHA256SUMS over its files; returns it. OutputError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content)
    sums = [f"{sha256_of(folder / name)}  {name}\n" for name in sorted(files)]
    write_atomic(folder / _SUMS, "".join(sums).encode())
    return folder


def _load_exported(folder: Path) -> Loaded:
    from safetensors.torch import load_file

    sums = _verify_exported(folder)
    with _reading(folder / "config.json"):
        values = read_json(folder / "config.json")
        if values.pop("model_type", None) != "phasegpt":
            raise CheckpointError(f"{folder}/config.json is not a PhaseGPT model; try GPT.from_hf")
        for key in OF_TRANSFORMERS:
            values.pop(key, None)
        if isinstance(options := values.get("attention_options"), dict):
            options = migrated({**options, "name": values.get("attention")})
            values |= {"attention": options.pop("name"), "attention_options": options}
        config = GPTConfig.parse(values)
    # In Hugging Face's form tokenizer.json is theirs, and ours stands beside it.
    name = STATE_BESIDE if STATE_BESIDE in sums else "tokenizer.json"
    with _reading(folder / name):
        state = read_json(folder / name)
    tokenizer = _tokenizer(folder / name, state)
    try:
        weights = load_file(folder / "model.safetensors")
    except Exception as error:  # SafetensorError has no public home
        raise CheckpointError(
            f"{folder}/model.safetensors is no file of tensors ({error!s:.200}); copy it again, "
            f"with {_SUMS}"
        ) from error
    with _reading(folder / "model.safetensors"):
        stored.check(weights)
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
        model = _assemble(config, weights, tokenizer)
    run, known = None, None
    if "run.json" in sums:
        with _reading(folder / "run.json"):
            run = read_json(folder / "run.json").get("config")
            if not isinstance(run, dict | None):
                raise TypeError(f"config is a {type(run).__name__}, not an object")
            run = None if run is None else _of_today(run)
        known = _fingerprint(folder / "run.json")
    return Loaded(model, tokenizer, run, folder, sums["model.safetensors"], known)


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
    for name in sums:
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise CheckpointError(
                f"{folder}/{_SUMS} is damaged: {name!r:.80} is no file of that folder; copy it "
                f"again"
            )
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        if name not in sums:
            raise CheckpointError(f"{folder}/{_SUMS} is damaged: it does not list {name}")
    for name, digest in sums.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise CheckpointError(
                f"{folder}/{name} is missing or damaged: its sha256 is not the one in {_SUMS}"
            )
    return sums


def _of_today(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration as it would be written now; what is damaged is judged by others."""
    attention = config.get("attention") if isinstance(config, dict) else None
    return {**config, "attention": migrated(attention)} if isinstance(attention, dict) else config


def _assemble(config: GPTConfig, weights: dict[str, torch.Tensor], tokenizer: Tokenizer) -> GPT:
    if config.vocab_size < tokenizer.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}"
        )
    with torch.random.fork_rng(devices=[]):  # making a layer draws numbers that are not used
        model = GPT(config, seed=0)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the weights do not fit the configuration: {error!s:.600}"
        ) from error
    model.tokenizer = tokenizer
    return model.eval()


def as_json(content: dict[str, Any]) -> bytes:
    """The text of a JSON file that an exported folder holds."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _offer(path: Path) -> str:
    """Name the newest other checkpoint of the folder that is whole, if there is one."""
    for other in sorted(path.parent.glob("step-*.ckpt"), reverse=True):
        if other != path and whole(other):
            return f". Another checkpoint is whole: {other}"
    return ""
