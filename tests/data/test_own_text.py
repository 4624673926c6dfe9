"""data=text in every form: one text, whatever it is kept in, and what is said of bad files."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import corpus, hub, rows
from phasegpt.data.corpus import Corpus, prepare

DOCUMENTS = [
    "The first.\nIt has two lines.",
    "",
    "caf\u00e9 \u65e5\u672c",
    'a "quoted" [one], {x}',
    "end " * 50,
]
TEXT = "".join(f"{document}\n" for document in DOCUMENTS)


def written(folder: Path, name: str, column: str = "text") -> Path:
    """DOCUMENTS in a file of that name."""
    path, found = folder / name, [{"id": i, column: d} for i, d in enumerate(DOCUMENTS)]
    content = {
        ".txt": TEXT,
        ".jsonl": "\r\n\r\n".join(map(json.dumps, found)),
        ".json": json.dumps(found, indent=2, ensure_ascii=False),
    }.get(rows.kind(path), "")
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), path, row_group_size=2)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8", newline="")
    return path


def text_of(found: Corpus) -> str:
    return "".join(found.tokenizer.decode(ids.tolist()) for ids in found.splits.values())


FORMS = ["a.txt", "a.jsonl", "a.json", "a.parquet", "a.txt.gz", "a.jsonl.gz", "a.json.gz"]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_every_form_holds_the_same_text(
    data_config: Any, tmp_path: Path, name: str, tokenizer: str
) -> None:
    found = prepare(data_config("text", path=str(written(tmp_path, name)), tokenizer=tokenizer))
    assert text_of(found) == TEXT
    assert found.meta["splits"]["train"]["characters"] == int(len(TEXT) * 0.9)
    kept = next(Path(tmp_path / "cache/tokens").glob("text-*[0-9a-f]"))
    assert {p.name for p in kept.iterdir()} == {"train.bin", "val.bin", "meta.json"}


def test_a_folder_is_all_its_text_in_the_order_of_names(data_config: Any, tmp_path: Path) -> None:
    (tmp_path / "set/b").mkdir(parents=True)
    for name in ("b/2.jsonl.gz", "b/1.txt", "c.parquet", "a.json", "d.txt.gz"):
        written(tmp_path / "set", name)
    (tmp_path / "set/README.md").write_text("no text of the set")
    (tmp_path / "set/.hidden.txt").write_text("hidden")
    (tmp_path / "set/b/round").symlink_to(tmp_path / "set/b")
    (tmp_path / "set/e.txt").write_text("without a line end")
    (tmp_path / "set/f.txt").write_text("\ufefflast")
    found = prepare(data_config("text", path=str(tmp_path / "set"), tokenizer="byte"))
    assert text_of(found) == TEXT * 5 + "without a line end\nlast"
    pattern = prepare(data_config("text", path=str(tmp_path / "set/*/*.gz"), tokenizer="byte"))
    assert text_of(pattern) == TEXT


def test_the_column_is_the_users_choice(data_config: Any, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet"):
        path = written(tmp_path, name, "body")
        c = data_config("text", path=str(path), tokenizer="byte", text_column="body")
        assert text_of(prepare(c)) == TEXT
        with pytest.raises(DataError, match=r"text_column=text is not .* columns are id, body"):
            prepare(data_config("text", path=str(path), tokenizer="byte"))
    with pytest.raises(ConfigError, match=r"text_column='body' does nothing for plain text"):
        data_config("text", path="my/*.txt.gz", text_column="body").check_idle()
    # What was trained on columns is evaluated on plain text too.
    c = data_config("text", path=str(written(tmp_path, "a.txt")), text_column="body")
    assert prepare(c).meta["splits"]["train"]["tokens"]


def test_rows_without_a_text_are_left_out_and_said(
    data_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    found = prepare(data_config("text", path=str(tmp_path / "a.jsonl"), val_fraction=0.5))
    assert text_of(found) == "one\ntwo\n"
    assert "a.jsonl: 1 of 3 rows have no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": }\n', r"no JSON in line 2"),
        ("a.jsonl", b'["x"]\n', r"its columns are none, in \['x'\]"),
        ("a.jsonl", b'{"text": 3}\n', r"row 0 holds int 3; its columns are text"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"not UTF-8: byte 0xff at offset 10"),
        ("a.json", b'[{"text": "x"}, {"text": "y"', r"not JSON after 1 values"),
        ("a.json", b'[{"text": "x"}', r"not JSON after 1 values"),
        ("a.json", b"", r"not JSON after 0 values"),
        ("a.json", b'[{"text": "x"}]\n[{"text": "y"}]', r"goes on after its array"),
        ("a.json", b'[{"text": "x"}] and more', r"goes on after its array"),
        ("a.json", b'{"data": [{"text": "x"}]}', r"its columns are data"),
        ("a.parquet", b"PAR1 is not all", r"cannot be read as Parquet"),
        ("a.txt.gz", b"\x1f\x8b\x08 and no more", r"cannot be unpacked"),
        ("a.txt.gz", b"plain", r"cannot be unpacked"),
        ("a.txt.gz", gzip.compress(b"a\0b", mtime=0), r"NUL byte at offset 1"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(
    data_config: Any, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        prepare(data_config("text", path=str(tmp_path / name), tokenizer="byte"))
    assert str(tmp_path / name) in str(error.value)
    assert not list(tmp_path.glob("cache/tokens/text*[0-9a-f]"))


def test_json_is_read_value_by_value(tmp_path: Path) -> None:
    values = [{"text": "x" * n, "n": [n, {"m": "]"}]} for n in (0, 5, 3000, 1)]
    forms = [json.dumps(values), json.dumps(values, indent=1), "\n".join(map(json.dumps, values))]
    for text in forms:
        for size in (1, 7, 10_000):
            pieces = (text[i : i + size] for i in range(0, len(text), size))
            assert list(rows._json_values(tmp_path, pieces)) == values
    assert list(rows._json_values(tmp_path, iter(["1", "2", " 3"]))) == [12, 3]


def test_a_file_that_changes_meanwhile_is_refused(
    data_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = written(tmp_path, "a.txt"), corpus.encoding.encode

    def longer(*given: Any) -> Any:
        path.write_text(TEXT * 2)
        return real(*given)

    monkeypatch.setattr(corpus.encoding, "encode", longer)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(data_config("text", path=str(path), tokenizer="byte"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_memory_does_not_grow_with_the_text(
    data_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = f"{'a long word ' * 40}{'-' * 4000}" * 2
    line = json.dumps({"text": words}) if name == "a.jsonl" else words
    with (tmp_path / name).open("w") as file:
        file.writelines(f"{line}\n" for _ in range(2700))  # 24 MB
    c = data_config("text", path=str(tmp_path / name), tokenizer="byte")
    prepare(data_config("text", path=str(written(tmp_path, "b.txt")), tokenizer="byte"))
    monkeypatch.setattr(corpus.encoding, "_cores", lambda: 1)
    tracemalloc.start()
    try:
        prepare(c)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_a_dataset_on_disk_is_streamed(
    data_config: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set").mkdir()
    written(tmp_path / "set", name)
    asked, real = [], hub.load_dataset
    monkeypatch.setattr(hub, "load_dataset", lambda *a, **k: asked.append(k) or real(*a, **k))
    c = data_config("hub", name=str(tmp_path / "set"), tokenizer="byte", val_fraction=0.2)
    found = prepare(c)
    assert asked == [{"streaming": True}]
    assert found.tokenizer.decode(found.split("val")) == f"{DOCUMENTS[-1]}\n"
    assert text_of(found) == TEXT
