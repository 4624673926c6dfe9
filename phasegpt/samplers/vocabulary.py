"""Processors that allow some tokens only: by id, by their text, or by the word they would make.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import _values
from phasegpt.samplers.processor import of_logits, of_tokens

# Letters of any script and the apostrophe; U+FFFD, a part of a character, may be one of a letter.
_WORDS = re.compile(r"(?:[^\W\d_]|['\ufffd])+")
_OPEN = re.compile(_WORDS.pattern + r"\Z")
_MASKS = 1024  # of unfinished words, kept by AllowedWords


def token_texts(tokenizer: Any) -> list[str]:
    """The text of every token by id; bytes that are no whole character become U+FFFD.

    `tokenizer` is ours or Hugging Face's. There a token's text is what it adds behind a letter,
    since some drop the space before a word that begins a text; ids without a token have none, and
    special tokens count by their text. (Not for byte pairs that mark the end of a word, as the
    first GPT's: a part of a word would get a space.)
    """
    _check(tokenizer, "encode")
    if not hasattr(tokenizer, "token_bytes"):
        before = tokenizer.encode("a", add_special_tokens=False)
        pairs = [before, *([*before, i] for i in range(token_count(tokenizer)))]
        first, *texts = tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)
        return [text[len(first) :] for text in texts]
    return [
        tokenizer.token_bytes(i).decode("utf-8", errors="replace")
        for i in range(tokenizer.vocab_size)
    ]


def _check(tokenizer: Any, *parts: str) -> None:
    """ConfigError for what is no tokenizer, or lacks one of the `parts`."""
    size = "get_vocab" if hasattr(tokenizer, "get_vocab") else "vocab_size"
    what = "one of ours, or one of Hugging Face's"
    _values.having("tokenizer", tokenizer, (*parts, size), what)


def token_count(tokenizer: Any) -> int:
    """One more than the largest id with a text; `tokenizer` is ours or Hugging Face's."""
    _check(tokenizer)
    if hasattr(tokenizer, "get_vocab"):
        return 1 + max(tokenizer.get_vocab().values())
    return tokenizer.vocab_size


class Vocabulary:
    """Remove ids from `size` on: those of a padded model.vocab_size that have no text.

    Raises ConfigError.
    """

    def __init__(self, size: int) -> None:
        self.size = _values.whole("vocabulary size", size, 1)

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]."""
        if logits.shape[-1] <= self.size:
            return logits
        return logits.masked_fill(
            torch.arange(logits.shape[-1], device=logits.device) >= self.size, -math.inf
        )


class AllowedTokens:
    """Keep the tokens with these ids, for instance those seen in training, and remove the others.

    Raises ConfigError if there is none, or something else than ids.
    """

    def __init__(self, allowed: Iterable[int] | Tensor) -> None:
        found = sorted(set(_values.token_ids("allowed tokens", allowed)))
        if not found:
            raise ConfigError("no token is allowed: no id is given; give at least one")
        self.allowed = torch.tensor(found, dtype=torch.int64)

    @classmethod
    def ascii(cls, texts: Sequence[str]) -> Self:
        """Printable ASCII, tabs and line breaks; `texts` by id (see token_texts)."""
        return cls.matching(texts, r"[ -~\t\n\r]+")

    @classmethod
    def matching(cls, texts: Sequence[str], pattern: str) -> Self:
        """Tokens whose whole text matches a regular expression; ConfigError if none does."""
        try:
            allowed = re.compile(pattern).fullmatch
        except (re.error, TypeError, RecursionError, OverflowError) as error:
            raise ConfigError(f"{pattern!r} is no regular expression: {error}") from error
        found = [i for i, text in enumerate(_texts(texts)) if allowed(text)]
        if not found:
            raise ConfigError(f"no token matches {pattern!r} as a whole; widen the pattern")
        return cls(found)

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]; ids beyond V are ignored."""
        keep = self.allowed[self.allowed < logits.shape[-1]].to(logits.device)
        removed = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        return logits.masked_fill(removed.index_fill(0, keep, False), -math.inf)


