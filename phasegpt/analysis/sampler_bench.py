"""From an arm to its record: sample every row, score it, write it down.

Metrics of a sample concern the continuation alone, without its prompt: `diversity` (different words
/ words), `ppl` (exp of nats per token under the model itself at T = 1), `judge` (nats per character
under an n-gram model of the training text), `real_words` (share that the training text has), `rep4`
(repeated 4-grams of words), `rep16` (of 16 characters), `loops` (1 if it ends in a loop). Low
perplexity is not quality: greedy decoding has the lowest. The measure of each is the human row.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phasegpt.analysis import texts as count
from phasegpt.analysis.sampler_arms import ARMS, Arm, make
from phasegpt.analysis.sampler_subject import Subject
from phasegpt.analysis.texts import NGramJudge
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import read_json, write_atomic
from phasegpt.core.randomness import keyed_seed
from phasegpt.core.sections import Section, option
from phasegpt.model.scoring import perplexity
from phasegpt.samplers import KVShock, PhaseSlip, Vocabulary, decode
from phasegpt.training.run_folder import environment


@dataclass(frozen=True, kw_only=True)
class Protocol(Section):
    """What is the same for all arms: the published protocol by default."""

    prompts: tuple[str, ...]
    rounds: int = option(40, "samples of each prompt", ge=1)
    tokens: int = option(200, "tokens of a sample", ge=1)
    seed: int = option(1, "of the samples", ge=0)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Rows in the protocol's order, prompt by prompt, each with the ids before it."""

    before: list[Tensor]
    ids: list[Tensor]
    nats: list[float]
    cost: dict[str, Any]
    effect: dict[str, float]


class Bench:
    """A subject under a protocol, with what the metrics compare with."""

    def __init__(self, subject: Subject, protocol: Protocol) -> None:
        """Train the judge and set human text aside: half for the human row, half to compare."""
        self.subject, self.protocol = subject, protocol
        self.prompts = [torch.tensor(subject.encode(text)) for text in protocol.prompts]
        if not self.prompts or any(not len(prompt) for prompt in self.prompts):
            raise ConfigError("a protocol needs prompts, each of at least one token")
        rows = len(self.prompts) * protocol.rounds
        self._lead = max(len(prompt) for prompt in self.prompts)
        human = subject.human(2 * rows, self._lead + protocol.tokens)
        self._human_BT, reference_BT = human[::2], human[1::2]
        self._reference = [subject.decode(ids) for ids in reference_BT[:, self._lead :].tolist()]
        self._judge = NGramJudge(subject.train_text)
        self._vocabulary = frozenset(count.words(subject.train_text))

    def record(self, arm: Arm) -> dict[str, Any]:
        """Sample an arm and measure it; everything in the record but `cost` is reproducible."""
        samples = self._human() if arm.role == "human" else self._sample(arm)
        texts = [self.subject.decode(ids.tolist()) for ids in samples.ids]
        before = [self.subject.decode(ids.tolist()) for ids in samples.before]
        nats = samples.nats
        return {
            **self.conditions(arm),
            "place": ARMS.index(arm) if arm in ARMS else len(ARMS),
            "samples": self._each(texts, before, nats),
            "together": self._together(texts),
            "effect": samples.effect,
            "cost": samples.cost,
            "texts": [
                {"prompt": before[i], "text": texts[i]}
                for i in range(0, len(texts), self.protocol.rounds)
            ],
            "environment": environment(),
        }

    def conditions(self, arm: Arm) -> dict[str, Any]:
        """The part of a record that says what was asked."""
        subject = {"name": self.subject.name, **self.subject.identity}
        described = {**asdict(arm), "temperature": arm.temperature}
        asked = {"arm": described, "subject": subject, "protocol": asdict(self.protocol)}
        return json.loads(json.dumps(asked))

    def _sample(self, arm: Arm) -> Samples:
        """One batch per prompt. A row draws from its own stream, keyed by prompt and round."""
        rounds, tokens, seed = self.protocol.rounds, self.protocol.tokens, self.protocol.seed
        before: list[Tensor] = []
        ids: list[Tensor] = []
        nats: list[float] = []
        intervention = None if arm.intervention is None else make(arm.intervention)
        effects: list[dict[str, float]] = []
        cpu = wall = 0.0
        for p, prompt_T in enumerate(self.prompts):
            began = time.process_time(), time.perf_counter()
            out_BT = decode(
                self.subject.model,
                prompt_T.expand(rounds, -1),
                max_new_tokens=tokens,
                seeds=[keyed_seed("benchmark", seed, p, r) for r in range(rounds)],
                chain=[Vocabulary(self.subject.vocab_size), *arm.processors()],
                intervention=intervention,
            )
            cpu += time.process_time() - began[0]
            wall += time.perf_counter() - began[1]
            before += [prompt_T] * rounds
            ids += list(out_BT[:, len(prompt_T) :])
            nats += self.subject.nats(out_BT, len(prompt_T))
            effects.append(_effect(intervention, rounds))
        cost = {
            "cpu_seconds": round(cpu, 2),
            "wall_seconds": round(wall, 2),
            "tokens_per_cpu_second": round(len(ids) * tokens / max(cpu, 1e-9), 1),
            "threads": torch.get_num_threads(),
        }
        effect = {k: float(np.mean([e[k] for e in effects])) for k in effects[0]}
        return Samples(before=before, ids=ids, nats=nats, cost=cost, effect=effect)

    def _human(self) -> Samples:
        return Samples(
            before=list(self._human_BT[:, : self._lead]),
            ids=list(self._human_BT[:, self._lead :]),
            nats=self.subject.nats(self._human_BT, self._lead),
            cost={},
            effect={},
        )

    def _each(
        self, texts: Sequence[str], before: Sequence[str], nats: Sequence[float]
    ) -> dict[str, list[float]]:
        """analysis.sampling.PER_SAMPLE, a list each; an empty text has the judge's 0."""
        return {
            "diversity": _rounded(count.unique_words(text) for text in texts),
            "ppl": _rounded(perplexity(x, 1) for x in nats),
            "judge": _rounded(
                self._judge.nats_per_char(text, context=context) if text else 0.0
                for text, context in zip(texts, before, strict=True)
            ),
            "real_words": _rounded(count.real_word_rate([t], self._vocabulary) for t in texts),
            "rep4": _rounded(count.repetition(text, 4) for text in texts),
            "rep16": _rounded(count.repetition(text, 16, "character") for text in texts),
            "loops": [int(count.looped(text)) for text in texts],
        }

    def _together(self, texts: Sequence[str]) -> dict[str, float | None]:
        """analysis.sampling.PER_ARM; self-BLEU is within the rounds of a prompt, then averaged."""
        rounds = self.protocol.rounds
        groups = [texts[i : i + rounds] for i in range(0, len(texts), rounds)]
        found = {
            **{f"distinct{n}": count.distinct(texts, n) for n in (1, 2, 3)},
            "self_bleu": float(np.mean([count.self_bleu(group) for group in groups])),
            "zipf": count.zipf(texts),
            "jsd_char3": count.jsd(texts, self._reference, 3),
            "jsd_word1": count.jsd(texts, self._reference, 1, "word"),
        }
        return {k: None if math.isnan(v) else round(v, 6) for k, v in found.items()}


