"""Studies of temperature: what samples are measured with, their records, tables and picture.

A study is a folder with arms/ARM-seedN.json; a record has `arm`, `seed`, numbers by name, and the
beginning of a text. Shapes: B batch, T time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phasegpt.analysis.statistics import interval
from phasegpt.analysis.texts import NGramJudge, distinct, real_word_rate, repetition, words
from phasegpt.core import figures
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import csv_text, read_json, write_atomic
from phasegpt.data.corpus import Corpus
from phasegpt.training.run_folder import environment

ACCEPTED = 0.95  # the share of human texts that the judge accepts
_PROMPT = 16  # tokens
_KEPT = 4  # one text in four is kept, those that the judge likes best
_SHOWN = 160  # characters of the first text that a record keeps


class Reader:
    """Prompts with their human continuations, and a judge that has read the training split.

    `rows` stretches spread evenly over the validation split, each a prompt of 16 tokens and
    `length` more. The judge (see NGramJudge) knows the training split alone; it accepts a text
    whose nats per character are at most the 95% quantile of the human continuations. Raises
    ConfigError where the split is too short.
    """

    def __init__(self, corpus: Corpus, *, rows: int, length: int) -> None:
        val, self.tokenizer = corpus.split("val"), corpus.tokenizer
        last = len(val) - _PROMPT - length
        if last < 0 or rows < 1:
            raise ConfigError(
                f"rows={rows}, length={length}: the validation split has {len(val)} tokens and a "
                f"row needs {_PROMPT} + {length}; take fewer"
            )
        starts = np.linspace(0, last, rows).astype(np.int64)
        windows_BT = np.asarray(val)[starts[:, None] + np.arange(_PROMPT + length)]
        self.human_BT = torch.from_numpy(windows_BT.astype(np.int64))
        self.prompts_BT = self.human_BT[:, :_PROMPT]
        train = self.tokenizer.decode(corpus.split("train"))
        self.judge, self.vocabulary = NGramJudge(train), set(words(train))
        self.limit = float(np.quantile(self.judged(self.human_BT), ACCEPTED))

    def texts(self, ids_BT: Tensor) -> list[str]:
        """Rows without their prompts, as text."""
        return [self.tokenizer.decode(row) for row in ids_BT[:, _PROMPT:].tolist()]

    def judged(self, ids_BT: Tensor) -> list[float]:
        """Nats per character of each row after its prompt, under the judge."""
        prompts = [self.tokenizer.decode(row) for row in ids_BT[:, :_PROMPT].tolist()]
        pairs = zip(self.texts(ids_BT), prompts, strict=True)
        return [self.judge.nats_per_char(text, prompt) for text, prompt in pairs]

    def quality(self, ids_BT: Tensor) -> dict[str, Any]:
        """Numbers of rows [B,T] that begin with prompts of the same length, and a piece of text.

        `accepted` is the share of texts that the judge accepts; kept_* are of the quarter of them
        that it likes best.
        """
        texts, nats = self.texts(ids_BT), np.array(self.judged(ids_BT))
        best = nats.argsort(kind="stable")[: max(1, len(texts) // _KEPT)]
        return {
            "accepted": float((nats <= self.limit).mean()),
            **self._counted(texts, nats, ""),
            **self._counted([texts[i] for i in best], nats[best], "kept_"),
            "text": texts[0][:_SHOWN],
        }

    def _counted(self, texts: list[str], nats: np.ndarray, prefix: str) -> dict[str, float]:
        found = {
            "judge_nats": nats.mean(),
            "real_words": real_word_rate(texts, self.vocabulary),
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
            "repeated_16": np.mean([repetition(text, 16, "character") for text in texts]),
        }
        return {f"{prefix}{name}": float(value) for name, value in found.items()}


def once(
    study: Path, arm: str, seed: int, settings: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The record of an arm and seed: read where it is there, else made and written.

    Raises ConfigError where it was made with other settings, DataError where it is damaged.
    """
    path = study / "arms" / f"{arm}-seed{seed}.json"
    if path.is_file():
        record = read_json(path, "settings")
        if record["settings"] != settings:
            raise ConfigError(
                f"{path} was made with {record['settings']}, not {settings}; use another folder"
            )
        return record
    record = {"arm": arm, "seed": seed, "settings": settings, **make()}
    record["environment"] = environment()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return record


