"""Tokenised corpora on disk, training batches as a function of (seed, k), evaluation windows.

Shapes: B batch, T time.
"""

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
from torch.utils.data import DataLoader, Dataset, Sampler

from phasegpt import corpora, diskcache, sources, tokenizers
from phasegpt.config import DataConfig
from phasegpt.errors import ConfigError, DataError

_FORMAT = 1  # of the token cache; raise it when tokens or meta.json change meaning
_HASHED_BYTES = 1 << 28  # token files up to this size are hashed again at every opening
_IGNORED = -100  # target that cross_entropy leaves out


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


class TrainBatches(Dataset):
    """Training batches: number k is a pure function of (seed, k).

    Sample i belongs to epoch e = i // windows and takes the window that stands at place
    i % windows of a permutation keyed by (seed, e). The windows of an epoch do not overlap; they
    start at an offset keyed likewise, so their borders move from epoch to epoch and each epoch
    sees each token about once. Of `world_size` processes, `rank` gets its part of batch k; the
    parts in order make the batch of one process with `world_size` times the batch size.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(tokens) <= block_size:
            raise DataError(
                f"the train split has {len(tokens)} tokens, too few for one window of "
                f"model.block_size={block_size} and its targets; use more text or a smaller block"
            )
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        # One window less than fit, so that the offset has room for every place in a block.
        self.windows = max(1, (len(tokens) - 1) // block_size - 1)
        self._slack = len(tokens) - 1 - self.windows * block_size
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        """Batch k: idx [B,T], targets [B,T], sample [B] (the index i), all int64."""
        first = (k * self.world_size + self.rank) * self.batch_size
        sample_B = np.arange(first, first + self.batch_size, dtype=np.int64)
        start_B = np.empty_like(sample_B)
        epoch_B, place_B = np.divmod(sample_B, self.windows)
        for epoch in np.unique(epoch_B):
            offset, order = self._epoch(int(epoch))
            mine = epoch_B == epoch
            start_B[mine] = offset + order[place_B[mine]] * self.block_size
        window = self.tokens[start_B[:, None] + np.arange(self.block_size + 1)].astype(np.int64)
        return {
            "idx": torch.from_numpy(np.ascontiguousarray(window[:, :-1])),
            "targets": torch.from_numpy(np.ascontiguousarray(window[:, 1:])),
            "sample": torch.from_numpy(sample_B),
        }

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        if epoch not in self._epochs:
            # Raw bits and a stable sort: numpy keeps the bits, not its shuffles, across versions.
            bits = np.random.Philox(key=[self.seed, epoch]).random_raw(self.windows + 1)
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            offset = int(bits[0] % np.uint64(self._slack + 1))
            self._epochs[epoch] = offset, np.argsort(bits[1:], kind="stable")
        return self._epochs[epoch]


class EvalWindows(Dataset):
    """Windows over a whole split in which every token but the first is scored exactly once.

    A window has `context` inputs and starts `stride` after the one before; targets that an
    earlier window scored are -100. The last window is moved back so that it is full; a split of
    at most `context` tokens makes one shorter window.
    """

    def __init__(self, tokens: np.ndarray, *, context: int, stride: int) -> None:
        if len(tokens) < 2:
            raise DataError(
                f"a split of {len(tokens)} tokens cannot be scored; it needs at least 2"
            )
        if not 1 <= stride <= context:
            raise ConfigError(
                f"stride={stride} is out of range; it must be in 1..context={context}"
            )
        self.tokens, self.stride = tokens, stride
        self.tokens_scored = len(tokens) - 1
        self.length = min(context, self.tokens_scored)

    def __len__(self) -> int:
        return 1 - (self.length - self.tokens_scored) // self.stride

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        """Window i: idx [T] and targets [T], int64."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        end = min(self.length + i * self.stride, self.tokens_scored)
        scored = 0 if i == 0 else self.length + (i - 1) * self.stride
        start = end - self.length
        window = torch.from_numpy(self.tokens[start : end + 1].astype(np.int64))
        targets = window[1:].clone()
        targets[: max(0, scored - start)] = _IGNORED
        return {"idx": window[:-1].clone(), "targets": targets}


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
