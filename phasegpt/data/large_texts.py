"""enwik8 and TinyStories: known files that are too large to hold in memory, read where they are.

They are looked for at data.path, then in $PHASEGPT_DATA_DIR, then on the network, and compared with
their size and sha256 before a token is made of them.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from phasegpt.core.errors import DataError
from phasegpt.core.files import expand, read_chunks, text_pieces
from phasegpt.data.downloads import data_dir, save, where_to_put
from phasegpt.data.encoding import Span


class KnownFile(NamedTuple):
    """A file under the data folder: where it is published (in a .zip), and what it is."""

    name: str
    url: str
    sha256: str
    size: int  # bytes


_STORIES = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/"
    "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
)
#: By corpus. enwik8 is one file, whose splits ENWIK8_SPLITS cuts.
FILES = {
    "enwik8": {
        "whole": KnownFile(
            "enwik8/enwik8",
            "http://mattmahoney.net/dc/enwik8.zip",
            "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
            100_000_000,
        )
    },
    "tinystories": {
        "train": KnownFile(
            "tinystories/TinyStories-train.txt",
            f"{_STORIES}/TinyStories-train.txt",
            "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
            1_924_281_556,
        ),
        "val": KnownFile(
            "tinystories/TinyStories-valid.txt",
            f"{_STORIES}/TinyStories-valid.txt",
            "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4",
            19_447_282,
        ),
    },
}
#: Shares of enwik8's bytes at which validation and test begin: 90, 5 and 5 million.
ENWIK8_SPLITS = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}


def content(corpus: str) -> str:
    """What fixes every character of a corpus: the sha256 of its files."""
    digests = [file.sha256 for file in FILES[corpus].values()]
    return hashlib.sha256("\n".join([corpus, *digests]).encode()).hexdigest()


def splits(corpus: str, path: str | None, scratch: Path) -> dict[str, str | Span]:
    """The splits as parts of verified files; what is downloaded goes to the folder `scratch`.

    Raises DataError for files that are missing, or are not the known ones.
    """
    found = {}
    for split, known in FILES[corpus].items():
        place = _at(path, known) or _in_data_dir(known) or _downloaded(known, corpus, scratch)
        _verify(place, known)
        found[split] = Span.of(place)
    if corpus != "enwik8":
        return {**found}
    whole = found["whole"]
    return {
        split: whole._replace(
            start=_character(whole, round(first * whole.stop)),
            stop=_character(whole, round(last * whole.stop)),
        )
        for split, (first, last) in ENWIK8_SPLITS.items()
    }


def _at(path: str | None, known: KnownFile) -> Path | None:
    """The file that data.path names, or that of its name in the folder it names."""
    if path is None:
        return None
    place = expand(path)
    return place / Path(known.name).name if place.is_dir() else place


def _in_data_dir(known: KnownFile) -> Path | None:
    folder = data_dir()
    return folder / known.name if folder is not None and (folder / known.name).is_file() else None


def _downloaded(known: KnownFile, corpus: str, scratch: Path) -> Path:
    target = scratch / Path(known.name).name
    packed = known.url.endswith(".zip")
    received = target.with_name(f"{target.name}.zip") if packed else target
    if not save(known.url, received):
        files = {file.name: file.sha256 for file in FILES[corpus].values()}
        raise DataError(
            f"{known.name} is not here and the network does not answer; {where_to_put(files)}\n"
            f"or name its place: data.path=FILE, or a folder that holds it"
        )
    if packed:
        try:
            with zipfile.ZipFile(received) as archive:
                archive.extract(target.name, scratch)
        except (zipfile.BadZipFile, KeyError) as error:
            raise DataError(f"{known.url} is no archive of {target.name} ({error})") from error
        received.unlink()
    return target


def _verify(path: Path, known: KnownFile) -> None:
    """DataError unless a file has the known size and hash, and is text."""
    size = path.stat().st_size if path.is_file() else None
    if size is not None and size != known.size:
        raise DataError(
            f"{path} is not the known file: it has {size:,} bytes, expected {known.size:,}; it may "
            f"be cut short, packed, or have other line ends; replace it"
        )
    digest = hashlib.sha256()
    for _ in text_pieces(path, _hashed(path, digest)):
        pass
    if digest.hexdigest() != known.sha256:
        raise DataError(
            f"{path} is not the known file: its sha256 is {digest.hexdigest()}, expected "
            f"{known.sha256}; replace it, or read it as another text: data=text"
        )


def _hashed(path: Path, digest: Any) -> Iterator[bytes]:
    """The content of a file, which goes into the digest as it is read."""
    for chunk in read_chunks(path):
        digest.update(chunk)
        yield chunk


def _character(whole: Span, at: int) -> int:
    """The first place from byte `at` on where a character begins, so that no split cuts one."""
    with whole.path.open("rb") as file:
        file.seek(at)
        behind = file.read(4)
    return at + next((i for i, byte in enumerate(behind) if byte & 0xC0 != 0x80), len(behind))
