"""The `data` group of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from phasegpt.core.sections import Section, number


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The `data` group: which text, how it is cut into tokens, and the batch."""

    section: ClassVar[str] = "data"
    corpus: Literal["shakespeare", "wikitext2", "text", "hub", "synthetic"]
    tokenizer: Literal["char", "byte", "gpt2"] = "char"
    variant: Literal["tokens", "raw"] | None = None  # wikitext2 only
    path: str | None = None  # text only: a UTF-8 file or a glob
    name: str | None = None  # hub only: owner/dataset
    subset: str | None = None  # hub only: the dataset's configuration
    text_column: str = "text"  # hub only
    val_fraction: float = number(0.1, gt=0, lt=1)  # text, and hub data sets without one
    characters: int = number(3_000_000, ge=10_000)  # synthetic only: size of the train split
    batch_size: int = number(ge=1)
    num_workers: int = number(0, ge=0)
    cache_dir: str | None = None  # null: $XDG_CACHE_HOME/phasegpt or ~/.cache/phasegpt