def write_table(study: Path) -> list[dict[str, Any]]:
    """study/table.csv: mean, sd and 95% interval over seeds of every number by arm.

    An arm and number is None where a seed has none of it. Returns the rows, sorted by arm.
    """
    rows: list[dict[str, Any]] = []
    for arm, records in _records(study).items():
        row: dict[str, Any] = {"arm": arm, "seeds": len(records)}
        for name in _numbers(records):
            values = [record[name] for record in records]
            found = (None,) * 4 if None in values else interval(values)
            row |= dict(zip((name, *(f"{name}_{e}" for e in _ENDS)), found, strict=True))
        rows.append(row)
    empty = dict.fromkeys(name for row in rows for name in row)
    text = csv_text(list(empty), [empty | row for row in rows], "{:.5g}")
    write_atomic(study / "table.csv", text.encode())
    return rows


_ENDS = ("sd", "low", "high")


@figures.house()
def draw_curve(study: Path, rows: Sequence[dict[str, Any]]) -> Path | None:
    """study/curve.png: quality by temperature, of the arms called T=number; None without any."""
    by_arm = {row["arm"]: row for row in rows}
    T = {arm: float(arm[2:]) for arm in by_arm if re.fullmatch(r"T=[^ ]+", arm)}
    arms = sorted(T, key=lambda arm: (T[arm] < 0, T[arm]))  # falling 1 / T
    if not arms:
        return None
    figure = figures.new(height=5.6, width=8)
    panels = figure.subplots(2, 1, sharex=True)
    shown = (
        {"judge_nats": "judge", "nll_at_one": "the model itself"},
        {"real_words": "real words", "distinct_2": "distinct 2-grams\nof words",
         "accepted": "accepted\nby the judge"},
    )  # fmt: skip
    for axes, names in zip(panels, shown, strict=True):
        for (name, label), colour in zip(names.items(), figures.PLAIN, strict=False):
            y = [by_arm[arm][name] for arm in arms]
            bars = [(by_arm[arm][f"{name}_high"] or v) - v for arm, v in zip(arms, y, strict=True)]
            axes.errorbar(range(len(arms)), y, bars, fmt="none", ecolor=colour, capsize=2, lw=1)
            axes.plot(range(len(arms)), y, "o-", color=colour, label=label)
    above, below = panels
    if "human" in by_arm:
        figures.level(above, by_arm["human"]["judge_nats"], "human text, judge")
    above.set(yscale="log", ylabel="nats per character or token")
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("")
    below.set(ylim=(-0.05, 1.05), ylabel="share")  # an interval over three seeds may leave it
    below.set_xticks(range(len(arms)), [arm.removeprefix("T=") for arm in arms], rotation=90)
    below.set_xlabel("temperature, in the order of 1 / T; bars: 95% interval over seeds")
    figures.label_ends(*panels)
    return figures.save(figure, study / "curve.png")[0]


def _records(study: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of study/arms by arm, sorted by seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in (study / "arms").glob("*.json"):
        record = read_json(path, "arm", "seed")
        found.setdefault(record["arm"], []).append(record)
    return {arm: sorted(found[arm], key=lambda r: r["seed"]) for arm in sorted(found)}


def _numbers(records: Sequence[dict[str, Any]]) -> list[str]:
    """Names of what is a number in some record, in the first one's order."""
    skip = {"seed", "arm", "settings", "text", "environment"}
    return [
        name
        for name in records[0]
        if name not in skip and any(isinstance(r[name], (int, float)) for r in records)
    ]
