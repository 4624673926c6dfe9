"""The runs of the leaderboard: which records count, what a run's record says, what arms are called.

A record is runs/leaderboard-TASK-ARM-seedN.json; of the choice of learning rates ARM-lrVALUE. Only
runs with one configuration but for their treatment are compared: within a task and stage that of
most of its runs, and within an arm too.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from phasegpt.core.errors import UserError
from phasegpt.core.figures import FAMILIES
from phasegpt.data.config import DataSection
from phasegpt.training.jobs import changed
from phasegpt.training.preregistration import config_fields
from phasegpt.training.run_folder import FINISHED

Record = Mapping[str, Any]

#: Seeds of the stages; every stage has seeds of its own.
STAGES = {
    "rates": (0,),
    "screening": (1, 2, 3),
    "verdict": tuple(range(11, 16)),
    "confirmation": tuple(range(21, 31)),
}
#: What is no mechanism: no claim is made for it, and it has no off control.
CONTROLS = ("softmax", "softmax_learned", "token_shift", "uniform", "no_mixing")
COLLAPSED = "collapsed, or its loss was not finite"  # why such a run does not count
_NAMES = {
    "softmax": "softmax + RoPE",
    "softmax_learned": "softmax, learned positions",
    "token_shift": "softmax with token shift",
    "uniform": "uniform mean",
    "no_mixing": "no mixing",
    "fixed_query_off": "fixed_query with p = 0 (uniform mean)",
    "lohe_off": "lohe without coupling (no mixing)",
    "phase_sync_off": "phase_sync without coupling (no mixing)",
    "ssa_off": "ssa without locking",
    "selective_rope_off": "selective_rope at constant speed",
    "torus_off": "torus without its step",
    "fsn_off": "fsn without delay and harmonics",
    "mqar": "MQAR",
    "state_s2": "S2",
    "state_s3": "S3",
    "shakespeare": "Shakespeare",
    "text": "bytes of Shakespeare",
    "wikitext2": "WikiText-2",
}
_RUN = re.compile(r"leaderboard-([^-]+)-(.+?)(?:-lr[\d.e+-]+)?-seed(\d+)")
#: The treatment: what arms may differ in.
_FREE = ("name", "attention", "optimizer.lr", "callbacks.phase_monitor", *(
    f"model.{name}" for name in ("positions", "mlp_width", "match_parameters", "n_kv_head")
))  # fmt: skip


def human(arm: str) -> str:
    """The name of an arm for people, such as "torus without coupling"."""
    if arm not in _NAMES and arm.endswith("_off"):
        return f"{arm.removesuffix('_off')} without coupling"
    return _NAMES.get(arm, arm)


def human_task(key: str) -> str:
    """The name of a task or column for people, such as "cycle navigation, beyond"."""
    task, _, part = key.partition("/")
    task = task.removesuffix("_small")
    name = _NAMES.get(task, task.replace("_", " "))
    return f"{name}, {part}" if part else name


def mechanism(arm: str) -> str:
    """The mechanism of an arm, which gives it its place and colour."""
    name = arm.removesuffix("_off")
    return "softmax" if name == "softmax_learned" else name


def arms_in_order(arms: Iterable[str]) -> list[str]:
    """Each arm once: controls, then mechanisms by family, an off control behind its own."""
    families = [name for _, names in FAMILIES.values() for name in names]
    order = [*CONTROLS, *(name for name in families if name not in CONTROLS)]

    def place(arm: str) -> tuple[int, str, bool]:
        name = arm.removesuffix("_off")
        return order.index(name) if name in order else len(order), name, arm != name

    return sorted(set(arms), key=place)


@dataclass(frozen=True)
class Run:
    """One run that counts."""

    task: str
    arm: str
    seed: int
    record: Record

    @classmethod
    def named(cls, name: str, record: Record) -> Self | None:
        """By the name of its record; None where that is no run of the leaderboard."""
        found = _RUN.fullmatch(name)
        return found and cls(found[1], found[2], int(found[3]), record)

    @property
    def stage(self) -> str | None:
        """Of STAGES; None for a seed that is of none."""
        return next((stage for stage, seeds in STAGES.items() if self.seed in seeds), None)

    @property
    def lr(self) -> float:
        """Learning rate."""
        return float(self.record["config"]["optimizer"]["lr"])

    @property
    def text(self) -> bool:
        """Whether it was on a text: then lower is better, else it has an accuracy."""
        return "val/accuracy" not in self.record["final"]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it is scored by: accuracy and that beyond the training, or bits per byte."""
        names = ("val/bpb",) if self.text else ("val/accuracy", "val/accuracy/beyond")
        return tuple(name for name in names if name in self.record["final"])

    def score(self, metric: str) -> float | None:
        """Of the last validation; None where the run has none, as beyond what it can read."""
        value = self.record["final"].get(metric)
        return None if value is None else float(value)

    @property
    def loads(self) -> dict[int, float]:
        """Accuracy of the last validation by length, or what else the task is harder by."""
        found = {
            int(name.rpartition("/")[2]): value
            for name, value in self.record["final"].items()
            if re.fullmatch(r"val/accuracy/\d+", name)
        }
        return dict(sorted(found.items()))

    @property
    def trained(self) -> int | None:
        """The largest load that is trained on; None of a text, and where that is not known."""
        return getattr(self._data, "trained", None)

    @property
    def _data(self) -> DataSection | None:
        """None where it is of another version."""
        try:
            return DataSection.parse(self.record["config"]["data"])
        except UserError:
            return None

    def rows(self, metric: str) -> int | None:
        """Validation rows that a measure is of; None of a text, and where that is not known."""
        loads, each = self.loads, getattr(self._data, "val_examples", None)
        if self.trained is None or each is None:
            return None
        beyond = metric.endswith("beyond")
        return each * (sum((load > self.trained) == beyond for load in loads) or 1)

    @property
    def flops(self) -> float | None:
        """FLOPs of training on one token, with causal products, as run.json has them."""
        return (self.record.get("flops_per_token") or {}).get("causal")

    @property
    def state(self) -> int | None:
        """Bytes that decoding remembers of a text as long as the context; None if not recorded."""
        if (held := self.record.get("decode_bytes")) is None:
            return None
        context = self.record["config"]["model"]["block_size"]
        return int(held["constant"] + held["token"] * context)

    @property
    def tokens_per_step(self) -> float:
        """Tokens of an optimizer step."""
        return self.record["tokens"] / self.record["step"]

    @property
    def budget(self) -> float | None:
        """Training FLOPs of all steps of its schedule, also where it stopped before."""
        steps = self.record["config"]["trainer"]["max_steps"]
        return None if self.flops is None else self.flops * self.tokens_per_step * steps

    def score_within(self, metric: str, budget: float) -> tuple[int, float] | None:
        """Step and score of the last validation that at most `budget` FLOPs have led to.

        Bits per byte along the way are those of `val/ppl`: one text has one number of tokens.
        """
        final, curves = self.record["final"], self.record.get("curves", {})
        curve = curves.get("val/ppl" if metric == "val/bpb" else metric, [])
        step_flops = (self.flops or math.inf) * self.tokens_per_step
        found = [(int(step), value) for step, value in curve if step * step_flops <= budget]
        if not found:
            return None
        step, value = found[-1]
        if metric == "val/bpb":
            value = math.log(value) * final["val/bpb"] / math.log(final["val/ppl"])
        return step, float(value)


