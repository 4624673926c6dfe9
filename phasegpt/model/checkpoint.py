"""Checkpoint files of a run: written whole or not at all, verified by sha256, read without code.

A run keeps `checkpoints/step-00000100.ckpt`, each with its `.sha256` beside it, and the links
`last.ckpt` and `best.ckpt`; where a copy of the run has lost the links, the files behind them are
found by their hashes and run.json.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch

from phasegpt.core.errors import CheckpointError, NotImported, UserError
from phasegpt.core.files import read_bytes, write_atomic
from phasegpt.model import weights as stored
from phasegpt.model.run_checkpoints import best, last, sidecar, sums_beside, verified, whole

Which = Literal["best", "last"]


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
    return read_hashed(path)[0]


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
    config = payload["hyper_parameters"].get("config")
    body = config.get("model") if isinstance(config, dict) else None
    tied = body.get("tie_embeddings", True) if isinstance(body, dict) else True
    try:
        stored.check(payload["state_dict"], tied=tied is not False)
    except CheckpointError as error:
        raise not_resumable(path, str(error)) from error


def not_resumable(path: Path, why: str) -> CheckpointError:
    """The error of a checkpoint from which training cannot go on."""
    return CheckpointError(
        f"{path} cannot be trained on: {why}; resume from another checkpoint of the run, or start "
        f"anew"
    )


def read_hashed(path: Path) -> tuple[dict[str, Any], str]:
    """What `read` gives, and the file's sha256."""
    path = path.resolve()
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist{_offer(path)}")
    with reading(path):
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
def reading(path: Path) -> Iterator[None]:
    """Turn what content of a wrong form raises into one CheckpointError that names the file."""
    try:
        yield
    except NotImported as error:
        raise NotImported(f"{path}: {error}") from error
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

    A run that has not validated yet has no best checkpoint; its last one stands in. `which=last` of
    another file than last.ckpt is an error.
    """
    target = Path(target)
    if which == "last" and os.path.isfile(target) and target.name != "last.ckpt":
        raise CheckpointError(
            f"which=last chooses among the checkpoints of a run folder, and {target!s:.300} is one "
            f"file; leave which out, or give the run folder"
        )
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


def run_folder(path: Path) -> Path:
    """The folder of the run that a checkpoint file belongs to; a folder is its own."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _offer(path: Path) -> str:
    """Name the newest other checkpoint of the folder that is whole, if there is one."""
    for other in sorted(path.parent.glob("step-*.ckpt"), reverse=True):
        if other != path and whole(other):
            return f". Another checkpoint is whole: {other}"
    return ""
