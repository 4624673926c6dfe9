"""Our tokenizers in the form of Hugging Face's `tokenizers` (extra hf): the same ids and texts.

A character that has no token stays an error, as it is with ours. Text is taken to the letter:
what looks like a special token is text, and nothing is put in front or behind.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data._tokenizer import Tokenizer, character_of_byte
from phasegpt.data.json_tokenizers import JsonTokenizer, library
from phasegpt.data.tokenizers import CharTokenizer

_END = "<|endoftext|>"


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The text of tokenizer.json. ConfigError where there is no such form."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.json
    library("Hugging Face's form of a tokenizer")
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    if isinstance(tokenizer, CharTokenizer):
        ids = {character: i for i, character in enumerate(tokenizer.alphabet)}
        fast = Fast(models.WordLevel(ids, unk_token=""))  # none: a character without id fails
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        fast.decoder = decoders.Fuse()
        return fast.to_str()
    if tokenizer.name not in ("byte", "gpt2", "bpe"):
        raise ConfigError(
            f"the tokenizer {tokenizer.name} has no form in `tokenizers`; a run of a generated "
            f"task has no text: export it with format=phasegpt or format=torch"
        )
    merges = [] if tokenizer.name == "byte" else _merges(tokenizer)
    written = {_written(tokenizer.token_bytes(i)): i for i in range(tokenizer.vocab_size)}
    fast = Fast(models.BPE(written, merges))
    split = tokenizer.name != "byte"
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    fast.decoder = decoders.ByteLevel()
    return fast.to_str()


def prefix_token(tokenizer: Tokenizer) -> int:
    """The token before a text that nothing precedes: GPT-2's end of text, else that of a line.

    The tokenizer itself has no bos_token: a special token is left out of decoded texts, and the
    ends of lines must stay. Without one, the first token.
    """
    if tokenizer.name == "gpt2":
        return int(tokenizer.vocab_size - 1)
    if isinstance(tokenizer, CharTokenizer):
        return max(0, tokenizer.alphabet.find("\n"))
    try:
        return int(tokenizer.encode("\n")[0])
    except DataError:  # a tokenizer without ends of lines
        return 0


def tokenizer_config(tokenizer: Tokenizer, length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json; `length`: tokens that the model attends to.

    GPT-2's end of text is known as such (eos_token), and yet plain text where it is in a text.
    """
    end = {"eos_token": _END} if tokenizer.name == "gpt2" else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "padding_side": "left",
        **end,
    }


def _written(content: bytes) -> str:
    """Bytes as GPT-2 writes them in its vocabulary."""
    return "".join(map(character_of_byte, content))


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merges of byte pairs in their order, found again from the ranks.

    A token of rank r is made of the two parts that the merges below r leave of its bytes.
    """
    end = _END.encode() if tokenizer.name == "gpt2" else None
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    ranks = {token: rank for rank, token in enumerate(tokens) if token != end}
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            first, second = _parts(ranks, token, rank)
            merges.append((_written(first), _written(second)))
    return merges


def _parts(ranks: dict[bytes, int], token: bytes, below: int) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        at = min(range(len(found)), key=found.__getitem__)
        assert found[at] < below
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
