"""Tokenised corpora on disk: text to token files once, memory maps from then on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phasegpt.core import diskcache
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.core.files import read_json
from phasegpt.data import corpora, downloads, encoding, tokenizers
from phasegpt.data.config import DataConfig, DataSection, TaskConfig, task_class

if TYPE_CHECKING:
    from phasegpt.data.tasks import Task

_FORMAT = 1  # of the token cache; raise it when tokens or meta.json change meaning
_HASHED_BYTES = 1 << 28  # token files up to this size are hashed again at every opening


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: read-only memory maps by split, their tokenizer, and what is known.

    `meta["splits"][name]` holds tokens, characters, bytes, words (between white space), lines,
    sha256 of the token file, and floor_nats: -log p of the whole split under its source, which
    is known for the synthetic corpus and None elsewhere. `documents` holds, where they are kept
    apart (data.documents), the places of their first tokens by split. A generated `task` has no
    text: no splits, and `meta` says what the task does.
    """

    splits: dict[str, np.memmap]
    tokenizer: tokenizers.Tokenizer
    meta: dict[str, Any]
    documents: dict[str, np.memmap] = field(default_factory=dict)
    task: Task | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the tokens of every split and their tokenizer."""
        tokens = {
            name: split["sha256"] + split.get("documents_sha256", "")
            for name, split in self.meta["splits"].items()
        }
        text = json.dumps([self.tokenizer.fingerprint, tokens], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def split(self, name: str) -> np.memmap:
        """The tokens of one split. Raises ConfigError for one that the corpus does not have."""
        if self.task is not None:
            raise ConfigError(
                f"data={self.meta['corpus']} is a generated task: it has no text; this is for "
                f"models of text"
            )
        if name not in self.splits:
            raise ConfigError(
                f"split={name} does not exist in {self.meta['corpus']}; "
                f"choose from: {', '.join(self.splits)}"
            )
        return self.splits[name]


def prepare(
    config: DataSection,
    *,
    other_cache: str | None = None,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Corpus:
    """The corpus of `config`, tokenised on first use and opened from the cache afterwards.

    `other_cache` is looked into first and never written to. `tokenizer` is a checkpoint's: in place
    of the file of hf, of the training of bpe, and of the characters of the text. Raises ConfigError
    and DataError as phasegpt.data.corpora does, DataError for a damaged cache.
    """
    if isinstance(config, TaskConfig):
        task = task_class(config.corpus)(config)
        return Corpus({}, tokenizers.Symbols(task.vocab_size), task.meta(), task=task)
    assert isinstance(config, DataConfig)
    cache = diskcache.cache_dir(config.cache_dir)
    other = diskcache.cache_dir(other_cache) if other_cache else None
    raw = corpora.resolve(config, cache, other)
    made = None
    if config.tokenizer in ("bpe", "hf"):
        made = tokenizer or _made(config, raw, cache, other)
    corpus = _tokens(raw, config, cache, other, made)
    if tokenizer is None or corpus.tokenizer.fingerprint == tokenizer.fingerprint:
        return corpus
    return _tokens(raw, config, cache, other, tokenizer)  # the text lacks characters, or has others


def _tokens(
    raw: corpora.RawCorpus,
    config: DataConfig,
    cache: Path,
    other: Path | None,
    made: tokenizers.Tokenizer | None,
) -> Corpus:
    """The tokens of a text, from a cache where they are in one; `made`: a tokenizer that is there.

    Another is a function of its name and the text: the key of the cache can be had without it.
    """
    named = config.tokenizer + " documents" * config.documents
    if made is not None:
        named += f" {made.fingerprint}"
    key = hashlib.sha256(f"{_FORMAT} {named} {raw.content}".encode()).hexdigest()[:16]
    folder = cache / "tokens" / f"{raw.name}-{config.tokenizer}-{key}"
    if other is not None and (kept := other / "tokens" / folder.name).is_dir():
        return _open(kept)
    downloads.build_once(folder, lambda scratch: _tokenise(raw, config, scratch, made))
    return _open(folder)


def _made(
    config: DataConfig, raw: corpora.RawCorpus, cache: Path, other: Path | None
) -> tokenizers.Tokenizer:
    """The tokenizer of a file, or of the train split, trained on first use."""
    if config.tokenizer == "hf":
        return tokenizers.from_file(config.tokenizer_path or "")
    size = config.vocab_size or 0
    key = hashlib.sha256(f"{_FORMAT} bpe {size} {raw.content}".encode()).hexdigest()[:16]
    folder = cache / "tokenizers" / f"{raw.name}-bpe-{key}"
    if other is not None and (kept := other / "tokenizers" / folder.name).is_dir():
        folder = kept

    def train(scratch: Path) -> None:
        texts = _files(raw, scratch)
        trained = tokenizers.train_byte_pairs(encoding.texts(texts["train"]), size)
        _drop(texts, scratch)
        raw.check()
        (scratch / "tokenizer.json").write_text(json.dumps(trained.state()), encoding="utf-8")

    downloads.build_once(folder, train)
    return tokenizers.from_state(read_json(folder / "tokenizer.json", "name"))


def _files(raw: corpora.RawCorpus, scratch: Path) -> dict[str, encoding.Span]:
    """The splits as parts of files; what is no file yet is written to `scratch`."""
    texts = {}
    for split, text in raw.read(scratch).items():
        if isinstance(text, str):
            path = scratch / f"{split}.txt"
            path.write_bytes(text.encode())
            text = encoding.Span.of(path)
        texts[split] = text
    return texts


def _drop(texts: dict[str, encoding.Span], scratch: Path) -> None:
    """Remove the texts in `scratch`: a cache keeps tokens alone."""
    for path in {path for text in texts.values() for path in (text.path, text.documents)}:
        if path is not None and path.parent == scratch:
            path.unlink()


def _tokenise(
    raw: corpora.RawCorpus,
    config: DataConfig,
    folder: Path,
    tokenizer: tokenizers.Tokenizer | None,
) -> None:
    texts = _files(raw, folder)
    if tokenizer is None:
        alphabet: set[str] = set()
        if config.tokenizer == "char":
            alphabet = alphabet.union(*map(encoding.characters, texts.values()))
        found = "".join(sorted(alphabet)) or None
        tokenizer = tokenizers.build(config.tokenizer, alphabet=found)
    splits = {}
    for split, text in texts.items():
        count = encoding.encode(text, tokenizer, folder / f"{split}.bin")
        if not count["tokens"]:
            raise DataError(
                f"the {split} split of {raw.name} is empty; the text is too short"
                f"{_larger(config, split)}"
            )
        if split == "val" and count["tokens"] < 2:
            raise DataError(
                f"the val split of {raw.name} has 1 token, and scoring needs 2, the first as "
                f"context; use more text{_larger(config, split)}"
            )
        floor = -raw.log_prob(text.read()) if raw.log_prob else None
        splits[split] = {**count, "floor_nats": floor}
    raw.check()
    _drop(texts, folder)
    meta = {
        "corpus": raw.name,
        "content": raw.content,
        "dtype": tokenizer.dtype.name,
        "splits": splits,
        "tokenizer": tokenizer.state(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _larger(config: DataConfig, split: str) -> str:
    """The other remedy for a short split, where there is one."""
    if split != "val" or config.corpus not in ("text", "hub"):
        return ""
    return f", or raise data.val_fraction={config.val_fraction}"


def _open(folder: Path) -> Corpus:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        splits = {name: _mapped(folder, name, meta) for name in meta["splits"]}
        kept = {n: s["documents_sha256"] for n, s in meta["splits"].items()
                if "documents_sha256" in s}  # fmt: skip
        documents = {name: _documents(folder, name, digest) for name, digest in kept.items()}
        if not {"train", "val"} <= splits.keys() or not isinstance(meta["corpus"], str):
            raise ValueError("meta.json is not whole")
        ours = meta["tokenizer"].get("name") == "gpt2"  # its own file may be missing: no damage
        tokenizer = None if ours else tokenizers.from_state(meta["tokenizer"])
    except PermissionError as error:
        raise DataError(
            f"the token cache {folder} is another user's and cannot be read ({error.strerror}); "
            f"ask for the right to read it, or set data.cache_dir (cache_dir=FOLDER) to your own"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, DataError) as error:
        raise DataError(
            f"the token cache {folder} is damaged ({error!s:.200}); delete that folder, it will "
            f"be rebuilt"
        ) from error
    tokenizer = tokenizer or tokenizers.from_state(meta["tokenizer"])
    return Corpus(splits, tokenizer, meta, documents)


def _documents(folder: Path, name: str, sha256: str) -> np.memmap:
    """Where the documents of a split begin."""
    places = np.memmap(folder / f"{name}.documents", dtype=np.int64, mode="r")
    if hashlib.sha256(places.data).hexdigest() != sha256:
        raise ValueError(f"{name}.documents differs from what was written")
    return places


def _mapped(folder: Path, name: str, meta: dict[str, Any]) -> np.memmap:
    """The tokens of a split, compared with what meta.json says of them."""
    split, path = meta["splits"][name], folder / f"{name}.bin"
    if name not in ("train", "val", "test"):
        raise ValueError(f"meta.json lists a split {name!r:.40}")
    counts = [split[key] for key in ("tokens", "characters", "bytes", "words", "lines")]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"meta.json counts {counts!r:.80} in {name}")
    if type(split["floor_nats"]) not in (float, type(None)):
        raise ValueError(f"meta.json has floor_nats={split['floor_nats']!r:.40}")
    tokens = np.memmap(path, dtype=meta["dtype"], mode="r")
    short = path.stat().st_size <= _HASHED_BYTES
    if len(tokens) != split["tokens"] or (
        short and hashlib.sha256(tokens.data).hexdigest() != split["sha256"]
    ):
        raise ValueError(f"{name}.bin differs from what was written")
    return tokens
