"""Tokenizers: characters, bytes and GPT-2's byte pairs, and how one is made from its state.

A tokenizer is remade from its `state()`, which is plain JSON and travels with every checkpoint.
`encode(text)` gives uint16 (uint32 for vocabularies above 65,536), `decode(ids)` gives text.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phasegpt.core.errors import DataError
from phasegpt.core.files import expand, read_json
from phasegpt.data._tokenizer import Tokenizer, before_space, character_of_byte, plain_bytes
from phasegpt.data.downloads import local_file, online, where_to_put
from phasegpt.data.json_tokenizers import JsonTokenizer, library

GPT2_VOCAB_SIZE = 50257
#: Our tokenizer's state in a folder whose tokenizer.json is in the form of transformers.
STATE_BESIDE = "phasegpt_tokenizer.json"
_GPT2_FILE = "gpt2-bpe/encoder.json"
_GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json"
# The split of the GPT-2 release, in the form that tiktoken runs fastest.
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class CharTokenizer(Tokenizer):
    """One token per character of `alphabet`, in the alphabet's order."""

    name = "char"

    def __init__(self, alphabet: str) -> None:
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise DataError(
                f"alphabet={alphabet!r:.200} must hold each character once, and at least one"
            )
        self.alphabet = alphabet
        self.vocab_size = len(alphabet)
        codes = _code_points(alphabet)
        self._ids = np.full(int(codes.max()) + 1, -1, dtype=np.int32)
        self._ids[codes] = np.arange(len(alphabet))

    def state(self) -> dict[str, Any]:
        """What `from_state` needs, as plain JSON."""
        return {"name": self.name, "alphabet": self.alphabet}

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`. Raises DataError for a character outside the alphabet."""
        codes = _code_points(text)
        known = codes < len(self._ids)
        ids = np.where(known, self._ids[np.where(known, codes, 0)], -1)
        if len(unknown := np.flatnonzero(ids < 0)):
            raise DataError(
                f"the character {text[unknown[0]]!r} (place {unknown[0]}) is not among the "
                f"{self.vocab_size} characters of the training corpus; use others, or train with "
                f"data.tokenizer=byte, gpt2 or bpe"
            )
        return ids.astype(self.dtype)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one character."""
        return self.alphabet[token].encode()


class ByteTokenizer(Tokenizer):
    """One token per byte of the text's UTF-8 form."""

    name = "byte"
    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`: its bytes. Raises DataError for a lone surrogate."""
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"text has no UTF-8 form at place {error.start}: {error}") from error
        return np.frombuffer(content, dtype=np.uint8).astype(self.dtype)

    def token_bytes(self, token: int) -> bytes:
        """The byte."""
        return bytes([token])


class Symbols(Tokenizer):
    """The tokens of a generated task: numbers, which no text has."""

    name = "symbols"

    def __init__(self, vocab_size: int) -> None:
        """Of 0..vocab_size-1."""
        self.vocab_size = vocab_size

    def state(self) -> dict[str, Any]:
        """What `from_state` needs, as plain JSON."""
        return {"name": self.name, "vocab_size": self.vocab_size}

    def encode(self, text: str) -> np.ndarray:
        """Raises DataError: there is no text."""
        raise DataError(
            "the model was trained on a generated task, whose tokens are numbers and not text; "
            "use phasegpt.evaluate, or give token ids to the model itself"
        )

    def token_bytes(self, token: int) -> bytes:
        """The number and a space."""
        return f"{token} ".encode()


class _BytePairs(Tokenizer):
    """Byte pairs under GPT-2's split of a text, by tiktoken; special tokens stay plain text."""

    _encoding: Any  # tiktoken's

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, as tiktoken's encode_ordinary gives them."""
        try:
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # half a surrogate pair, which tiktoken replaces here alone
            ids = self._encoding.encode_ordinary(text)
        return np.array(ids, dtype=self.dtype)

    def cut(self, text: str) -> int | None:
        """Behind a word: of GPT-2's split no part begins in a word and ends in a space."""
        return before_space(text)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self._encoding.decode_single_token_bytes(token)


class GPT2Tokenizer(_BytePairs):
    """GPT-2's byte-pair encoding.

    The ranks come from `gpt2-bpe/encoder.json` in the data folder, then from tiktoken's cache,
    then from the network. (GPT-2's `vocab.bpe` holds the same ranks and is not needed.) Raises
    DataError, naming the file, where none of them has it.
    """

    name = "gpt2"
    vocab_size = GPT2_VOCAB_SIZE

    def __init__(self) -> None:
        self._encoding = _gpt2_encoding()

    def state(self) -> dict[str, Any]:
        """What `from_state` needs, as plain JSON."""
        return {"name": self.name, "encoder_sha256": _GPT2_SHA256}


