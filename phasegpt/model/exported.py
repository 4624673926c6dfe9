"""A model as a folder to share: what an export writes, and what save_pretrained of its class does.

An export holds model.safetensors, config.json, tokenizer.json, run.json, and SHA256SUMS over them.
In Hugging Face's form tokenizer.json is theirs, and the state of ours stands beside it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Container, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from phasegpt.core.errors import CheckpointError, DataError
from phasegpt.core.files import check_output, read_json, write_atomic, writing
from phasegpt.data.tokenizers import STATE_BESIDE
from phasegpt.model import shards
from phasegpt.model import weights as stored
from phasegpt.model.checkpoint import reading, run_folder
from phasegpt.model.config import GPTConfig
from phasegpt.model.loaded import Loaded, assembled, of_today, recorded, tokenizer_of
from phasegpt.model.migration import migrated_flat
from phasegpt.model.run_checkpoints import sha256_of

#: Hashes of the other files.
SUMS = "SHA256SUMS"
#: Keys of config.json that transformers needs and a GPTConfig does not have.
OF_TRANSFORMERS = ("architectures", "auto_map", "dtype")
CARD = "README.md"
#: What config.json has where save_pretrained of transformers wrote it, with keys of its own.
_SAVED = "transformers_version"


def check_folder(folder: Path) -> None:
    """ConfigError or CheckpointError where no export could be written to `folder`."""
    check_output(folder / SUMS, "the folder of the export")
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; choose another folder")


def contents(loaded: Loaded) -> dict[str, bytes]:
    """The files of an exported folder by name, but for SHA256SUMS."""
    from safetensors.torch import save as to_bytes

    stored.check_finite(loaded.model.state_dict())
    left_out = "lm_head.weight" if loaded.model.config.tie_embeddings else None
    tensors = {k: v.contiguous() for k, v in loaded.model.state_dict().items() if k != left_out}
    files = {
        "model.safetensors": to_bytes(tensors, metadata={"format": "pt"}),
        "config.json": as_json({"model_type": "phasegpt", **loaded.model.config.to_dict()}),
        "tokenizer.json": as_json(loaded.tokenizer.state()),
    }
    record = run_folder(loaded.path) / "run.json"
    # Of a folder whose weights were saved anew it is the record of other weights.
    told = not loaded.path.is_dir() or "run.json" in _listed(loaded.path)
    if told and record.is_file():
        files["run.json"] = record.read_bytes()
    elif loaded.config is not None:
        files["run.json"] = as_json({"config": loaded.config})
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Write an exported folder, with SHA256SUMS; returns it. OutputError.

    The model card is not among the sums: it is for people, who edit it on the hub.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content)
    _sign(folder, {*files} - {CARD})
    return folder


def complete(folder: Path, files: dict[str, bytes]) -> None:
    """Add `files` and SHA256SUMS to a folder that save_pretrained has just written. OutputError.

    Warns where it was an export: its run.json and model card are of the weights before.
    """
    if "run.json" in _listed(folder):
        warnings.warn(
            f"{folder} was an export: its run.json and {CARD} are of the weights before, and "
            f"{SUMS} no longer lists run.json; delete or edit them, or save into a new folder",
            stacklevel=3,
        )
    for name, content in files.items():
        write_atomic(folder / name, content)
    weights = shards.files(folder)
    index = [] if weights == [shards.WHOLE] else [shards.INDEX]
    names = {"config.json", "generation_config.json", *weights, *index, *files}
    _sign(folder, {name for name in names if (folder / name).is_file()})


def _sign(folder: Path, names: Iterable[str]) -> None:
    sums = [f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names)]
    write_atomic(folder / SUMS, "".join(sums).encode())


def is_folder(path: Path) -> bool:
    """Whether `path` is such a folder, whole or not."""
    return (path / SUMS).is_file() or _config(path).get("model_type") == "phasegpt"


def _config(folder: Path) -> dict[str, Any]:
    """Its config.json, empty where there is none that can be read."""
    try:
        return read_json(folder / "config.json")
    except DataError:
        return {}


def read_folder(folder: Path) -> Loaded:
    """The model of such a folder; CheckpointError."""
    sums = _verified(folder)
    with reading(folder / "config.json"):
        config = _gpt_config(folder, read_json(folder / "config.json"))
    # In Hugging Face's form tokenizer.json is theirs, and ours stands beside it.
    name = _tokenizer_file(sums)
    with reading(folder / name):
        state = read_json(folder / name)
    tokenizer = tokenizer_of(folder / name, state)
    with reading(folder / shards.WHOLE):
        # save_pretrained puts the name of the GPT within its class in front.
        weights = shards.tensors(folder, lambda name: name.removeprefix("gpt."))
        stored.check(weights, tied=config.tie_embeddings)
        if config.tie_embeddings:
            weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
        model = assembled(config, weights, tokenizer)
    run, known = None, None
    if "run.json" in sums:
        with reading(folder / "run.json"):
            run = read_json(folder / "run.json").get("config")
            if not isinstance(run, dict | None):
                raise TypeError(f"config is a {type(run).__name__}, not an object")
            run = None if run is None else of_today(run)
        known = recorded(folder / "run.json", config.attention)
    sha256 = sums.get(shards.WHOLE) or shards.sha256(folder)
    return Loaded(model, tokenizer, run, folder, sha256, known)


def _gpt_config(folder: Path, values: dict[str, Any]) -> GPTConfig:
    """What config.json says, in its form of today."""
    if values.pop("model_type", None) != "phasegpt":
        raise CheckpointError(f"{folder}/config.json is not a PhaseGPT model; try GPT.from_hf")
    ours = {field.name for field in fields(GPTConfig)}
    for key in set(values) - ours if _SAVED in values else OF_TRANSFORMERS:
        values.pop(key, None)
    return GPTConfig.parse(migrated_flat(values))


def _tokenizer_file(names: Container[str]) -> str:
    """The file with our tokenizer's state among files of these names."""
    return STATE_BESIDE if STATE_BESIDE in names else "tokenizer.json"


