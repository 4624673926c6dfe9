"""Raw text of every corpus, by split: from $PHASEGPT_DATA_DIR, the Hugging Face cache, the network.

Known files are compared with their sha256 wherever they come from.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.core.files import expand, read_json, read_text
from phasegpt.data import synthetic
from phasegpt.data.config import DataConfig
from phasegpt.data.downloads import build_once, download, local_file, online, verify, where_to_put
from phasegpt.data.tokenizers import GPT2_VOCAB_SIZE

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
_HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_PIECE = 1 << 24  # characters tokenised at a time; the known corpora fit into one piece


@dataclass(frozen=True)
class RawCorpus:
    """A corpus whose text can be read when its tokens are not cached yet.

    `content` fixes every character of every split and costs little to know. `read()` gives each
    split as text, or as a file of UTF-8 text; `log_prob` scores a text where the source is known.
    """

    name: str
    content: str
    read: Callable[[], dict[str, str | Path]]
    log_prob: Callable[[str], float] | None = None


def resolve(config: DataConfig, cache: Path, other: Path | None = None) -> RawCorpus:
    """The corpus that `config` names; `cache` keeps downloaded Hugging Face text.

    `other` is a cache that is only read. Raises ConfigError for keys that do not fit the corpus,
    DataError for missing or bad text.
    """
    for key, corpus in {
        "path": "text",
        "name": "hub",
        "subset": "hub",
        "variant": "wikitext2",
    }.items():
        value = getattr(config, key)
        if value is not None and config.corpus != corpus:
            raise ConfigError(
                f"data.{key}={value} belongs to data={corpus}, but data.corpus={config.corpus}; "
                f"choose data={corpus} or remove data.{key}"
            )
    if config.corpus == "synthetic":
        size = config.characters
        content = _hash("synthetic", synthetic.fingerprint(), str(size))
        return RawCorpus(
            "synthetic", content, lambda: dict(synthetic.splits(size)), synthetic.log_prob
        )
    if config.corpus == "shakespeare":
        return RawCorpus("shakespeare", _hash(*_SHAKESPEARE.values(), "0.9"), _shakespeare)
    if config.corpus == "wikitext2":
        variant = config.variant or "tokens"
        content = _hash(*_WIKITEXT[variant][2].values())
        return RawCorpus(f"wikitext2-{variant}", content, lambda: _wikitext(variant))
    if config.corpus == "text":
        return _user_text(config)
    return _hub(config, cache, other)


def known_vocab_size(config: DataConfig) -> int | None:
    """Vocabulary size where it is known without reading data, else None."""
    if config.tokenizer != "char":
        return {"byte": 256, "gpt2": GPT2_VOCAB_SIZE}[config.tokenizer]
    if config.corpus == "wikitext2":
        # The raw variant's alphabet has not been counted: its train split was never at hand.
        return 283 if config.variant in (None, "tokens") else None
    return {"shakespeare": 65, "synthetic": synthetic.VOCAB_SIZE}.get(config.corpus)


def pieces(source: str | Path) -> Iterator[str]:
    """The text in pieces that end with a line, so that it need not fit into memory."""
    if isinstance(source, str):
        start = 0
        while start < len(source):
            end = source.find("\n", start + _PIECE) + 1 or len(source)
            yield source[start:end]
            start = end
        return
    with source.open(encoding="utf-8", newline="") as file:
        while text := file.read(_PIECE):
            yield text + file.readline()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _cut(text: str, val_fraction: float) -> dict[str, str | Path]:
    """The last `val_fraction` of the characters are the validation split."""
    train = int(len(text) * (1 - val_fraction))
    return {"train": text[:train], "val": text[train:]}


def _shakespeare() -> dict[str, str | Path]:
    ((name, digest),) = _SHAKESPEARE.items()
    content = local_file(name, digest) or download(_SHAKESPEARE_URL, digest)
    if content is None:
        raise DataError(
            f"Shakespeare is not here and the network does not answer; {where_to_put(_SHAKESPEARE)}"
        )
    return _cut(content.decode(), 0.1)


def _wikitext(variant: str) -> dict[str, str | Path]:
    subset, folder, digests = _WIKITEXT[variant]
    files = {f"{folder}/{name}.txt": digest for name, digest in digests.items()}
    contents = {name: local_file(name, digest) for name, digest in files.items()}
    missing = {name: files[name] for name, content in contents.items() if content is None}
    dataset: Any = _load_dataset(_WIKITEXT_HUB, subset) if missing else None
    if missing and dataset is None:
        raise DataError(
            f"WikiText-2 ({variant}) is not complete and Hugging Face does not answer; "
            f"{where_to_put(missing)}"
        )
    texts: dict[str, str | Path] = {}
    for (name, content), (split, hub_split) in zip(
        contents.items(), _HUB_SPLITS.items(), strict=True
    ):
        if content is None:
            # A row is a line; blank lines, " \n" in the files, come as "".
            rows = "".join(row["text"] or " \n" for row in dataset[hub_split])
            origin = f"{_WIKITEXT_HUB} {subset} {hub_split} from Hugging Face"
            content = verify(rows.encode(), files[name], origin)
        texts[split] = content.decode()
    return texts


def _user_text(config: DataConfig) -> RawCorpus:
    """`data.path`: the files in the order of their names, a line end added where one lacks it."""
    if not config.path:
        raise ConfigError("data.path is missing; data=text needs data.path=FILE_OR_GLOB")
    paths = _files(config.path)
    texts = [read_text(path) for path in paths]
    joined = "".join(t if t.endswith("\n") else t + "\n" for t in texts[:-1]) + texts[-1]
    if not joined:
        raise DataError(f"data.path={config.path} is empty; name a file with text")
    return RawCorpus(
        "text",
        _hash("text", str(config.val_fraction), hashlib.sha256(joined.encode()).hexdigest()),
        lambda: _cut(joined, config.val_fraction),
    )


def _files(path: str) -> list[str]:
    """The files that data.path names: one of exactly that name, else those that match it."""
    pattern = str(expand(path))
    if os.path.lexists(pattern):
        if os.path.isdir(pattern):
            raise DataError(f"data.path={path} is a folder; name its files: {path}/*.txt")
        return [pattern]
    try:
        found = glob.glob(pattern, recursive=True)
    except ValueError:  # a NUL
        found = []
    paths = sorted(name for name in found if os.path.isfile(name))
    if not paths:
        raise DataError(
            f"data.path={path!r:.300}: no such file (from {os.getcwd()}); correct the path, and "
            f"quote a pattern so that the shell leaves it alone"
        )
    return paths


def _hub(config: DataConfig, cache: Path, other: Path | None) -> RawCorpus:
    """Any Hugging Face text dataset, streamed once into text files in our cache."""
    name = config.name
    if not name:
        raise ConfigError("data.name is missing; data=hub needs data.name=OWNER/DATASET")
    # val_fraction belongs to the key: it decides the split where the dataset has none.
    parts = [name, config.subset or "", config.text_column, str(config.val_fraction)]
    local = expand(name)
    if local.exists():
        name = str(local.resolve())
        parts += [name, *_state_of_files(local)]
    key = _hash(*parts)[:16]
    slug = "".join(c if c.isalnum() else "-" for c in config.name or "")[-80:]
    folder = cache / "text" / f"hub-{slug}-{key}"
    kept = folder if other is None else other / "text" / folder.name
    if not folder.is_dir() and kept.is_dir():
        folder = kept
    if folder.is_dir():
        _say_if_it_changed(config, folder)
    build_once(folder, lambda scratch: _spool(config, name, scratch))
    digests = read_json(folder / "sha256.json", "train", "val")
    if not digests.keys() <= _HUB_SPLITS.keys():
        raise DataError(f"the text in {folder} is damaged; delete that folder, it is fetched again")
    return RawCorpus(
        f"hub-{slug}",
        _hash("hub", *(f"{split} {digest}" for split, digest in sorted(digests.items()))),
        lambda: {split: _kept_text(folder, split, digests[split]) for split in digests},
    )


def _revision(name: str) -> str | None:
    """The newest revision of a dataset of the Hub; None where it is not known now."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if expand(name).exists() or not online(endpoint):
        return None
    from huggingface_hub import HfApi

    try:
        return HfApi(endpoint).dataset_info(name, timeout=5).sha
    except Exception:  # of whatever library the request uses
        return None


