"""The `data` group of a run's configuration."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import REQUIRED, Section, option
from phasegpt.data.rows import kind

#: The module of every task.
TASKS = {
    "mqar": "recall_tasks",
    **dict.fromkeys(("recall", "noisy_recall", "fuzzy_recall", "memorization"), "mad_tasks"),
    **dict.fromkeys(("selective_copy", "copying"), "copying_tasks"),
    **dict.fromkeys(("induction", "periodic"), "pattern_tasks"),
    **dict.fromkeys(("parity", "even_pairs", "cycle_navigation"), "formal_tasks"),
    **dict.fromkeys(("modular_arithmetic", "state_s2", "state_s3"), "formal_tasks"),
}


@dataclass(frozen=True, kw_only=True)
class DataSection(Section):
    """The `data` group: a text (DataConfig), or a generated task (phasegpt.data.tasks).

    `parse` gives the section of what data.corpus names.
    """

    section: ClassVar[str] = "data"
    corpus: str = option(REQUIRED, "the text, or the task")
    batch_size: int = option(REQUIRED, "sequences in a batch of one process", ge=1, le=1_000_000)
    num_workers: int = option(0, "processes that load batches; 0: none", ge=0, le=1024)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Any:
        """From the group's keys; ConfigError."""
        if cls is not DataSection:
            return super().parse(values)
        name = values.get("corpus")
        task = isinstance(name, str) and name in TASKS
        return (task_class(str(name)).Config if task else DataConfig).parse(values)


def task_class(name: str) -> Any:
    """The phasegpt.data.tasks.Task of that name, whose module is loaded for it; ConfigError."""
    if name not in TASKS:
        raise ConfigError(f"data={name} is no task; choose from: {', '.join(sorted(TASKS))}")
    module = importlib.import_module(f"phasegpt.data.{TASKS[name]}")
    return next(
        found
        for found in vars(module).values()
        if getattr(found, "__dict__", {}).get("name") == name
    )


@dataclass(frozen=True, kw_only=True)
class TaskConfig(DataSection, ABC):
    """What every task has."""

    examples: int | None = option(
        None, "training examples, in a new order every epoch; null: new ones without end", ge=1
    )
    val_examples: int = option(
        1000, "examples of validation, and of test, of each load", ge=1, le=10_000_000
    )

    @property
    @abstractmethod
    def trained(self) -> int:
        """The largest load that is trained on."""

    @property
    def loads(self) -> tuple[int, ...]:
        """Loads that are validated: what an accuracy is reported by, such as a length."""
        return (self.trained,)

    @abstractmethod
    def time(self, load: int) -> int:
        """T, tokens of an example."""

    def loads_with(self, extrapolates: bool) -> tuple[int, ...]:
        """Those of a model: without, nothing was trained for positions beyond the longest."""
        longest = self.time(self.trained)
        return tuple(n for n in self.loads if extrapolates or self.time(n) <= longest)


#: Texts for which data.path is set.
WITH_PATH = ("text", "enwik8", "tinystories")


@dataclass(frozen=True, kw_only=True)
class DataConfig(DataSection):
    """A text: which, how it is cut into tokens, and the batch."""

    corpus: Literal[
        "shakespeare", "wikitext2", "enwik8", "tinystories", "text", "hub", "synthetic"
    ] = option(REQUIRED, "the text")
    tokenizer: Literal["char", "byte", "gpt2", "bpe", "hf"] = option(
        "char", "what a token is; bpe: trained on the text; hf: of a file"
    )
    tokenizer_path: str | None = option(
        None, "hf only: a tokenizer.json of Hugging Face's tokenizers, or its folder"
    )
    vocab_size: int | None = option(
        None, "bpe only: tokens, the 256 bytes among them", ge=256, le=2**24
    )
    variant: Literal["tokens", "raw"] | None = option(
        None, "wikitext2 only: words with <unk>, or raw; null: tokens"
    )
    path: str | None = option(
        None,
        "text: a file, folder or glob: .txt, .jsonl, .json, .parquet, .gz; enwik8, tinystories: "
        "the file, or the folder that holds it",
    )
    name: str | None = option(None, "hub only: OWNER/DATASET, or a folder")
    subset: str | None = option(None, "hub only: the configuration of the dataset")
    text_column: str = option("text", "hub, JSON and Parquet: the column that holds the text")
    documents: bool = option(
        False, "text and hub: true: a document is read, attended to and scored by itself"
    )
    val_fraction: float = option(
        0.1,
        "text: last share, for validation; hub without such a split: share of documents, spread",
        gt=0,
        lt=1,
    )
    characters: int = option(
        3_000_000, "synthetic only: size of the train split", ge=10_000, le=10_000_000_000
    )
    cache_dir: str | None = option(
        None, "folder of token caches; null: $XDG_CACHE_HOME/phasegpt or ~/.cache/phasegpt"
    )

    def __post_init__(self) -> None:
        """Also check that the tokenizer has what it needs."""
        super().__post_init__()
        for name, key in {"hf": "tokenizer_path", "bpe": "vocab_size"}.items():
            if self.tokenizer == name and getattr(self, key) is None:
                example = "tokenizer.json" if name == "hf" else "4096"
                raise ConfigError(f"data.tokenizer={name} needs data.{key}, as in {key}={example}")

    def check_idle(self) -> None:
        """See Section.check_idle; phasegpt.data.corpora.resolve refuses the other keys."""
        self.refuse_idle(self.corpus in ("text", "hub"), "corpus", "text_column")
        plain = self.corpus == "text" and kind(Path(self.path or "")) == ".txt"
        self.refuse_idle(not plain, "for plain text, which has no columns", "text_column")
        self.refuse_idle(self.corpus in ("text", "hub"), "corpus", "val_fraction", "documents")
        self.refuse_idle(self.corpus == "synthetic", "corpus", "characters")
        self.refuse_idle(self.tokenizer == "hf", "tokenizer", "tokenizer_path")
        self.refuse_idle(self.tokenizer == "bpe", "tokenizer", "vocab_size")
