"""The model under test, ours or Hugging Face's, and the human text that belongs to it.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.core.eval_mode import inference
from phasegpt.data.corpus import Corpus
from phasegpt.model.gpt import GPT
from phasegpt.model.loaded import Loaded
from phasegpt.model.scoring import token_nats
from phasegpt.samplers import KEEP
from phasegpt.samplers.vocabulary import token_count

#: English openings for models of English. The Phase-Slip READMEs publish four; the last is ours.
PUBLISHED_PROMPTS = (
    "The ancient door creaked open",
    "Once upon a time",
    "The research paper described the finding that the",
    "The scientific method is",
    "When the train finally left the station",
)
_PROMPT_CHARACTERS = 48
_LOGITS = 1 << 26  # numbers that one forward pass of the scoring may return


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A causal language model whose call on ids[B,T] returns `.logits`, with its texts.

    `identity` is what a record says of it: where two records differ in it, they are not compared.
    """

    name: str
    identity: dict[str, Any]
    model: Any
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    vocab_size: int  # ids from here on have no text
    context: int
    train_text: str
    human_T: Tensor

    @classmethod
    def from_run(cls, loaded: Loaded, corpus: Corpus, name: str) -> Subject:
        """A checkpoint of ours with the corpus of its training."""
        if loaded.model.leaky:
            raise ConfigError(
                f"this model sees the future (attention={loaded.model.config.attention}): it "
                "cannot decode with a cache, and its likelihood of its own samples means nothing"
            )
        tokenizer = loaded.tokenizer
        return cls(
            name=name,
            identity={
                "sha256": loaded.sha256,
                "corpus": corpus.meta["corpus"],
                "text": corpus.fingerprint,
                "attention": loaded.model.config.attention,
            },
            model=loaded.model,
            encode=lambda text: tokenizer.encode(text).tolist(),
            decode=tokenizer.decode,
            vocab_size=tokenizer.vocab_size,
            context=loaded.model.config.block_size,
            train_text=tokenizer.decode(corpus.split("train").tolist()),
            human_T=torch.from_numpy(corpus.split("val").astype("int64")),
        )

    @classmethod
    def from_hugging_face(cls, model: Any, tokenizer: Any, text: str, name: str) -> Subject:
        """Any causal model of Hugging Face; nine tenths of `text` teach the judge."""
        cut = int(0.9 * len(text))
        ids = tokenizer(text[cut:], add_special_tokens=False)["input_ids"]
        return cls(
            name=name,
            identity={"model_type": model.config.model_type, "weights": _fingerprint(model)},
            model=model.eval(),
            encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            decode=lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False),
            vocab_size=token_count(tokenizer),
            context=model.config.max_position_embeddings,
            train_text=text[:cut],
            human_T=torch.tensor(ids),
        )

    @property
    def phases(self) -> bool:
        """Whether the model has oscillators."""
        return isinstance(self.model, GPT) and bool(self.model.oscillators)

    def openings(self, count: int) -> tuple[str, ...]:
        """Prompts of 48 characters from human text: beginnings of lines, evenly spaced."""
        text = self.decode(self.human_T.tolist())
        places = [i * len(text) // count for i in range(count)]
        starts = [text.find("\n", place) + 1 for place in places]
        return tuple(text[start : start + _PROMPT_CHARACTERS] for start in starts)

    def human(self, count: int, length: int) -> Tensor:
        """`count` stretches of human text that do not overlap, ids[count, length]."""
        if count * length > len(self.human_T):
            raise DataError(
                f"the human rows need {count} stretches of {length} tokens, and the text held "
                f"out has {len(self.human_T)}; use fewer rounds or tokens, or more text"
            )
        step = len(self.human_T) // count
        return torch.stack([self.human_T[i * step : i * step + length] for i in range(count)])

    def nats(self, ids_BT: Tensor, start: int) -> list[float]:
        """Nats per token of ids_BT[:, start:] under the model at temperature 1, of each row.

        The tokens are scored as ids, never as text that was tokenised again, and each is seen
        with the very context from which decode drew it, also where the window moved on.
        """
        B, T = ids_BT.shape
        rows = max(1, _LOGITS // (min(T, self.context) * self.vocab_size))
        total_B = torch.zeros(B, dtype=torch.float64)
        with inference(self.model):
            for first in range(0, B, rows):
                part_BT = ids_BT[first : first + rows]
                for begin, scored, end in _windows(start, T, self.context):
                    logits = self.model(part_BT[:, begin : end - 1]).logits[:, scored - begin - 1 :]
                    losses = token_nats(logits, part_BT[:, scored:end])
                    total_B[first : first + rows] += losses.double().sum(1)
        return (total_B / (T - start)).tolist()


def _windows(start: int, length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """How decode sees tokens start..length: (first seen, first predicted, end of the window)."""
    begin, scored = 0, start
    while scored < length:
        if scored - begin > context:
            begin = scored - max(1, int(KEEP * context))
        end = min(length, begin + context + 1)
        yield begin, scored, end
        scored = end


def _fingerprint(model: Any) -> str:
    """16 hex digits that stand for a model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