def _say_if_it_changed(config: DataConfig, folder: Path) -> None:
    """A dataset that was fetched stays as it was: runs of one study share their text."""
    kept = folder / "revision"
    was = kept.read_text(encoding="utf-8", errors="replace") if kept.is_file() else None
    now = _revision(config.name or "") if was else None
    if now is not None and now != was:
        sys.stderr.write(
            f"{config.name} changed at its source since it was fetched: the text of revision "
            f"{was} is used, {now} is newer; delete {folder} to fetch that\n"
        )


def _state_of_files(place: Path) -> list[str]:
    """What changes when a file at or below `place` does: names, sizes, times of change."""
    files = [p for p in place.rglob("*") if p.is_file()] if place.is_dir() else [place]
    states = ((p.relative_to(place), p.stat()) for p in sorted(files))
    return [f"{p} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}" for p, s in states]


def _kept_text(folder: Path, split: str, sha256: str) -> Path:
    file = folder / f"{split}.txt"
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
            raise DataError(f"{file} was changed; delete the folder {folder}, it is fetched again")
    return file


def _spool(config: DataConfig, name: str, folder: Path) -> None:
    """Write each split as text, one "\n" after each document.

    Without a validation split, `val_fraction` of the documents, evenly spaced, become one. Rows
    without a text are left out, which is said.
    """
    revision = _revision(name)
    known = {} if revision is None else {"revision": revision}
    dataset = _load_dataset(name, config.subset, streaming=True, **known)
    if dataset is None:
        raise DataError(
            f"{name} is not in the Hugging Face cache and the network does not answer; "
            f"connect to the network, or use data=text with your own files"
        )
    if "train" not in dataset:
        raise DataError(f"{name} has no train split; it has {', '.join(dataset)}")
    share = config.val_fraction if "validation" not in dataset else 0.0
    files: dict[str, Any] = {}
    digests: dict[str, Any] = {}
    documents = 0
    for split, rows in ((s, dataset[h]) for s, h in _HUB_SPLITS.items() if h in dataset):
        for i, document in enumerate(_documents(rows, config, split)):
            held_out = split == "train" and int((i + 1) * share) > int(i * share)
            target = "val" if held_out else split
            if target not in files:
                files[target] = (folder / f"{target}.txt").open("wb")
                digests[target] = hashlib.sha256()
            content = f"{document}\n".encode(errors="replace")
            files[target].write(content)
            digests[target].update(content)
            documents += split == "train"
    for file in files.values():
        file.close()
    if "train" not in files:
        raise DataError(f"{name}: its train split has no text; name another dataset")
    if "val" not in files:
        cause = "its validation split is empty"
        remedy = "name another dataset"
        if share:
            cause = f"it has no validation split, and {share} of its {documents} documents is none"
            remedy = f"set data.val_fraction to {1 / documents:.2g} or more"
            if documents < 2:
                remedy = "name a dataset of two documents or more"
        raise DataError(f"{name} has no text to validate on: {cause}; {remedy}")
    hexes = {split: digest.hexdigest() for split, digest in digests.items()}
    (folder / "sha256.json").write_text(json.dumps(hexes))
    if revision is not None:
        (folder / "revision").write_text(revision)


