"""enwik8 and TinyStories: found, verified, cut and read, with small files in their place."""

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import large_texts
from phasegpt.data.corpora import known_vocab_size
from phasegpt.data.corpus import prepare
from phasegpt.data.large_texts import FILES, KnownFile

#: 2,000 bytes, in which both places of a cut are inside of a character of four bytes.
WIKI = b"<page>\n" + "\U0001f600".encode() * 498 + b"."
STORIES = {"train": b"Once upon a time.\n<|endoftext|>\n" * 60, "val": b"There was a cat.\n" * 20}


def known(name: str, content: bytes, url: str = "http://nowhere.invalid/x") -> KnownFile:
    return KnownFile(name, url, hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small texts in place of the known ones, and a data folder that is empty."""
    stories = {
        split: known(FILES["tinystories"][split].name, text) for split, text in STORIES.items()
    }
    monkeypatch.setitem(FILES, "enwik8", {"whole": known("enwik8/enwik8", WIKI)})
    monkeypatch.setitem(FILES, "tinystories", stories)
    monkeypatch.setenv("PHASEGPT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_enwik8_is_cut_at_90_and_95_percent_of_its_bytes(
    small: Path, data_config: Callable
) -> None:
    file = put(small, "enwik8/enwik8", WIKI)
    corpus = prepare(data_config("enwik8", tokenizer="byte"))
    found = {name: bytes(tokens.astype("uint8")) for name, tokens in corpus.splits.items()}
    assert b"".join(found.values()) == WIKI == file.read_bytes()
    assert [*found] == ["train", "val", "test"]
    train, val, _ = (len(text) for text in found.values())
    assert (train, train + val) == (1803, 1903)  # not 1800 and 1900, which cut a character
    assert all(text.decode() for text in found.values())
    assert known_vocab_size(data_config("enwik8", tokenizer="byte")) == 256


def test_tinystories_has_its_two_files(small: Path, data_config: Callable) -> None:
    for split, text in STORIES.items():
        put(small, FILES["tinystories"][split].name, text)
    corpus = prepare(data_config("tinystories", tokenizer="byte"))
    assert {n: bytes(t.astype("uint8")) for n, t in corpus.splits.items()} == STORIES


@pytest.mark.parametrize("folder", [True, False])
def test_data_path_names_the_file_or_its_folder_and_comes_first(
    folder: bool, small: Path, data_config: Callable, tmp_path: Path
) -> None:
    put(small, "enwik8/enwik8", b"x" * 2000)  # which would be refused
    file = put(tmp_path, "mine/enwik8", WIKI)
    path = str(file.parent if folder else file)
    assert prepare(data_config("enwik8", tokenizer="byte", path=path)).splits


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (WIKI[:-1], r"has 1,999 bytes, expected 2,000; it may be cut short"),
        (WIKI[:-1] + b"!", rf"its sha256 is [0-9a-f]{{64}}, expected {known('', WIKI).sha256}"),
        (b"\0" * 2000, "is not text: there is a NUL byte"),
    ],
    ids=["short", "other", "binary"],
)
def test_another_file_is_refused(
    content: bytes, says: str, small: Path, data_config: Callable
) -> None:
    put(small, "enwik8/enwik8", content)
    with pytest.raises(DataError, match=says):
        prepare(data_config("enwik8", tokenizer="byte"))


def test_without_file_and_network_the_error_says_where_to_put_it(
    small: Path, data_config: Callable
) -> None:
    with pytest.raises(DataError, match=r"(?s)enwik8/enwik8  \(sha256 .*data\.path=FILE"):
        prepare(data_config("enwik8", tokenizer="byte"))
    with pytest.raises(DataError, match=r"cannot read .*nowhere"):
        prepare(data_config("enwik8", tokenizer="byte", path="nowhere"))
    with pytest.raises(ConfigError, match=r"data\.path=x belongs to data=text"):
        prepare(data_config("shakespeare", path="x"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An address at which the files of tmp_path/served are."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize("whole", [True, False])
def test_it_is_downloaded_unpacked_verified_and_not_kept_twice(
    whole: bool,
    small: Path,
    server: str,
    data_config: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with zipfile.ZipFile(tmp_path / "served/enwik8.zip", "w") as archive:
        archive.writestr("enwik8", WIKI if whole else WIKI[:-5])
    file = known("enwik8/enwik8", WIKI, f"{server}/enwik8.zip")
    monkeypatch.setitem(FILES, "enwik8", {"whole": file})
    config = data_config("enwik8", tokenizer="byte")
    if not whole:
        with pytest.raises(DataError, match="has 1,995 bytes, expected 2,000"):
            prepare(config)
        return
    assert sum(map(len, prepare(config).splits.values())) == len(WIKI)
    (tmp_path / "served/enwik8.zip").unlink()
    prepare(config)  # of the cache
    kept = {p.name for p in Path(config.cache_dir).rglob("*") if p.is_file()}
    assert {"train.bin", "val.bin", "test.bin", "meta.json"} <= kept
    assert not {"enwik8", "enwik8.zip"} & kept


def test_the_known_sizes_and_shares_are_the_published_ones() -> None:
    assert FILES["enwik8"]["whole"].size == 90_000_000 + 2 * 5_000_000
    shares = [round(b * 1e8) - round(a * 1e8) for a, b in large_texts.ENWIK8_SPLITS.values()]
    assert shares == [90_000_000, 5_000_000, 5_000_000]
