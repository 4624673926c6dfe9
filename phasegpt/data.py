"""Tokenised corpora on disk, and the loaders of a run over one of them."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from phasegpt import corpora, diskcache, sources, tokenizers
from phasegpt.config import DataConfig
from phasegpt.errors import ConfigError, DataError
from phasegpt.windows import EvalWindows, TrainBatches

_FORMAT = 1  # of the token cache; raise it when tokens or meta.json change meaning
_HASHED_BYTES = 1 << 28  # token files up to this size are hashed again at every opening


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: read-only memory maps by split, their tokenizer, and what is known.

    `meta["splits"][name]` holds tokens, characters, bytes, words (between white space), lines,
    sha256 of the token file, and floor_nats: -log p of the whole split under its source, which
    is known for the synthetic corpus and None elsewhere.
    """

    splits: dict[str, np.memmap]
    tokenizer: tokenizers.Tokenizer
    meta: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the tokens of every split and their tokenizer."""
        tokens = {name: split["sha256"] for name, split in self.meta["splits"].items()}
        text = json.dumps([self.tokenizer.fingerprint, tokens], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def split(self, name: str) -> np.memmap:
        """The tokens of one split. Raises ConfigError for one that the corpus does not have."""
        if name not in self.splits:
            raise ConfigError(
                f"split={name} does not exist in {self.meta['corpus']}; "
                f"choose from: {', '.join(self.splits)}"
            )
        return self.splits[name]


def prepare(config: DataConfig) -> Corpus:
    """The corpus of `config`, tokenised on first use and opened from the cache afterwards.

    Raises ConfigError and DataError as phasegpt.corpora does, and DataError for a damaged cache.
    """
    cache = diskcache.cache_dir(config.cache_dir)
    raw = corpora.resolve(config, cache)
    # A tokenizer is a function of its name and the text, so the key can be had without either.
    key = hashlib.sha256(f"{_FORMAT} {config.tokenizer} {raw.content}".encode()).hexdigest()[:16]
    folder = cache / "tokens" / f"{raw.name}-{config.tokenizer}-{key}"
    sources.build_once(folder, lambda scratch: _tokenise(raw, config.tokenizer, scratch))
    return _open(folder)


def _tokenise(raw: corpora.RawCorpus, name: str, folder: Path) -> None:
    texts = raw.read()
    alphabet: set[str] = set()
    if name == "char":
        for text in texts.values():
            for piece in corpora.pieces(text):
                alphabet.update(piece)
    tokenizer = tokenizers.build(name, alphabet="".join(sorted(alphabet)) or None)
    splits = {}
    for split, text in texts.items():
        count = dict.fromkeys(("tokens", "characters", "bytes", "words", "lines"), 0)
        digest = hashlib.sha256()
        with (folder / f"{split}.bin").open("wb") as file:
            for piece in corpora.pieces(text):
                tokens = tokenizer.encode(piece)
                file.write(tokens.tobytes())
                digest.update(tokens.tobytes())
                count["tokens"] += len(tokens)
                count["characters"] += len(piece)
                count["bytes"] += len(piece.encode())
                count["words"] += len(piece.split())
                count["lines"] += piece.count("\n")
        if not count["tokens"]:
            raise DataError(f"the {split} split of {raw.name} is empty; the text is too short")
        floor = -raw.log_prob(text) if raw.log_prob and isinstance(text, str) else None
        splits[split] = {**count, "sha256": digest.hexdigest(), "floor_nats": floor}
    meta = {
        "corpus": raw.name,
        "content": raw.content,
        "dtype": tokenizer.dtype.name,
        "splits": splits,
        "tokenizer": tokenizer.state(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _open(folder: Path) -> Corpus:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        splits = {}
        for name, split in meta["splits"].items():
            path = folder / f"{name}.bin"
            tokens = np.memmap(path, dtype=meta["dtype"], mode="r")
            short = path.stat().st_size <= _HASHED_BYTES
            if len(tokens) != split["tokens"] or (
                short and hashlib.sha256(tokens.data).hexdigest() != split["sha256"]
            ):
                raise ValueError(f"{name}.bin differs from what was written")
            splits[name] = tokens
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the token cache {folder} is damaged ({error}); delete that folder, it will be rebuilt"
        ) from error
    return Corpus(splits, tokenizers.from_state(meta["tokenizer"]), meta)


class _Steps(Sampler, Sized):
    """Batch numbers from `start` on; Lightning counts the length, which is the whole run's."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the whole process group must not kill workers while the parent finishes."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class _ResumableLoader(DataLoader):
    """Tells Lightning that this loader may be resumed; DataModule keeps the position itself."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


class DataModule(pl.LightningDataModule):
    """Loaders for one run of `total_batches` micro-batches per process, seen as a single epoch.

    A resumed run goes on with the first batch that no optimizer step has used. The loaders have
    generators of their own and leave the global ones alone. Trainers with several processes need
    `use_distributed_sampler=False`: each rank takes its part of a batch here, and validates on
    the whole split.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        *,
        block_size: int,
        seed: int,
        total_batches: int,
    ) -> None:
        super().__init__()
        self.corpus, self.config = corpus, config
        self.block_size, self.seed, self.total_batches = block_size, seed, total_batches
        self.consumed = 0
        self.val_windows = EvalWindows(corpus.split("val"), context=block_size, stride=block_size)
        self._train_batches()  # a corpus that is too short fails here, not after a set-up

    def _train_batches(self) -> TrainBatches:
        return TrainBatches(
            self.corpus.split("train"),
            block_size=self.block_size,
            batch_size=self.config.batch_size,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    def _loader_options(self) -> dict[str, Any]:
        device = self.trainer.strategy.root_device.type if self.trainer else "cpu"
        return {
            "generator": torch.Generator().manual_seed(self.seed),
            "pin_memory": device == "cuda",
        }

    def train_dataloader(self) -> DataLoader:
        """Batches `consumed`, `consumed` + 1, ... of TrainBatches."""
        workers = self.config.num_workers
        return _ResumableLoader(
            self._train_batches(),
            batch_size=None,
            sampler=_Steps(self.consumed, self.total_batches),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
            **self._loader_options(),
        )

    def val_dataloader(self) -> DataLoader:
        """The whole validation split, in windows of block_size that do not overlap."""
        return DataLoader(
            self.val_windows, batch_size=self.config.batch_size, **self._loader_options()
        )

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: how many micro-batches the finished optimizer steps have used."""
        if self.trainer is None:
            return {"consumed": self.consumed}
        return {"consumed": self.trainer.global_step * self.trainer.accumulate_grad_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the batches that the checkpoint has used."""
        self.consumed = int(state_dict["consumed"])