def _verified(folder: Path) -> dict[str, str]:
    """sha256 by file name, after comparing every one; CheckpointError for the first that differs.

    Only a folder that transformers itself wrote may lack the sums, with a warning.
    """
    saved = _SAVED in _config(folder)
    if (folder / SUMS).is_file():
        sums = _compared(folder)
    elif saved and is_folder(folder):
        warnings.warn(
            f"{folder} has no {SUMS}: a value that changed in its weights would not be seen; "
            f"save_pretrained of PhaseGPTForCausalLM writes it",
            stacklevel=5,
        )
        names = (*shards.files(folder), "config.json", STATE_BESIDE)
        sums = {n: sha256_of(folder / n) for n in names if (folder / n).is_file()}
    else:
        raise CheckpointError(
            f"{folder} has no {SUMS}, so it is no exported PhaseGPT model, or not whole; "
            f"copy it too (a GPT-2 in Hugging Face's form loads with GPT.from_hf)"
        )
    if saved and STATE_BESIDE not in sums:
        raise CheckpointError(
            f"{folder} has no {STATE_BESIDE}, so what its tokens mean is not known; copy it from "
            f"the export that the model began with, or use "
            f"PhaseGPTForCausalLM.from_pretrained(folder).gpt, the model alone"
        )
    for name in (*shards.files(folder), "config.json", _tokenizer_file(sums)):
        if name not in sums:
            raise CheckpointError(f"{folder}/{SUMS} is damaged: it does not list {name}")
    return sums


def _listed(folder: Path) -> dict[str, str]:
    """sha256 by file name, as SHA256SUMS says, true or not; empty where there is none."""
    if not (folder / SUMS).is_file():
        return {}
    lines = (folder / SUMS).read_text(encoding="ascii", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _compared(folder: Path) -> dict[str, str]:
    """What SHA256SUMS says, which is true."""
    sums = _listed(folder)
    for name in sums:
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise CheckpointError(
                f"{folder}/{SUMS} is damaged: {name!r:.80} is no file of that folder; copy it again"
            )
    for name, digest in sums.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise CheckpointError(
                f"{folder}/{name} is missing or damaged: its sha256 is not the one in {SUMS}"
            )
    return sums


def as_json(content: dict[str, Any]) -> bytes:
    """The text of a JSON file that an exported folder holds."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
