"""A trained model by the name of its run folder, checkpoint file or exported folder."""

from __future__ import annotations

import os
from pathlib import Path

from phasegpt.core import arguments, files
from phasegpt.core.errors import CheckpointError
from phasegpt.data.config import DataSection
from phasegpt.model import exported, shards
from phasegpt.model import weights as stored
from phasegpt.model.checkpoint import Which, find, read_hashed, reading, run_folder
from phasegpt.model.config import AttentionSection, ModelSection, gpt_config
from phasegpt.model.gpt import GPT
from phasegpt.model.loaded import Loaded, assembled, of_today, recorded, tokenizer_of


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
    if shards.there(target):
        if which == "last":
            raise CheckpointError(
                f"which=last chooses among the checkpoints of a run, and {target} is an exported "
                f"folder, which holds one model; leave which out"
            )
        return exported.read_folder(target)
    if os.path.isfile(target / "model.pt2"):
        raise CheckpointError(
            f"{target} holds a program of torch.export alone; load it with torch.export.load, or "
            f"give the run that it was exported from"
        )
    if os.path.isfile(target / "adapter_config.json"):
        raise CheckpointError(
            f"{target} holds an adapter of PEFT alone; merge it into its model: "
            f"PeftModel.from_pretrained(model, FOLDER).merge_and_unload().save_pretrained(NEW)"
        )
    with files.reading(target):
        path = find(target, which)
    payload, sha256 = read_hashed(path)
    hyper = payload.get("hyper_parameters")
    if not isinstance(hyper, dict) or not {"config", "tokenizer"} <= hyper.keys():
        raise CheckpointError(f"{path} is not a PhaseGPT checkpoint; it has no configuration")
    tokenizer = tokenizer_of(path, hyper["tokenizer"])
    with reading(path):
        config = of_today(hyper["config"])
        gpt = gpt_config(
            ModelSection.parse(config["model"]),
            AttentionSection.parse(config["attention"]),
            DataSection.parse(config["data"]),
            tokenizer.vocab_size,
        )
        stored.check(payload["state_dict"], tied=gpt.tie_embeddings)
        weights = {k.removeprefix("model."): v for k, v in payload["state_dict"].items()}
        model = assembled(gpt, weights, tokenizer)
    record = run_folder(path) / "run.json"
    known = recorded(record, gpt.attention) if record.is_file() else None
    return Loaded(model, tokenizer, config, path, sha256, known)


def is_ours(target: str | Path) -> bool:
    """Whether `target` is a run folder, a .ckpt file or an exported folder; else Hugging Face's."""
    path = Path(target)
    return os.path.isfile(path) or os.path.exists(path / "checkpoints") or exported.is_folder(path)


def export(target: str | Path, folder: str | Path, which: Which = "best") -> Path:
    """Write a model as a folder to share; returns the folder.

    Raises CheckpointError, and ConfigError or OutputError where the folder cannot be written.
    """
    folder = arguments.path("folder", folder)
    exported.check_folder(folder)
    return exported.write_folder(folder, exported.contents(load_run(target, which)))
