"""LitGPT and DataModule in a Trainer of the user's own: its settings act, or are refused."""

import pytest
import pytorch_lightning as pl
import torch
from helpers import TWO_STEPS
from torch.utils.data import DataLoader

import phasegpt
from phasegpt.core.errors import ConfigError
from phasegpt.data.corpus import prepare
from phasegpt.training.config import run_config
from phasegpt.training.datamodule import DataModule
from phasegpt.training.lit import LitGPT


@pytest.fixture
def parts(text):
    def make(*words: str) -> tuple[LitGPT, DataModule]:
        run = run_config(phasegpt.compose([*TWO_STEPS, *text, *words]))
        corpus = prepare(run.data)
        lit = LitGPT(run.to_dict(), corpus.tokenizer.state(), corpus.tokenizer.vocab_size)
        sizes = {"block_size": 16, "seed": 1, "total_batches": 5}
        return lit, DataModule(corpus, run.data, **sizes)

    return make


def trainer(folder, **words) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "default_root_dir": folder, "accelerator": "cpu"}
    return pl.Trainer(**quiet, num_sanity_val_steps=0, limit_val_batches=1, **words)


@pytest.mark.parametrize(("words", "steps"), [({"max_steps": 4}, 4), ({"max_epochs": 1}, 5)])
def test_the_trainers_own_number_of_steps_wins(tmp_path, parts, words, steps):
    """The run's is 2."""
    lit, data = parts()
    own = trainer(tmp_path, **words)
    own.fit(lit, datamodule=data)
    assert own.global_step == steps and lit.validation["val/ppl"] > 1


def batches() -> DataLoader:
    ids = torch.randint(20, (8, 17), generator=torch.Generator().manual_seed(0))
    rows = [{"idx": row[:-1], "targets": row[1:]} for row in ids]
    return DataLoader(rows, batch_size=4)


def test_batches_without_sample_numbers_train_a_model_without_noise(tmp_path, parts):
    lit, _ = parts()
    own = trainer(tmp_path, max_steps=2)
    own.fit(lit, train_dataloaders=batches())
    assert own.global_step == 2


def test_batches_without_sample_numbers_are_refused_where_noise_is(tmp_path, parts):
    lit, _ = parts("attention.noise_sigma=0.1")
    with pytest.raises(ConfigError, match=r"noise_sigma.* need a batch that numbers .*sample"):
        trainer(tmp_path, max_steps=2).fit(lit, train_dataloaders=batches())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_as_the_trainer_says(tmp_path, parts, monkeypatch, algorithm):
    lit, data = parts()
    seen = []

    limit = 1e-3
    words = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    own = trainer(tmp_path, max_steps=1, **words)
    real = lit.configure_gradient_clipping

    def clipped(optimizer, **words):
        real(optimizer, **words)
        seen.append(torch.cat([p.grad.flatten() for p in lit.parameters() if p.grad is not None]))

    monkeypatch.setattr(lit, "configure_gradient_clipping", clipped)
    own.fit(lit, datamodule=data)
    gradient = seen[0]
    if algorithm == "value":
        assert gradient.abs().max() == pytest.approx(limit) and gradient.norm() > 2 * limit
    else:
        assert gradient.norm() == pytest.approx(limit, rel=1e-3)
    assert lit.grad_norm > 2 * limit  # before
