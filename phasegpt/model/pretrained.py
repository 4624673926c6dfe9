"""A model to begin a training with: a run, a checkpoint, an export, or published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from phasegpt.core.errors import ConfigError
from phasegpt.data.tokenizers import Tokenizer, from_file
from phasegpt.model import growth, loading, published, shards
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT


class Source(NamedTuple):
    """A model to begin with, and where it comes from."""

    model: GPT
    path: str  # as it was named
    sha256: str  # of its weights
    tokenizer: Tokenizer | None  # None: that of a folder in Hugging Face's form
    folder: Path | None = None  # that folder


def read(name: str) -> Source:
    """A run (its best checkpoint), a .ckpt, an export, or published weights: a folder or an id.

    Weights only, as every checkpoint is read. Raises CheckpointError.
    """
    if loading.is_ours(name):
        loaded = loading.load_run(name)
        return Source(loaded.model, name, loaded.sha256, loaded.tokenizer)
    folder = published.find(name)
    model = GPT.from_hf(folder)
    return Source(model, name, shards.sha256(folder), None, folder)


class Start(NamedTuple):
    """What a model begins with, and what run.json says of it."""

    taken: growth.Taken
    record: dict[str, Any]

    def fill(self, model: GPT) -> None:
        """Write the weights into the model, once: they are let go of."""
        growth.fill(model, self.taken)
        self.taken.weights.clear()


def start(name: str, config: GPTConfig, tokenizer: Tokenizer | None = None) -> Start:
    """What a GPT of `config` takes from the model called `name`, see `read`.

    Raises CheckpointError, and ConfigError for one of another shape or, where `tokenizer` is
    given, with another.
    """
    source = read(name)
    if tokenizer is not None:
        _check_tokenizer(source, tokenizer)
    with torch.device("meta"):
        shape = GPT(config, seed=0)
    taken = growth.taken(shape, source.model, name)
    return Start(taken, {"path": name, "sha256": source.sha256, **taken.record()})


def _check_tokenizer(source: Source, tokenizer: Tokenizer) -> None:
    """ConfigError unless a token means the same to both."""
    if "symbols" in (tokenizer.name, source.tokenizer and source.tokenizer.name):
        return _check_symbols(source, tokenizer)
    if source.folder is not None:
        return _check_published(source.path, source.folder, tokenizer)
    assert source.tokenizer is not None
    theirs = source.tokenizer.name
    if tokenizer.fingerprint != source.tokenizer.fingerprint:
        remedy = f"set data.tokenizer={theirs}"
        if theirs in ("bpe", "hf"):
            remedy = "set data.tokenizer=hf and data.tokenizer_path=EXPORT, an export of that model"
        elif tokenizer.name == theirs:
            remedy = (
                "give a text of the same characters, or a model with the tokenizer byte or gpt2"
            )
        raise ConfigError(
            f"init_from={source.path} has the tokenizer {theirs}, and data.tokenizer="
            f"{tokenizer.name} gives its tokens another meaning; {remedy}"
        )


def _check_symbols(source: Source, tokenizer: Tokenizer) -> None:
    """The same where one of them is of a generated task."""
    theirs, ours = source.tokenizer, tokenizer
    if theirs is not None and theirs.name == ours.name:
        if theirs.vocab_size == ours.vocab_size:
            return
        said = (
            f"a generated task of {theirs.vocab_size} symbols, and this one has {ours.vocab_size}"
        )
        remedy = "give it the sizes of that task"
    else:
        of = ("a generated task", "a text")
        first, second = of if theirs is not None and theirs.name == "symbols" else of[::-1]
        said = f"{first}, and this run is of {second}"
        remedy = f"take a model of {second}, or train on {first}"
    raise ConfigError(
        f"init_from={source.path} is a model of {said}: its tokens mean something else; {remedy}"
    )


def _check_published(path: str, folder: Path, tokenizer: Tokenizer) -> None:
    """The same for a folder in Hugging Face's form; its tokenizer.json is compared with `hf`."""
    gpt2 = published.family(folder) == "gpt2"
    file = folder / "tokenizer.json"
    if tokenizer.name == "gpt2":
        fits = gpt2
    elif tokenizer.name == "hf" and file.is_file():
        fits = from_file(str(file)).fingerprint == tokenizer.fingerprint
    else:
        fits = False
    if not fits:
        own = f"data.tokenizer=hf and data.tokenizer_path={file}"
        raise ConfigError(
            f"init_from={path} has tokens of its own, and data.tokenizer={tokenizer.name} gives "
            f"them another meaning; set {'data.tokenizer=gpt2, or ' if gpt2 else ''}{own}"
            + ("" if file.is_file() else ", which is not there: copy it too")
        )
