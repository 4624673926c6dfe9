"""Weights as Hugging Face stores them: one model.safetensors, or shards with their index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def there(folder: Path) -> bool:
    """Whether a folder holds weights in this form."""
    return any((folder / name).is_file() for name in (WHOLE, INDEX))


def files(folder: Path) -> list[str]:
    """Names of the files with the weights; CheckpointError for an index that names others' places.

    Only the index is read: a shard may be missing.
    """
    if (folder / WHOLE).is_file():
        return [WHOLE]
    try:
        places = read_json(folder / INDEX).get("weight_map")
    except DataError as error:
        raise CheckpointError(str(error)) from None
    names = set(places.values()) if isinstance(places, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{folder}/{INDEX} has no weight_map of files in its own folder")
    return sorted(names)


def tensors(folder: Path, renamed: Callable[[str], str] = str) -> dict[str, Tensor]:
    """All tensors by name; CheckpointError for a file that is missing, cut off or no safetensors.

    A changed value inside a file of the right length cannot be seen here: safetensors has no sums.
    """
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in files(folder):
        try:
            weights = load_file(folder / file)
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no {file}, which {INDEX} names") from None
        except Exception as error:  # SafetensorError has no public home
            raise CheckpointError(
                f"{folder}/{file} is damaged, or no file of tensors ({error!s:.200}); copy it again"
            ) from error
        for key, value in weights.items():
            name = renamed(key)
            if name in found:
                raise CheckpointError(f"{folder}/{file} holds {name} a second time; remove one")
            found[name] = value
    return found


def sha256(folder: Path) -> str:
    """Hex digits over the content of the files, one after the other by name."""
    digest = hashlib.sha256()
    for file in files(folder):
        with open(folder / file, "rb") as stream:
            while piece := stream.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()