def admit(records: Mapping[str, Record]) -> tuple[list[Run], dict[str, list[str]]]:
    """The runs that count, and the names of all others by the reason why they do not."""
    excluded: dict[str, list[str]] = defaultdict(list)
    runs: dict[str, Run] = {}
    for name, record in sorted(records.items()):
        run = Run.named(name, record)
        if reason := _reason(name, run, record):
            excluded[reason].append(name)
        elif run is not None:
            runs[name] = run
    comparisons: list[tuple[str, Callable[[Run], Any], Callable[[Run], dict[str, Any]]]] = [
        ("task", lambda r: (r.task, r.stage), lambda r: _fields(r, _FREE)),
        ("arm", lambda r: (r.task, r.stage, r.arm), lambda r: _fields(r, _free_in_an_arm(r))),
        ("arm", lambda r: (r.task, r.arm, r.stage == "rates"), _rate),
    ]
    for among, group, fields in comparisons:
        groups: dict[Any, dict[str, Run]] = defaultdict(dict)
        for name, run in runs.items():
            groups[group(run)][name] = run
        for members in groups.values():
            for name, keys in _strangers(members, fields).items():
                excluded[f"another configuration than most of its {among}: {keys}"].append(name)
                del runs[name]
    for name in [name for name, run in runs.items() if _collapsed(run.record)]:
        excluded[COLLAPSED].append(name)
        del runs[name]
    return list(runs.values()), {reason: excluded[reason] for reason in sorted(excluded)}