def _documents(rows: Iterable[dict[str, Any]], config: DataConfig, split: str) -> Iterator[str]:
    rows, empty, number = iter(rows), 0, -1
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except Exception as error:  # of whatever library the download uses
            raise DataError(f"the download of {config.name} broke off: {error!s:.500}") from error
        number += 1
        if config.text_column not in row:
            raise DataError(
                f"data.text_column={config.text_column} is not a text column of {config.name}; "
                f"its columns are {', '.join(row)}"
            )
        text = row[config.text_column]
        if text is None:
            empty += 1
        elif isinstance(text, str):
            yield text
        else:
            raise DataError(
                f"data.text_column={config.text_column} is not a text column of {config.name}: "
                f"row {number} of {split} holds {type(text).__name__} {text!r:.60}; "
                f"its columns are {', '.join(row)}"
            )
    if empty:
        sys.stderr.write(
            f"{config.name}: {empty} of {number + 1} rows of {split} have no text "
            f"({config.text_column} is null) and are left out\n"
        )


def _load_dataset(
    name: str, subset: str | None, *, streaming: bool = False, revision: str | None = None
) -> Any:
    """The splits of a Hugging Face dataset from its cache, else the network; None: neither."""
    import datasets

    try:
        with _hub_offline():
            return datasets.load_dataset(name, subset, streaming=streaming, revision=revision)
    except Exception:  # not in the cache, whichever way `datasets` says so
        if not online(datasets.config.HF_ENDPOINT):
            return None
    try:
        return datasets.load_dataset(name, subset, streaming=streaming, revision=revision)
    except Exception as error:  # of whatever library the download uses
        raise DataError(f"cannot load {name} from Hugging Face: {error!s:.500}") from error


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Let `datasets` look into its cache only, whatever the environment said at its import."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
