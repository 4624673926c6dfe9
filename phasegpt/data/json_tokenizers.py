"""Tokenizers of Hugging Face's `tokenizers` (extra hf): any tokenizer.json.

Text is taken to the letter, as by our other tokenizers: a special token in a text is text, and
what the file would put in front of a text, behind it or draw at random is left out.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data._tokenizer import WORD_ENDS, Tokenizer, plain_bytes

# Decoders that give every token its own text, whatever stands beside it.
_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence"}
_SAMPLE = " The cat's 12 dogs, caf\u00e9 \u65e5\u672c!\n\n  end"
_BESIDE = 256  # characters on each side of a cut that are compared with the uncut text
_PLACES = 100  # that are tried in a window


class JsonTokenizer(Tokenizer):
    """A tokenizer.json of Hugging Face's `tokenizers`; `json` is what is kept of its `text`.

    Its tokens must have a text of their own, so word pieces are refused: DataError, as for what is
    no tokenizer.json.
    """

    name = "hf"
    piece = 1 << 18  # `tokenizers` takes some 150 bytes for a token

    def __init__(self, text: str, origin: str = "the tokenizer's state") -> None:
        library("data.tokenizer=hf")
        from tokenizers import Tokenizer as Fast

        self.json = _to_the_letter(text, origin)
        try:
            self._fast = Fast.from_str(self.json)
        except Exception as error:  # of Rust, without a class of its own
            raise DataError(f"{origin} is no tokenizer.json: {error!s:.300}") from None
        self._fast.encode_special_tokens = True
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        if len(vocabulary) < 2:
            raise DataError(f"{origin} has {len(vocabulary)} tokens; a model needs 2 at least")
        self.vocab_size = 1 + max(vocabulary.values())
        decoders = list(_nodes(json.loads(self.json)["decoder"]))
        self._bytes_of = [b""] * self.vocab_size  # a number without a token has no text
        for token, i in vocabulary.items():
            self._bytes_of[i] = _own_bytes(token, decoders)
        ids = self._ids(_SAMPLE)
        theirs = self._fast.decode(ids, skip_special_tokens=False)
        if self.decode(ids) != theirs:
            raise DataError(
                f"{origin} does not decode token by token ({self.decode(ids)!r} and {theirs!r}); "
                f"use a byte-level one"
            )

    def state(self) -> dict[str, Any]:
        """What `from_state` needs, as plain JSON."""
        return {"name": self.name, "json": self.json}

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, which decode to it again.

        Raises DataError where they would not: a character without a token, a normalizer that
        takes capitals or accents away. Losses would be those of another text, and its bytes too.
        """
        try:
            ids = self._ids(text)
        except Exception as error:  # of Rust
            raise DataError(
                f"data.tokenizer=hf has no tokens for {text[:60]!r}: {error!s:.200}"
            ) from None
        given, found = text.encode(), b"".join([self._bytes_of[i] for i in ids])
        if found != given:
            differ = (
                i for i, pair in enumerate(zip(given, found, strict=False)) if len({*pair}) > 1
            )
            at = max(0, next(differ, 0) - 20)
            shown = [part[at : at + 40].decode(errors="replace") for part in (given, found)]
            raise DataError(
                f"data.tokenizer=hf does not keep the text: {shown[0]!r} becomes {shown[1]!r}, and "
                f"its losses would be those of another text; write the text so that it stays, or "
                f"use a tokenizer that keeps it, such as a byte-level one"
            )
        return np.array(ids, dtype=self.dtype)

    def _ids(self, text: str) -> list[int]:
        return self._fast.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self._bytes_of[token]

    def cut(self, text: str) -> int | None:
        """Behind a word, where the tokens on both sides stay as they are in one piece."""
        for found, _ in zip(WORD_ENDS.finditer(text, _BESIDE), range(_PLACES), strict=False):
            place = found.end()
            left, right = text[place - _BESIDE : place], text[place : place + _BESIDE]
            parts = np.concatenate((self.encode(left), self.encode(right)))
            if np.array_equal(self.encode(left + right), parts):
                return place
        return None


def library(what: str) -> None:
    """ConfigError where `tokenizers`, which `what` needs, is not installed."""
    try:
        importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError(
            f"{what} needs a package that is not here ({error}): pip install 'phasegpt[hf]'"
        ) from error


def _to_the_letter(text: str, origin: str) -> str:
    """tokenizer.json without what is put around a text, limits its length or is drawn."""
    try:
        tree = json.loads(text)
        tree |= {"truncation": None, "padding": None, "post_processor": None}
        tree["model"].pop("dropout", None)
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            tree[part] = _bare(tree.get(part), part)
        kinds = [
            node["type"] + " by Regex" * ("Regex" in node.get("pattern", ()))
            for node in _nodes(tree["decoder"])
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{origin} is no tokenizer.json: {error!s:.200}") from None
    if not kinds or not _DECODERS.issuperset(kinds):
        raise DataError(
            f"{origin} has the decoder {', '.join(kinds) or 'null'}, which gives a token no text "
            f"of its own; use a tokenizer of bytes, characters or sentence pieces"
        )
    return json.dumps(tree, ensure_ascii=False)


def _bare(node: Any, part: str) -> Any:
    """A part of tokenizer.json without what it adds in front of a text, or takes off there."""
    if node is None or (node["type"], part) in {("Prepend", "normalizer"), ("Strip", "decoder")}:
        return None
    for inner in ("normalizers", "pretokenizers", "decoders"):
        if inner in node:
            kept = (_bare(child, part) for child in node[inner])
            node[inner] = [child for child in kept if child is not None]
    if node["type"] == "ByteLevel":
        node["add_prefix_space"] = False
    if node["type"] == "Metaspace":
        node.pop("add_prefix_space", None)
        node["prepend_scheme"] = "never"
    return node


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """A decoder and those inside it."""
    if node is not None:
        yield node
        for child in node.get("decoders", ()):
            yield from _nodes(child)


def _own_bytes(token: str, decoders: list[dict[str, Any]]) -> bytes:
    """The bytes that a token stands for."""
    for node in decoders:
        if node["type"] == "Metaspace":
            token = token.replace(node.get("replacement", "\u2581"), " ")
        elif node["type"] == "Replace":
            token = token.replace(node["pattern"]["String"], node["content"])
        elif node["type"] == "ByteFallback" and len(token) == 6 and token[:3] == "<0x":
            return bytes([int(token[3:5], 16)])
        elif node["type"] == "ByteLevel":
            try:
                return plain_bytes(token)
            except KeyError:  # an added token, which is written as it is
                break
    return token.encode()
