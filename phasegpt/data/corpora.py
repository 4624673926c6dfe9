"""Raw text of every corpus, by split: from $PHASEGPT_DATA_DIR, the Hugging Face cache, the network.

Known files are compared with their sha256 wherever they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import hub, large_texts, synthetic, tokenizers
from phasegpt.data.config import WITH_PATH, DataConfig, DataSection, TaskConfig, task_class
from phasegpt.data.downloads import download, local_file, verify, where_to_put
from phasegpt.data.encoding import Span
from phasegpt.data.own_text import OwnText

# path under the data folder: sha256
_SHAKESPEARE = {
    "shakespeare/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
}
_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
_WIKITEXT_HUB = "Salesforce/wikitext"
# variant: (Hub configuration, folder under the data folder, sha256 of its .txt files)
_WIKITEXT = {
    "tokens": (
        "wikitext-2-v1",
        "wikitext-2-tokens",
        {
            "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
    ),
    "raw": (
        "wikitext-2-raw-v1",
        "wikitext-2-raw",
        {
            "train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
            "valid": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
            "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
        },
    ),
}


@dataclass(frozen=True)
class RawCorpus:
    """A corpus whose text can be read when its tokens are not cached yet.

    `content` fixes every character of every split and costs little to know. `read(scratch)` gives
    each split as text, or as a part of a file, which may be in the folder `scratch`; `check` then
    raises DataError for a source that changed meanwhile. `log_prob` scores a text where the source
    is known.
    """

    name: str
    content: str
    read: Callable[[Path], dict[str, str | Span]]
    check: Callable[[], None] = lambda: None
    log_prob: Callable[[str], float] | None = None


def resolve(config: DataConfig, cache: Path, other: Path | None = None) -> RawCorpus:
    """The corpus that `config` names; `cache` keeps downloaded Hugging Face text.

    `other` is a cache that is only read. Raises ConfigError for keys that do not fit the corpus,
    DataError for missing or bad text.
    """
    for key, corpora in {
        "path": WITH_PATH,
        "name": ("hub",),
        "subset": ("hub",),
        "variant": ("wikitext2",),
    }.items():
        value = getattr(config, key)
        if value is not None and config.corpus not in corpora:
            raise ConfigError(
                f"data.{key}={value} belongs to data={corpora[0]}, but data.corpus="
                f"{config.corpus}; choose data={corpora[0]} or remove data.{key}"
            )
    if config.corpus == "synthetic":
        size = config.characters
        content = _hash("synthetic", synthetic.fingerprint(), str(size))
        return RawCorpus(
            "synthetic",
            content,
            lambda _: dict(synthetic.splits(size)),
            log_prob=synthetic.log_prob,
        )
    if config.corpus == "shakespeare":
        return RawCorpus(
            "shakespeare", _hash(*_SHAKESPEARE.values(), "0.9"), lambda _: _shakespeare()
        )
    if config.corpus == "wikitext2":
        variant = config.variant or "tokens"
        content = _hash(*_WIKITEXT[variant][2].values())
        return RawCorpus(f"wikitext2-{variant}", content, lambda _: _wikitext(variant))
    if config.corpus in large_texts.FILES:
        name, path = config.corpus, config.path
        read = partial(large_texts.splits, name, path)
        return RawCorpus(name, large_texts.content(name), read)
    if config.corpus == "text":
        own = OwnText(config)
        return RawCorpus("text", own.content, lambda scratch: {**own.splits(scratch)}, own.check)
    return _hub(config, cache, other)


def known_vocab_size(config: DataSection) -> int | None:
    """Vocabulary size where it is known without reading data, else None."""
    if isinstance(config, TaskConfig):
        return task_class(config.corpus)(config).vocab_size
    assert isinstance(config, DataConfig)
    if config.tokenizer == "hf":
        return tokenizers.from_file(config.tokenizer_path or "").vocab_size
    if config.tokenizer != "char":
        return {"byte": 256, "gpt2": tokenizers.GPT2_VOCAB_SIZE, "bpe": config.vocab_size}[
            config.tokenizer
        ]
    if config.corpus == "wikitext2":
        # The raw variant's alphabet has not been counted: its train split was never at hand.
        return 283 if config.variant in (None, "tokens") else None
    return {"shakespeare": 65, "synthetic": synthetic.VOCAB_SIZE}.get(config.corpus)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _shakespeare() -> dict[str, str | Span]:
    ((name, digest),) = _SHAKESPEARE.items()
    content = local_file(name, digest) or download(_SHAKESPEARE_URL, digest)
    if content is None:
        raise DataError(
            f"Shakespeare is not here and the network does not answer; {where_to_put(_SHAKESPEARE)}"
        )
    text = content.decode()
    train = int(len(text) * 0.9)
    return {"train": text[:train], "val": text[train:]}


def _wikitext(variant: str) -> dict[str, str | Span]:
    subset, folder, digests = _WIKITEXT[variant]
    files = {f"{folder}/{name}.txt": digest for name, digest in digests.items()}
    contents = {name: local_file(name, digest) for name, digest in files.items()}
    missing = {name: files[name] for name, content in contents.items() if content is None}
    dataset: Any = hub.load_dataset(_WIKITEXT_HUB, subset) if missing else None
    if missing and dataset is None:
        raise DataError(
            f"WikiText-2 ({variant}) is not complete and Hugging Face does not answer; "
            f"{where_to_put(missing)}"
        )
    texts: dict[str, str | Span] = {}
    for (name, content), (split, hub_split) in zip(
        contents.items(), hub.SPLITS.items(), strict=True
    ):
        if content is None:
            # A row is a line; blank lines, " \n" in the files, come as "".
            rows = "".join(row["text"] or " \n" for row in dataset[hub_split])
            origin = f"{_WIKITEXT_HUB} {subset} {hub_split} from Hugging Face"
            content = verify(rows.encode(), files[name], origin)
        texts[split] = content.decode()
    return texts


def _hub(config: DataConfig, cache: Path, other: Path | None) -> RawCorpus:
    """Any Hugging Face text dataset; see phasegpt.data.hub."""
    folder, digests = hub.fetched(config, cache, other)
    content = [f"{split} {digest}" for split, digest in sorted(digests.items())]
    begins = {split: folder / f"{split}.documents" for split in digests if config.documents}
    content += [hashlib.sha256(p.read_bytes()).hexdigest() for _, p in sorted(begins.items())]

    def read(_: Path) -> dict[str, str | Span]:
        kept = {s: hub.kept_text(folder, s, digest) for s, digest in digests.items()}
        return {split: Span.of(path, begins.get(split)) for split, path in kept.items()}

    return RawCorpus(folder.name.rpartition("-")[0], _hash("hub", *content), read)