def run(
    bench: Bench,
    arms: Sequence[Arm],
    out: Path,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write out/arms/<arm>.json for every arm that has no record yet, or for all with `force`.

    Raises ConfigError where a record is of other conditions than these.
    """
    folder = out / "arms"
    folder.mkdir(parents=True, exist_ok=True)
    for i, arm in enumerate(arms, start=1):
        path, head = folder / f"{arm.name}.json", f"[{i}/{len(arms)}] {arm.name}"
        if path.is_file() and not force:
            record = read_json(path)
            asked = bench.conditions(arm)
            changed = [name for name, value in asked.items() if record.get(name) != value]
            if changed:
                raise ConfigError(
                    f"{path} was made with another {' and '.join(changed)}; give another --out, "
                    f"or --force to measure anew"
                )
            say(f"{head}: has its record")
            continue
        record = bench.record(arm)
        text = json.dumps(record, sort_keys=True, allow_nan=False, separators=(",", ":"))
        write_atomic(path, (text + "\n").encode())
        say(f"{head}: {_summary(record)}")


def _effect(intervention: Any, rows: int) -> dict[str, float]:
    """What the last decoding's intervention did, in the mean over rows and steps.

    Of Phase-Slip `kl`, KL(clean || slipped) in nats before the gate, and `weight`, the share of the
    slipped path behind it; of shocks `events`, their number per row.
    """
    if isinstance(intervention, PhaseSlip):
        steps = intervention.trace
        kl = [step.kl for step in steps if step.kl is not None]
        found = {"weight": torch.stack([step.weight for step in steps]).mean().item()}
        return found | ({"kl": torch.stack(kl).mean().item()} if kl else {})
    if isinstance(intervention, KVShock):
        return {"events": len(intervention.events) / rows}
    return {}


def _summary(record: dict[str, Any]) -> str:
    means = {name: float(np.mean(values)) for name, values in record["samples"].items()}
    shown = ("diversity", "ppl", "judge", "loops")
    line = ", ".join(f"{name} {means[name]:.3g}" for name in shown)
    return f"{line}; {record['cost'].get('cpu_seconds', 0):.1f} CPU s"


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 6) for value in values]
