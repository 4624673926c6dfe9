"""Long texts in pieces and in several processes: the tokens of the whole, in bounded memory."""

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phasegpt.core.errors import DataError
from phasegpt.data import encoding, json_tokenizers
from phasegpt.data._tokenizer import Tokenizer
from phasegpt.data.encoding import Span
from phasegpt.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    train_byte_pairs,
)

#: What breaks a careless cut: runs of white space, marks before line ends, odd spaces, no spaces.
PARTS = [
    *(
        "the",
        "cat's",
        "don't",
        "X",
        "12",
        "3,000",
        ".\n",
        "!\n",
        ".",
        "!",
        "...",
        "?!",
        "--",
        "(",
        ")",
    ),
    *(" ", "  ", "\n", "\n\n", " \n\n", "\r\n", "\t", "\x1c", "\x85", "\u00a0", "\u3000", "\u2028"),
    *("caf\u00e9", "\u65e5\u672c\u3002", "\U0001f600", "<|endoftext|>", "'s", " 's", "a1b", "'"),
]


def hard_text(length: int, seed: int = 0) -> str:
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(len(PARTS), size=length)
    return "".join(PARTS[i] for i in drawn)


TEXT = hard_text(6000)


@pytest.fixture(scope="module")
def span(tmp_path_factory: pytest.TempPathFactory) -> Span:
    path = tmp_path_factory.mktemp("hard") / "text"
    path.write_bytes(b"???" + TEXT.encode() + b"???")
    return Span(path, 3, path.stat().st_size - 3)


def made_by_hand(kind: str) -> Tokenizer:
    """A tokenizer of another family, trained on TEXT and read as a tokenizer.json."""
    import tokenizers as hf
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    alphabet = sorted(set(TEXT))
    if kind == "cl100k":  # its parts end with line breaks
        fast = hf.Tokenizer(models.BPE())
        split = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        fast.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(hf.Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
            ]
        )
        fast.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    elif kind == "llama":  # no split at all, and a space in front
        fast = hf.Tokenizer(models.BPE())
        fast.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        fast.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(vocab_size=200, initial_alphabet=alphabet, max_token_length=2)
    else:  # sentence pieces
        fast = hf.Tokenizer(models.Unigram())
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        fast.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, initial_alphabet=alphabet, unk_token="<unk>", special_tokens=["<unk>"]
        )
    trainer.show_progress = False
    fast.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    return json_tokenizers.JsonTokenizer(fast.to_str())


def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "gpt2":
        return GPT2Tokenizer()
    if kind == "bpe":
        return train_byte_pairs([TEXT], 400)
    simple = {"byte": ByteTokenizer, "char": lambda: CharTokenizer("".join(sorted(set(TEXT))))}
    return simple[kind]() if kind in simple else made_by_hand(kind)


needs_data = pytest.mark.skipif(
    not os.environ.get("PHASEGPT_DATA_DIR"), reason="PHASEGPT_DATA_DIR is not set"
)
KINDS = ["char", "byte", pytest.param("gpt2", marks=needs_data), "bpe", "cl100k", "llama", "pieces"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_the_pieces_are_those_of_the_whole(kind: str, span: Span) -> None:
    tokenizer = tokenizer_of(kind)
    pieces = list(encoding.pieces(span, tokenizer.cut, 200))
    assert len(pieces) > 30
    assert "".join(piece.span.read() for piece in pieces) == TEXT
    ids = np.concatenate([tokenizer.encode(piece.span.read()) for piece in pieces])
    assert np.array_equal(ids, tokenizer.encode(TEXT))
    assert sum(len(p.span.read().split()) - p.inside for p in pieces) == len(TEXT.split())


def test_a_text_without_words_is_cut_between_characters(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("\u65e5\u672c" * 4000 + "abc def", encoding="utf-8")
    pieces = list(encoding.pieces(Span.of(tmp_path / "t"), ByteTokenizer().cut, 5000))
    assert len(pieces) == 5
    texts = [piece.span.read() for piece in pieces]  # no character is cut
    assert (
        sum(len(text.split()) - piece.inside for text, piece in zip(texts, pieces, strict=True))
        == 2
    )
    # Where a place between words is needed there is one piece, and its end.
    assert len(list(encoding.pieces(Span.of(tmp_path / "t"), encoding.before_space, 5000))) == 2


def test_every_number_of_processes_writes_the_same_file(
    span: Span, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "piece", 500)
    tokenizer = ByteTokenizer()
    one = encoding.encode(span, tokenizer, tmp_path / "1.bin", processes=1)
    three = encoding.encode(span, tokenizer, tmp_path / "3.bin", processes=3)
    assert one == three
    assert (tmp_path / "1.bin").read_bytes() == (tmp_path / "3.bin").read_bytes()
    sha256 = one.pop("sha256")
    assert sha256 == hashlib.sha256((tmp_path / "1.bin").read_bytes()).hexdigest()
    assert one == {
        "tokens": len(TEXT.encode()),
        "characters": len(TEXT),
        "bytes": len(TEXT.encode()),
        "words": len(TEXT.split()),
        "lines": TEXT.count("\n"),
    }


def test_an_error_in_a_process_is_the_users(
    span: Span, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "piece", 500)
    with pytest.raises(DataError, match="not among the 2 characters"):
        encoding.encode(span, CharTokenizer("ab"), tmp_path / "x.bin", processes=2)


class _Faulty(ByteTokenizer):
    def encode(self, text: str) -> np.ndarray:
        raise ZeroDivisionError("a fault of the code")


class _Killed(ByteTokenizer):
    def encode(self, text: str) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.parametrize(
    ("tokenizer", "error", "told"),
    [
        (_Faulty(), RuntimeError, r"(?s)Traceback.*ZeroDivisionError: a fault of the"),
        (_Killed(), DataError, r"ended early.*taskset"),
    ],
    ids=["a fault, with its traceback", "killed"],
)
def test_what_ended_a_process_is_said(
    span: Span,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: ByteTokenizer,
    error: type[Exception],
    told: str,
) -> None:
    monkeypatch.setattr(Tokenizer, "piece", 500)
    with pytest.raises(error, match=told):
        encoding.encode(span, tokenizer, tmp_path / "x.bin", processes=2)
