"""When a row ends.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError
from phasegpt.samplers import _values


@dataclass(frozen=True, eq=False)
class Stop:
    """Which rows end with the token they have just got, and what they get from there on.

    ids: tokens that end a row; one, or any collection of them. strings: texts that end a row once
    they are in its new text, as `tokenizer` decodes it. criteria: called as Hugging Face's,
    (ids[B,T], None) -> bool[B]. pad_id: what ended rows get while others go on; None: their last
    token again. Raises ConfigError.
    """

    ids: int | Collection[int] | Tensor = ()
    strings: str | Sequence[str] = ()
    tokenizer: Any = None
    criteria: Sequence[Callable[[Tensor, None], Any]] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        """Check, and keep sets and tuples."""
        strings = (self.strings,) if isinstance(self.strings, str) else self.strings
        if not isinstance(strings, Collection) or not all(isinstance(s, str) for s in strings):
            raise ConfigError(f"stop strings={strings!r} must be a string, or a list of strings")
        if "" in strings:
            raise ConfigError(
                "stop strings hold an empty string, which every text contains; leave it out"
            )
        if strings and not callable(getattr(self.tokenizer, "decode", None)):
            raise ConfigError(
                f"stop strings need a tokenizer to read the new tokens, and tokenizer="
                f"{self.tokenizer!r} cannot decode; pass tokenizer="
            )
        if self.pad_id is not None:
            _values.whole("pad_id", self.pad_id, 0, ", or None to repeat a row's last token")
        object.__setattr__(self, "ids", frozenset(_values.token_ids("stop ids", self.ids)))
        object.__setattr__(self, "strings", tuple(strings))
        criteria = _values.callables("stop criteria", self.criteria)
        object.__setattr__(self, "criteria", tuple(criteria))

    def check(self, vocab_size: int) -> None:
        """ConfigError for a token that the model does not have."""
        assert isinstance(self.ids, frozenset)
        for name, ids in (("stop id", self.ids), ("pad_id", {self.pad_id} - {None})):
            if beyond := sorted(i for i in ids if i is not None and i >= vocab_size):
                raise ConfigError(
                    f"{name} {beyond[0]} is outside the model's vocabulary 0..{vocab_size - 1}"
                )

    def __call__(self, ids_BT: Tensor, prompt: int) -> list[bool]:
        """Of rows of ids, the first `prompt` of which were given."""
        assert isinstance(self.ids, frozenset)
        ends = [token in self.ids for token in ids_BT[:, -1].tolist()]
        if self.strings:
            # Enough tokens for the longest string, were every token one byte of UTF-8.
            tail = max(prompt, ids_BT.shape[1] - 4 * max(map(len, self.strings)))
            texts = [self.tokenizer.decode(row) for row in ids_BT[:, tail:].tolist()]
            if not all(isinstance(text, str) for text in texts):
                raise ConfigError(
                    f"tokenizer={arguments.seen(self.tokenizer)} decodes tokens to "
                    f"{arguments.seen(texts[0])}, which is no text"
                )
            found = [any(s in text for s in self.strings) for text in texts]
            ends = [a or b for a, b in zip(ends, found, strict=True)]
        for criterion in self.criteria:
            said = criterion(ids_BT, None)
            try:
                flags = torch.as_tensor(said).cpu()
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"a stop criterion gave {arguments.seen(said)}; it must be true or false of "
                    f"each of {len(ends)} rows"
                ) from error
            if flags.shape not in ((), (len(ends),)):
                raise ConfigError(
                    f"a stop criterion gave shape {list(flags.shape)}; it must say of each of "
                    f"{len(ends)} rows whether it ends"
                )
            ends = [a or bool(b) for a, b in zip(ends, flags.expand(len(ends)), strict=True)]
        return ends
