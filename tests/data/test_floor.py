"""The embedded corpus' entropy floor catches a model that sees the future, and only that."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import phasegpt
from phasegpt.attention import softmax
from phasegpt.core.composition import CONF_DIR
from phasegpt.data.corpus import prepare
from phasegpt.data.windows import TrainBatches
from phasegpt.model.gpt import GPT
from phasegpt.model.scoring import Score, nats, score
from phasegpt.training.config import run_config
from phasegpt.training.optim import build_optimizer, schedule
from phasegpt.training.optimizer_config import AdamWConfig

CONTEXT, STEPS = 32, 250
CERTAIN = 20.0  # nats: a causal model is this far below the floor with probability below e^-20


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def trained_score(attention: str, cache: Path) -> Score:
    """Train a small model briefly; score it on the whole validation split."""
    words = ["model.n_layer=2", "model.n_head=2", "model.n_embd=48", f"model.block_size={CONTEXT}"]
    words += ["model.positions=rope"]  # copying from the next position is learned soonest
    words += ["data.characters=200000", f"data.cache_dir={cache}", "data.batch_size=24"]
    run = run_config(phasegpt.compose([f"attention={attention}", "data=synthetic", *words]))
    corpus = prepare(run.data)
    model = GPT(run.gpt(), seed=0).train()
    settings = AdamWConfig(lr=5e-3, warmup_steps=20)
    optimizer = build_optimizer(model, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(settings, STEPS))
    batches = TrainBatches(corpus.split("train"), block_size=CONTEXT, batch_size=24, seed=0)
    for k in range(STEPS):
        batch = batches[k]
        total, count = nats(model(batch["idx"]).logits, batch["targets"])
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return score(model, corpus, "val", context=CONTEXT, stride=CONTEXT, batch_size=256)


def unmasked(q, k, v, *, scale, dropout):
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def test_softmax_without_its_mask_beats_the_floor(cache, monkeypatch):
    monkeypatch.setattr(softmax, "causal_attention", unmasked)
    result = trained_score("softmax", cache)
    assert result.nats < result.floor_nats - CERTAIN, (result.nats, result.floor_nats)


def causal() -> list:
    """Every mechanism but as_coded, which sees ahead; in the short suite one of each kind.

    That each is causal bit for bit is in tests/attention/test_contract.py.
    """
    names = {path.stem for path in (CONF_DIR / "attention").glob("*")} - {"as_coded"}
    soon = ("softmax", "phase_sync")
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in soon)) for name in sorted(names)
    ]


@pytest.mark.parametrize("attention", causal())
def test_no_causal_mechanism_beats_the_floor(cache, attention):
    result = trained_score(attention, cache)
    assert result.floor_nats - CERTAIN < result.nats
    assert result.loss < math.log(56) - 1.5  # it has learned, so the floor was not safe by default