class BPETokenizer(_BytePairs):
    """Byte pairs of one's own, see train_byte_pairs; `tokens` in the order in which they merge.

    They are written as GPT-2's vocabulary writes bytes. Raises DataError for other ones.
    """

    name = "bpe"

    def __init__(self, tokens: Sequence[str]) -> None:
        import tiktoken

        try:
            ranks = {plain_bytes(token): rank for rank, token in enumerate(tokens)}
        except (KeyError, TypeError) as error:
            raise DataError(f"a token of byte pairs holds {error!s:.80}") from error
        if len(ranks) < len(tokens) or not all(bytes([b]) in ranks for b in range(256)):
            raise DataError(
                f"{len(tokens)} tokens are no byte pairs: each must be there once, and all bytes"
            )
        self.tokens, self.vocab_size = list(tokens), len(tokens)
        self._encoding = tiktoken.Encoding(
            "bpe", pat_str=_GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def state(self) -> dict[str, Any]:
        """What `from_state` needs, as plain JSON."""
        return {"name": self.name, "tokens": self.tokens}


def train_byte_pairs(pieces: Iterable[str], vocab_size: int) -> BPETokenizer:
    """The 256 bytes, and the most frequent pairs of a text up to `vocab_size`, by `tokenizers`.

    Words are split as GPT-2 splits them, no pair is made of what occurs once, and there are no
    special tokens. The same text gives the same tokens. Raises DataError for too few pairs.
    """
    library("data.tokenizer=bpe")
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = [character_of_byte(byte) for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(pieces, trainer)
    found = fast.get_vocab()
    if len(found) < vocab_size:
        raise DataError(
            f"data.vocab_size={vocab_size} is too large for the train split: it has pairs for "
            f"{len(found)} tokens; lower it, or use more text"
        )
    pairs = sorted(found.keys() - alphabet, key=found.__getitem__)
    return BPETokenizer([*alphabet, *pairs])


class StreamDecoder:
    """Text as tokens arrive: `push` holds back bytes until they are whole characters.

    The pieces and the final `flush()` join to `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes, perhaps none."""
        return self._decoder.decode(self._tokenizer._bytes(token))

    def flush(self) -> str:
        """What was held back, as U+FFFD; the decoder starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def build(name: str, *, alphabet: str | None = None) -> Tokenizer:
    """The tokenizer `name` (char, byte, gpt2); char needs its `alphabet`."""
    return from_state({"name": name, **({"alphabet": alphabet} if name == "char" else {})})


def from_state(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer that gave `state`. Raises DataError for one that is not ours."""
    if not isinstance(state, dict):
        raise DataError(f"tokenizer state {state!r:.200} must be a mapping with a name")
    name = state.get("name")
    if name == "char" and isinstance(state.get("alphabet"), str):
        return CharTokenizer(state["alphabet"])
    if name == "byte":
        return ByteTokenizer()
    if name == "gpt2":
        return GPT2Tokenizer()
    if name == "bpe" and isinstance(state.get("tokens"), list):
        return BPETokenizer(state["tokens"])
    if name == "symbols" and type(state.get("vocab_size")) is int:
        return Symbols(state["vocab_size"])
    if name == "hf" and isinstance(state.get("json"), str):
        return JsonTokenizer(state["json"])
    raise DataError(
        f"tokenizer state {state!r:.200} is unknown; name must be char (with an alphabet), byte, "
        f"gpt2, bpe (with tokens), symbols (with vocab_size) or hf (with json)"
    )


def from_file(path: str) -> Tokenizer:
    """The tokenizer of `data.tokenizer_path`: a tokenizer.json, or a folder that holds one.

    In an export of ours it is the model's own, of whatever kind. Raises DataError.
    """
    file = expand(path)
    if file.is_dir():
        beside = file / STATE_BESIDE
        file = beside if beside.is_file() else file / "tokenizer.json"
    found = read_json(file)
    if "model" in found:
        return JsonTokenizer(json.dumps(found), str(file))
    try:
        return from_state(found)
    except DataError as error:
        raise DataError(f"{file} is no tokenizer.json: {error}") from error


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


@functools.cache
def _gpt2_encoding() -> Any:
    import tiktoken

    content = local_file(_GPT2_FILE, _GPT2_SHA256) or _tiktoken_cache()
    if content is None:
        if not online(_GPT2_URL):
            raise DataError(
                f"the GPT-2 vocabulary is not here and the network does not answer; "
                f"{where_to_put({_GPT2_FILE: _GPT2_SHA256})}"
            )
        try:
            return tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:
            raise DataError(f"cannot download {_GPT2_URL}: {error}") from error
    ranks = {plain_bytes(word): rank for word, rank in json.loads(content).items()}
    special = {"<|endoftext|>": ranks.pop(b"<|endoftext|>")}
    return tiktoken.Encoding(
        "gpt2", pat_str=_GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def _tiktoken_cache() -> bytes | None:
    """The vocabulary from tiktoken's own cache, only read: tiktoken deletes what does not match."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = os.path.join(tempfile.gettempdir(), "data-gym-cache") if folder is None else folder
    path = Path(folder, hashlib.sha1(_GPT2_URL.encode()).hexdigest())
    try:
        content = path.read_bytes() if folder and path.is_file() else b""
    except OSError:  # another user's, in a temporary folder that all share
        return None
    return content if hashlib.sha256(content).hexdigest() == _GPT2_SHA256 else None
