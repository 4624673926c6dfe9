"""Corpora: published counts, your own text, the Hub, and what is said of missing data."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import corpora, hub
from phasegpt.data.corpus import prepare

DATA_DIR = os.environ.get("PHASEGPT_DATA_DIR")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="PHASEGPT_DATA_DIR is not set")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PHASEGPT_DATA_DIR", raising=False)


def counts(corpus, key):
    return [split[key] for split in corpus.meta["splits"].values()]


# Known corpora


@pytest.mark.parametrize(
    ("corpus", "tokenizer", "fingerprint"),
    [
        ("synthetic", "char", "9102aaed7127a7cd"),
        pytest.param("synthetic", "gpt2", "24e50d414f981901", marks=needs_data),
        pytest.param("shakespeare", "char", "b096680d1655c111", marks=needs_data),
        pytest.param("shakespeare", "gpt2", "8a29b5e3f16dd1a2", marks=needs_data),
    ],
)
def test_known_corpora_have_the_tokens_they_always_had(data_config, corpus, tokenizer, fingerprint):
    assert prepare(data_config(corpus, tokenizer=tokenizer)).fingerprint == fingerprint


@needs_data
def test_wikitext_has_the_tokens_it_always_had(data_config):
    assert prepare(data_config("wikitext2", tokenizer="byte")).fingerprint == "d0942aa424395cac"


@pytest.mark.parametrize(
    ("name", "fingerprint"), [("a.txt", "9091f5ce3e7989e4"), ("*.txt", "edeb365baa9d0ba1")]
)
def test_own_text_has_the_tokens_it_always_had(data_config, tmp_path, name, fingerprint):
    text = "caf\u00e9 \u65e5\u672c\r\nword two\n\n  x" * 300
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.txt").write_text("third file, no end" * 50)
    c = data_config("text", path=str(tmp_path / name), tokenizer="byte")
    assert prepare(c).fingerprint == fingerprint


@needs_data
def test_shakespeare_has_the_published_counts(data_config):
    corpus = prepare(data_config("shakespeare"))
    assert counts(corpus, "characters") == counts(corpus, "tokens") == [1_003_854, 111_540]
    assert corpus.tokenizer.vocab_size == 65
    text = Path(DATA_DIR, "shakespeare/input.txt").read_text()
    assert corpus.tokenizer.decode(corpus.split("val")) == text[1_003_854:]
    assert counts(prepare(data_config("shakespeare", tokenizer="gpt2")), "tokens") == [
        301_966,
        36_059,
    ]
    with pytest.raises(ConfigError, match=r"split=test does not exist .* train, val"):
        corpus.split("test")


@needs_data
def test_wikitext_has_the_published_counts(data_config):
    corpus = prepare(data_config("wikitext2", tokenizer="gpt2"))
    assert counts(corpus, "tokens") == [2_448_382, 258_659, 295_877]
    assert counts(corpus, "bytes") == [10_797_148, 1_121_681, 1_256_449]
    assert counts(corpus, "words") == [2_051_910, 213_886, 241_211]
    assert counts(corpus, "lines") == [36_718, 3_760, 4_358]


@needs_data
def test_raw_wikitext_without_its_train_split_is_an_error(data_config, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"wikitext-2-raw/train.txt") as error:
        prepare(data_config("wikitext2", variant="raw"))
    assert "6707892fa378" in str(error.value)
    assert "valid.txt" not in str(error.value)


@pytest.mark.parametrize(
    "corpus",
    ["synthetic", *(pytest.param(name, marks=needs_data) for name in ("shakespeare", "wikitext2"))],
)
def test_pinned_vocabulary_sizes_are_those_of_the_text(data_config, corpus):
    c = data_config(corpus)
    assert prepare(c).tokenizer.vocab_size == corpora.known_vocab_size(c)


def test_vocabulary_sizes_are_known_without_data(data_config, offline):
    assert corpora.known_vocab_size(data_config("shakespeare")) == 65
    assert corpora.known_vocab_size(data_config("text", tokenizer="gpt2")) == 50257
    assert corpora.known_vocab_size(data_config("hub", tokenizer="byte")) == 256
    assert corpora.known_vocab_size(data_config("wikitext2", variant="raw")) is None
    assert corpora.known_vocab_size(data_config("text")) is None


@needs_data
def test_rows_from_the_hub_give_the_known_files(data_config, offline, monkeypatch):
    def load(name, subset, *, streaming=False):
        assert (name, subset) == ("Salesforce/wikitext", "wikitext-2-v1")
        names = {"train": "train", "validation": "valid", "test": "test"}
        files = {k: Path(DATA_DIR, f"wikitext-2-tokens/{v}.txt") for k, v in names.items()}
        # As the Hub has them: a row is a line, blank lines are empty.
        rows = {k: f.open(encoding="utf-8", newline="\n") for k, f in files.items()}
        return {k: ({"text": x if x.strip() else ""} for x in r) for k, r in rows.items()}

    monkeypatch.setattr(hub, "load_dataset", load)
    corpus = prepare(data_config("wikitext2", tokenizer="byte"))
    assert counts(corpus, "tokens") == [10_797_148, 1_121_681, 1_256_449]
    changed = {"train": [], "validation": [{"text": "other"}], "test": []}
    monkeypatch.setattr(hub, "load_dataset", lambda *_: changed)
    with pytest.raises(DataError, match="not the known file"):
        prepare(data_config("wikitext2"))


@pytest.mark.parametrize("corpus", ["shakespeare", "wikitext2", "hub"])
def test_missing_data_offline_is_one_clear_error_at_once(data_config, offline, corpus, monkeypatch):
    monkeypatch.setattr(time, "sleep", None)  # nothing is tried again later
    with pytest.raises(DataError) as error:
        prepare(data_config(corpus, name="nobody/nothing" if corpus == "hub" else None))
    if corpus != "hub":
        assert "PHASEGPT_DATA_DIR" in str(error.value) and "sha256" in str(error.value)


@needs_data
def test_a_known_file_that_was_changed_is_refused(data_config, monkeypatch, tmp_path):
    changed = Path(DATA_DIR, "shakespeare/input.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare/input.txt").write_bytes(changed)
    monkeypatch.setenv("PHASEGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=hashlib.sha256(changed).hexdigest()):
        prepare(data_config("shakespeare"))


def test_a_data_folder_that_does_not_exist_is_an_error(data_config, monkeypatch):
    monkeypatch.setenv("PHASEGPT_DATA_DIR", "/no/such/folder")
    with pytest.raises(DataError, match="PHASEGPT_DATA_DIR=/no/such/folder is not a folder"):
        prepare(data_config("shakespeare"))


def test_keys_of_another_corpus_are_refused(data_config):
    for key, value in {"path": "x.txt", "name": "a/b", "subset": "c", "variant": "raw"}.items():
        with pytest.raises(ConfigError, match=f"data.{key}="):
            prepare(data_config("synthetic", **{key: value}))


# The user's own text


def test_own_text_is_split_at_the_end_and_kept_exactly(data_config, tmp_path):
    text = "caf\u00e9 \u65e5\u672c\r\n" * 100
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    corpus = prepare(data_config("text", path=str(tmp_path / "a.txt"), val_fraction=0.2))
    assert counts(corpus, "characters") == [720, 180]
    got = [corpus.tokenizer.decode(tokens) for tokens in corpus.splits.values()]
    assert "".join(got) == text


def test_a_pattern_joins_files_by_name_and_adds_missing_line_ends(data_config, tmp_path):
    for name, text in {"b.txt": "third", "a1.txt": "first", "a2.txt": "second\n"}.items():
        (tmp_path / name).write_text(text)
    c = data_config("text", path=str(tmp_path / "*.txt"), tokenizer="byte", val_fraction=0.5)
    splits = prepare(c).splits.values()
    assert b"".join(bytes(s.astype(np.uint8)) for s in splits) == b"first\nsecond\nthird"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        ("text".encode("utf-16"), "UTF-16.*iconv"),
        (b"\x1f\x8b\x08", "gzip.*gunzip"),
        (b"x", "too short"),
        (b"abc\xff\xfe", "not UTF-8: byte 0xff at offset 3"),
        (b"ab\0c", "NUL byte at offset 2"),
        (None, "no such file"),
    ],
)
def test_bad_files_are_named(data_config, tmp_path, content, message):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(data_config("text", path=str(path)))
    assert not list(tmp_path.glob("cache/tokens/text*[0-9a-f]"))


def test_a_file_of_exactly_that_name_wins_over_a_pattern(data_config, tmp_path):
    (tmp_path / "data[1].txt").write_text("literal " * 9)
    (tmp_path / "data1.txt").write_text("pattern " * 9)
    corpus = prepare(data_config("text", path=str(tmp_path / "data[1].txt"), tokenizer="byte"))
    assert corpus.tokenizer.decode(corpus.split("train")).startswith("literal")
    (tmp_path / "data[1].txt").unlink()
    corpus = prepare(data_config("text", path=str(tmp_path / "data[1].txt"), tokenizer="byte"))
    assert corpus.tokenizer.decode(corpus.split("train")).startswith("pattern")


@pytest.mark.parametrize("path", ["n" * 5000, "n" * 5000 + "*", "[", "**"])
def test_a_strange_path_is_no_such_file(data_config, tmp_path, monkeypatch, path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file") as error:
        prepare(data_config("text", path=path))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("path", ["a\0b", "a\0b*", "a\ud800b"])
def test_a_path_that_no_file_can_have_is_refused(data_config, path):
    with pytest.raises(ConfigError, match=r"data\.path=.*NUL or half a surrogate pair"):
        data_config("text", path=path)


def test_a_pipe_as_text_is_an_error_at_once(data_config, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe.*save it as one"):
        prepare(data_config("text", path=str(tmp_path / "pipe")))


def test_a_split_that_cannot_be_scored_names_the_remedy(data_config, tmp_path):
    (tmp_path / "a.txt").write_text("0123456789")
    with pytest.raises(DataError, match=r"val split .* 1 token.* raise data.val_fraction=0.1"):
        prepare(data_config("text", path=str(tmp_path / "a.txt")))
    prepare(data_config("text", path=str(tmp_path / "a.txt"), val_fraction=0.2))


def test_a_folder_without_text_or_no_path_is_an_error(data_config, tmp_path):
    with pytest.raises(DataError, match=r"is a folder without text.*\.jsonl"):
        prepare(data_config("text", path=str(tmp_path)))
    for place in ("/", "~", str(Path.home().parent)):  # nobody means every text that is there
        with pytest.raises(DataError, match="is not a folder of text alone"):
            prepare(data_config("text", path=place))
    with pytest.raises(ConfigError, match=r"data.path is missing"):
        prepare(data_config("text"))


# Hugging Face datasets


def test_hub_documents_are_spooled_once_and_split(data_config, offline, monkeypatch):
    calls = []

    def load(name, subset, *, streaming=False):
        calls.append(streaming)
        return {"train": [{"text": f"document {i}"} for i in range(20)]}

    monkeypatch.setattr(hub, "load_dataset", load)
    corpus = prepare(data_config("hub", name="own/set", val_fraction=0.1))
    assert corpus.tokenizer.decode(corpus.split("val")) == "document 9\ndocument 19\n"
    assert corpus.tokenizer.decode(corpus.split("train")).count("\n") == 18
    prepare(data_config("hub", name="own/set", val_fraction=0.1, tokenizer="byte"))
    assert calls == [True]
    with pytest.raises(DataError, match=r"text_column=body .* columns are text"):
        prepare(data_config("hub", name="own/set", text_column="body"))
    with pytest.raises(ConfigError, match=r"data.name is missing"):
        prepare(data_config("hub"))


def test_a_download_that_breaks_off_leaves_nothing(data_config, offline, monkeypatch, tmp_path):
    def rows():
        yield {"text": "first"}
        raise RuntimeError("connection lost")

    monkeypatch.setattr(hub, "load_dataset", lambda *_, streaming: {"train": rows()})
    with pytest.raises(DataError, match="broke off: connection lost"):
        prepare(data_config("hub", name="own/set"))
    assert [p.suffix for p in (tmp_path / "cache/text").iterdir()] == [".lock"]


def test_a_rewritten_folder_is_read_again(data_config, monkeypatch, tmp_path):
    source = tmp_path / "set"
    source.mkdir()

    def load(name, subset, *, streaming=False):
        assert Path(name) == source.resolve()
        lines = (source / "train.txt").read_text().splitlines()
        return {"train": ({"text": line} for line in lines)}

    monkeypatch.setattr(hub, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    for word in ("first", "other"):  # of one length, so that the size stays
        (source / "train.txt").write_text(f"{word}\n" * 20)
        corpus = prepare(data_config("hub", name="set", tokenizer="byte"))
        assert set(corpus.tokenizer.decode(corpus.split("train")).split()) == {word}


def rows_of(monkeypatch, **splits):
    found = {name: [{"text": text} for text in texts] for name, texts in splits.items()}
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: found)


def test_rows_without_a_text_are_left_out_and_counted(data_config, offline, monkeypatch, capsys):
    rows_of(monkeypatch, train=["a", None, "b", None] * 10)
    corpus = prepare(data_config("hub", name="own/set", tokenizer="byte"))
    assert corpus.meta["splits"]["train"]["lines"] + corpus.meta["splits"]["val"]["lines"] == 20
    assert "20 of 40 rows of train have no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"train": ["a"] * 5}, r"0.1 of its 5 documents is none; set data.val_fraction to 0.2"),
        ({"train": ["a"]}, "name a dataset of two documents or more"),
        ({"train": ["a"] * 5, "validation": []}, "its validation split is empty"),
        ({"train": [None]}, "its train split has no text"),
        ({"train": ["a", 3]}, r"row 1 of train holds int 3; its columns are text"),
        ({"test": ["a"]}, "has no train split; it has test"),
    ],
)
def test_a_dataset_that_does_not_serve_is_named(data_config, offline, monkeypatch, splits, says):
    rows_of(monkeypatch, **splits)
    with pytest.raises(DataError, match=says):
        prepare(data_config("hub", name="own/set"))


def test_text_that_was_changed_in_our_cache_is_refused(data_config, offline, monkeypatch, tmp_path):
    rows_of(monkeypatch, train=["a b c"] * 20)
    prepare(data_config("hub", name="own/set"))
    (kept,) = tmp_path.glob("cache/text/*/train.txt")
    kept.write_text("other")
    with pytest.raises(DataError, match="was changed; delete the folder"):
        prepare(data_config("hub", name="own/set", tokenizer="byte"))


def test_a_newer_revision_at_the_source_is_said(data_config, monkeypatch, capsys):
    rows_of(monkeypatch, train=["a b c"] * 20)
    for revision in ("r1", "r1", "r2"):
        assert "changed at its source" not in capsys.readouterr().err
        monkeypatch.setattr(hub, "_revision", lambda name, r=revision: r)
        prepare(data_config("hub", name="own/set"))
    err = capsys.readouterr().err
    assert "own/set changed at its source" in err and "revision r1 is used, r2 is newer" in err
