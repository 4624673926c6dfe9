"""Invented records of a leaderboard, in the form that training leaves behind."""

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers import composed

from phasegpt.analysis.leaderboard.board import Board, Column, board

STEPS, TOKENS = 1000, 2000  # of a run, and of a step
TASKS = {  # chance and ceiling
    "cycle_navigation": (0.2, 1.0),
    "selective_copy": (1 / 14, 1.0),
    "shakespeare": (None, None),
    "state_s2": (0.5, 1.0),
    "induction": (1 / 64, 1.0),
}


@functools.cache
def _base(task: str) -> str:
    data = task if task == "shakespeare" else f"{task}_small"
    words = ["model=nano", "model.n_layer=2", "model.n_embd=64", "model.positions=rope"]
    words += ["model.block_size=512", "attention=softmax", f"trainer.max_steps={STEPS}"]
    return json.dumps(composed(f"data={data}", *words).to_dict())


def record(task: str, arm: str, seed: int, score: float, **more: Any) -> dict[str, Any]:
    """A run that ended with `score`; `config` holds overrides such as {"optimizer": {"lr": 1}}.

    Along the way accuracy is half of it, and bits per byte twice as many.
    """
    config = json.loads(_base(task))
    name = arm.removesuffix("_off")
    config["attention"] = {"name": name, "layers": "all"}
    if arm not in ("softmax", "token_shift"):
        config["attention"]["coupling"] = 0.0 if arm.endswith("_off") else 1.0
    config |= {"name": f"leaderboard-{task}-{arm}", "seed": seed}
    for section, values in more.pop("config", {}).items():
        config[section] |= values
    chance, ceiling = TASKS[task]
    text = task == "shakespeare"
    nats = score * 0.6931471805599453
    final = {"val/loss": nats if text else 1.0, "val/ppl": 2**score if text else 2.7}
    final |= {"val/bpb": score} if text else {"val/accuracy": score}
    metric, along = ("val/ppl", 4**score) if text else ("val/accuracy", score / 2)
    last = final[metric]
    return copy.deepcopy({
        **{"status": "ok", "seed": seed, "step": STEPS, "tokens": STEPS * TOKENS},
        **{"config": config, "config_hash": "0", "leaky": False, "tokens_per_s": 1000.0},
        "git": {"sha": "0123456789abcdef", "dirty": False},
        "data": {"fingerprint": task, "chance": chance, "ceiling": ceiling},
        "parameters": {"all": 100_000, "non_embedding": 90_000},
        "flops_per_token": {"causal": 500_000, "full": 600_000, "elementwise": 1000},
        "decode_bytes": {"token": 2048, "constant": 0},
        "final": final,
        "curves": {metric: [[STEPS // 2, along], [STEPS, last]]},
        **more,
    })  # fmt: skip


def records(
    task: str, scores: Mapping[str, Sequence[float]], first: int = 1, **more: Any
) -> dict[str, dict[str, Any]]:
    """Records by name: of every arm a run for each score, with seeds from `first` on."""
    return {
        f"leaderboard-{task}-{arm}-seed{first + i}": record(task, arm, first + i, score, **more)
        for arm, values in scores.items()
        for i, score in enumerate(values)
    }


def of(*parts: Mapping[str, dict[str, Any]]) -> Board:
    """The board of several sets of records."""
    return board({name: r for part in parts for name, r in part.items()})


def write(study: Path, *parts: Mapping[str, dict[str, Any]]) -> Path:
    """The records as a study's files."""
    (study / "runs").mkdir(parents=True, exist_ok=True)
    for part in parts:
        for name, content in part.items():
            (study / "runs" / f"{name}.json").write_text(json.dumps(content))
    return study


#: Five seeds: softmax, and what is so much better or worse with a spread of its own.
BASE = [0.50, 0.54, 0.47, 0.52, 0.49]
TEN = [*BASE, 0.51, 0.48, 0.53, 0.46, 0.55]  # as many as a confirmation


def shifted(by: float, base: Sequence[float] = BASE) -> list[float]:
    """`base` moved by about `by`, each seed a little otherwise."""
    noise = [0.004, -0.003, 0.001, -0.002, 0.002, 0.003, -0.001, 0.000, -0.004, 0.001]
    return [round(v + by + noise[i % 10], 6) for i, v in enumerate(base)]


def arm(by: float, base: Sequence[float] = BASE) -> list[float]:
    """Scores that are better than `base` by about `by`, with a spread unlike that of `shifted`."""
    noise = [0.003, -0.002, 0.001, 0.000, -0.004, 0.002, 0.004, -0.001, -0.003, 0.001]
    return [v + by + noise[i] for i, v in enumerate(base)]


TASK = "cycle_navigation"

#: By coupling torus, by architecture fsn, by its own part kope, worse than both lohe, none ssa.
PLANTED = {
    "softmax": BASE,
    **{"torus": arm(0.10), "torus_off": shifted(0.01)},
    **{"fsn": arm(0.10), "fsn_off": shifted(0.10), "token_shift": shifted(0.08)},
    **{"kope": arm(0.00), "kope_off": shifted(-0.10)},
    **{"lohe": arm(-0.10), "lohe_off": shifted(-0.03)},
    **{"ssa": arm(0.00), "ssa_off": shifted(0.00)},
}
#: One mechanism that solves it, beside those that seldom or never do.
SOLVED = {"softmax": [1.0, 0.3, 0.35], "torus": [1.0, 1.0, 0.995], "torus_off": [0.2, 0.2, 0.3]}


def column(*parts: Mapping[str, dict[str, Any]], task: str = TASK) -> Column:
    """The column of a task, or TASK/beyond, in the board of several sets of records."""
    return next(c for c in of(*parts).columns if c.key == task)