def _reason(name: str, run: Run | None, record: Record) -> str | None:
    """Why a record does not count by itself."""
    if run is None:
        return "no run of the leaderboard by its name"
    if record.get("seed") != run.seed or run.stage is None:
        return "a seed of no stage, or other than in its name"
    if record.get("status") not in FINISHED:
        return f"not finished: {record.get('status')}"
    if record.get("smoke"):
        return "a smoke run, which does not train or validate in full"
    if changed(record):
        return "not from a checkout without uncommitted changes"
    if record.get("leaky"):
        return "leaky: it sees the future"
    if record["config"]["attention"].get("layers") != "all":
        return "not in all layers"
    if dead(record):
        return "dead: parameters without a gradient at the start"
    if not run.metrics and not _collapsed(record):
        return "no score: neither accuracy nor bits per byte"
    return None


def _collapsed(record: Record) -> bool:
    return record.get("status") == "collapsed" or "val/loss" not in (record.get("final") or {})


def dead(record: Record) -> bool:
    """Whether the mechanism of a run says of itself that it is dead at the start."""
    from phasegpt.attention import layer_class  # it loads torch

    try:
        return bool(layer_class(record["config"]["attention"]["name"]).dead)
    except UserError:  # of a package that is not here
        return False


def _strangers(
    members: Mapping[str, Run], fields: Callable[[Run], dict[str, Any]]
) -> dict[str, str]:
    """Runs with other `fields` than most of those given, and which, by name."""
    own = {name: fields(run) for name, run in members.items()}
    texts = {name: json.dumps(found, sort_keys=True) for name, found in own.items()}
    count = Counter(texts.values())
    # Of equally many that of softmax, or else of the first name.
    usual = own[min(texts, key=lambda n: (-count[texts[n]], members[n].arm != "softmax", n))]
    found = {}
    for name, mine in own.items():
        if other := sorted(k for k in {*mine, *usual} if mine.get(k) != usual.get(k)):
            found[name] = ", ".join(other)
    return found


def _fields(run: Run, free: Iterable[str]) -> dict[str, Any]:
    """What runs that are compared have in common: all but the keys that are free."""
    found = {"data": (run.record.get("data") or {}).get("fingerprint")}
    for name, value in config_fields(run.record["config"]).items():
        if not any(name == key or name.startswith(f"{key}.") for key in free):
            found[name] = value
    return found


def _free_in_an_arm(run: Run) -> list[str]:
    """What its stage varies."""
    return ["name"] + ["optimizer.lr"] * (run.stage == "rates")


def _rate(run: Run) -> dict[str, Any]:
    """What the stages after that of the rates have in common, whatever version they ran with."""
    return {} if run.stage == "rates" else {"optimizer.lr": run.lr}