class AllowedWords:
    """Keep the tokens that spell words of a list, whatever else stands between them.

    A word is a run of letters and apostrophes; upper and lower case are the same. A token is kept
    if every word that it ends is in the list and the word that it leaves open can become one.
    What the prompt left open and cannot become a word may only be ended. `texts` by id (see
    token_texts); tokens that are a part of a character are removed.

    What the tokens cannot spell as one word, such as "well-known", is left out, with a warning.
    Raises ConfigError where no word is left.
    """

    def __init__(self, words: Collection[str], texts: Sequence[str]) -> None:
        given = {word.strip().lower() for word in _texts(words, "allowed words")} - {""}
        if not given:
            raise ConfigError("the list of allowed words is empty; give at least one word")
        self.texts = _texts(texts)
        found = _beginnings(given, self.texts)
        self.words, self.beginnings = set(found), {""}.union(*found.values())
        if lost := sorted(given - self.words):
            which = f"{len(lost)} of {len(given)} allowed words, such as {lost[0]!r:.80},"
            why = (
                "cannot be spelled and ended by these tokens as one run of letters and apostrophes"
            )
            if not found:
                raise ConfigError(f"{which} {why}, so none is left; give others")
            warnings.warn(f"{which} {why}; they are left out", stacklevel=2)
        self._removed = functools.lru_cache(_MASKS)(self._removed_after)

    @of_tokens
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """ids[B,T], logits[B,V] -> logits[B,V]; ids without a text are removed."""
        assert ids is not None
        removed_BV = torch.ones(logits.shape, dtype=torch.bool)
        for row, removed_V in zip(ids.tolist(), removed_BV, strict=True):
            mask = self._removed(self._open_word(row))
            removed_V[: len(mask)] = mask[: len(removed_V)]
        return logits.masked_fill(removed_BV.to(logits.device), -math.inf)

    def _open_word(self, row: list[int]) -> str:
        """The letters at the end of the text so far."""
        word = ""
        for token in reversed(row):
            text = self.texts[token] if token < len(self.texts) else " "
            letters = _ending(text)
            word = letters + word
            if len(letters) < len(text):
                break
        return word.lower()

    def _removed_after(self, open_word: str) -> Tensor:
        """The mask over the tokens with a text."""
        return torch.tensor([not self._fits(open_word, text.lower()) for text in self.texts])

    def _fits(self, open_word: str, text: str) -> bool:
        if open_word not in self.beginnings:
            if not text or _WORDS.match(text):
                return False
            open_word = ""
        text = open_word + text
        rest = _ending(text)
        ended = _WORDS.findall(text[: len(text) - len(rest)])
        return rest in self.beginnings and all(word in self.words for word in ended)


def _beginnings(words: Collection[str], texts: Sequence[str]) -> dict[str, set[str]]:
    """Of each word that the tokens can spell and end: its beginnings that they can complete."""
    texts = [text.lower() for text in texts if "\ufffd" not in text]
    inside = {text for text in texts if _WORDS.fullmatch(text)}
    opened = {_ending(text) for text in texts}
    ends = any(text and not _WORDS.search(text) for text in texts)
    found = {}
    for word in words:
        good = {len(word)} if ends else set()
        for n in reversed(range(len(word))):
            if any(word[n:m] in inside for m in good):
                good.add(n)
        if any(word[:n] in opened for n in good):
            found[word] = {word[:n] for n in good}
    return found


def _texts(value: Any, name: str = "texts of the tokens") -> list[str]:
    """A collection of strings as a list; ConfigError."""
    many = isinstance(value, Iterable) and not isinstance(value, str | bytes | Tensor)
    found = list(value) if many else []
    if not many or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{name} must be a list of strings, not {type(value).__name__} of others")
    return found


def _ending(text: str) -> str:
    """The letters that end a text."""
    found = _OPEN.search(text)
    return found.group() if found else ""
