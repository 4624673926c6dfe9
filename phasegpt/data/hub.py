"""Any Hugging Face text dataset, or a folder of one, streamed once into text files of our cache."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.core.files import expand, read_json
from phasegpt.data.config import DataConfig
from phasegpt.data.downloads import build_once, online
from phasegpt.data.rows import documents

#: Our names of the splits, and the Hub's.
SPLITS = {"train": "train", "val": "validation", "test": "test"}


def fetched(config: DataConfig, cache: Path, other: Path | None) -> tuple[Path, dict[str, str]]:
    """The folder of the text of data.name, and the sha256 of each split; fetched on first use.

    A folder of the user's is fetched again when a file in it changes; a dataset of the Hub stays
    as it was, and a newer revision is said. `other` is a cache that is only read.
    """
    name = config.name
    if not name:
        raise ConfigError("data.name is missing; data=hub needs data.name=OWNER/DATASET")
    # val_fraction belongs to the key: it decides the split where the dataset has none.
    parts = [name, config.subset or "", config.text_column, str(config.val_fraction)]
    if config.documents:
        parts.append("documents")
    local = expand(name)
    if os.path.exists(local):
        name = str(local.resolve())
        parts += [name, *_state_of_files(local)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    slug = "".join(c if c.isalnum() else "-" for c in config.name or "")[-80:]
    folder = cache / "text" / f"hub-{slug}-{key}"
    kept = folder if other is None else other / "text" / folder.name
    if not folder.is_dir() and kept.is_dir():
        folder = kept
    if folder.is_dir():
        _say_if_it_changed(config, folder)
    build_once(folder, lambda scratch: _spool(config, name, scratch))
    digests = read_json(folder / "sha256.json", "train", "val")
    if not digests.keys() <= SPLITS.keys():
        raise DataError(f"the text in {folder} is damaged; delete that folder, it is fetched again")
    return folder, digests


def kept_text(folder: Path, split: str, sha256: str) -> Path:
    """The file of one split, after its hash has been compared."""
    file = folder / f"{split}.txt"
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:
            raise DataError(f"{file} was changed; delete the folder {folder}, it is fetched again")
    return file


def _revision(name: str) -> str | None:
    """The newest revision of a dataset of the Hub; None where it is not known now."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.path.exists(expand(name)) or not online(endpoint):
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


def _spool(config: DataConfig, name: str, folder: Path) -> None:
    """Write each split as text, one "\n" after each document.

    Without a validation split, `val_fraction` of the documents, evenly spaced, become one. Rows
    without a text are left out, which is said.
    """
    revision = _revision(name)
    known = {} if revision is None else {"revision": revision}
    dataset = load_dataset(name, config.subset, streaming=True, **known)
    if dataset is None:
        raise DataError(
            f"{name} is not in the Hugging Face cache and the network does not answer; "
            f"connect to the network, or use data=text with your own files"
        )
    if "train" not in dataset:
        raise DataError(f"{name} has no train split; it has {', '.join(dataset)}")
    share = config.val_fraction if "validation" not in dataset else 0.0
    files: dict[str, Any] = {}
    begins: dict[str, Any] = {}
    digests: dict[str, Any] = {}
    number = 0
    for split, rows in ((s, dataset[h]) for s, h in SPLITS.items() if h in dataset):
        found = _received(rows, name)
        for i, document in enumerate(documents(found, config.text_column, str(config.name), split)):
            held_out = split == "train" and int((i + 1) * share) > int(i * share)
            target = "val" if held_out else split
            if target not in files:
                files[target] = (folder / f"{target}.txt").open("wb")
                digests[target] = hashlib.sha256()
                begins[target] = (folder / f"{target}.documents").open("wb")
            content = f"{document}\n".encode(errors="replace")
            begins[target].write(np.int64(files[target].tell()).tobytes())
            files[target].write(content)
            digests[target].update(content)
            number += split == "train"
    for file in (*files.values(), *begins.values()):
        file.close()
    if "train" not in files:
        raise DataError(f"{name}: its train split has no text; name another dataset")
    if "val" not in files:
        cause = "its validation split is empty"
        remedy = "name another dataset"
        if share:
            cause = f"it has no validation split, and {share} of its {number} documents is none"
            remedy = f"set data.val_fraction to {1 / number:.2g} or more"
            if number < 2:
                remedy = "name a dataset of two documents or more"
        raise DataError(f"{name} has no text to validate on: {cause}; {remedy}")
    hexes = {split: digest.hexdigest() for split, digest in digests.items()}
    (folder / "sha256.json").write_text(json.dumps(hexes))
    if revision is not None:
        (folder / "revision").write_text(revision)


def _received(rows: Iterable[Any], name: str | None) -> Iterator[Any]:
    """The rows as they come; a download that breaks off is a DataError."""
    try:
        yield from rows
    except Exception as error:  # of whatever library the download uses
        raise DataError(f"the download of {name} broke off: {error!s:.500}") from error


def load_dataset(
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
