"""A model as a folder to share.

It holds model.safetensors, config.json, tokenizer.json, run.json, and SHA256SUMS over them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from phasegpt.core.errors import CheckpointError
from phasegpt.core.files import check_output, read_json, write_atomic, writing
from phasegpt.model.checkpoint import reading, run_folder
from phasegpt.model.config import GPTConfig
from phasegpt.model.loaded import Loaded, assembled, fingerprint, of_today, tokenizer_of
from phasegpt.model.migration import migrated
from phasegpt.model.run_checkpoints import sha256_of

#: Hashes of the other files; the one that only our own folders have.
SUMS = "SHA256SUMS"
#: Keys of config.json that transformers needs and a GPTConfig does not have.
OF_TRANSFORMERS = ("architectures", "auto_map", "dtype")
#: Our tokenizer's state in a folder whose tokenizer.json is in the form of transformers.
STATE_BESIDE = "phasegpt_tokenizer.json"


def check_folder(folder: Path) -> None:
    """ConfigError or CheckpointError where no export could be written to `folder`."""
    check_output(folder / SUMS, "the folder of the export")
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; choose another folder")


def contents(loaded: Loaded) -> dict[str, bytes]:
    """The files of an exported folder by name, but for SHA256SUMS."""
    from safetensors.torch import save as to_bytes

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
    write_atomic(folder / SUMS, "".join(sums).encode())
    return folder


def read_folder(folder: Path) -> Loaded:
    """The model of an exported folder; CheckpointError."""
    from safetensors.torch import load_file

    sums = _verified(folder)
    with reading(folder / "config.json"):
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
    with reading(folder / name):
        state = read_json(folder / name)
    tokenizer = tokenizer_of(folder / name, state)
    try:
        weights = load_file(folder / "model.safetensors")
    except Exception as error:  # SafetensorError has no public home
        raise CheckpointError(
            f"{folder}/model.safetensors is no file of tensors ({error!s:.200}); copy it again, "
            f"with {SUMS}"
        ) from error
    with reading(folder / "model.safetensors"):
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
        model = assembled(config, weights, tokenizer)
    run, known = None, None
    if "run.json" in sums:
        with reading(folder / "run.json"):
            run = read_json(folder / "run.json").get("config")
            if not isinstance(run, dict | None):
                raise TypeError(f"config is a {type(run).__name__}, not an object")
            run = None if run is None else of_today(run)
        known = fingerprint(folder / "run.json")
    return Loaded(model, tokenizer, run, folder, sums["model.safetensors"], known)


def _verified(folder: Path) -> dict[str, str]:
    """sha256 by file name, after comparing every one; CheckpointError for the first that differs.

    A folder in Hugging Face's own form has no SHA256SUMS.
    """
    if not (folder / SUMS).is_file():
        raise CheckpointError(
            f"{folder} has no {SUMS}, so it is no exported PhaseGPT model, or not whole; "
            f"copy it too (a GPT-2 in Hugging Face's form loads with GPT.from_hf)"
        )
    lines = (folder / SUMS).read_text(encoding="ascii", errors="replace").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sums:
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise CheckpointError(
                f"{folder}/{SUMS} is damaged: {name!r:.80} is no file of that folder; copy it again"
            )
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        if name not in sums:
            raise CheckpointError(f"{folder}/{SUMS} is damaged: it does not list {name}")
    for name, digest in sums.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise CheckpointError(
                f"{folder}/{name} is missing or damaged: its sha256 is not the one in {SUMS}"
            )
    return sums


def as_json(content: dict[str, Any]) -> bytes:
    """The text of a JSON file that an exported folder holds."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
