"""LitGPT and DataModule in a Trainer of the user's own: its settings act, or are refused."""

import csv

import pytest
import pytorch_lightning as pl
import torch
from helpers import TWO_STEPS
from pytorch_lightning.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ThroughputMonitor,
)
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.profilers import SimpleProfiler
from pytorch_lightning.tuner import Tuner
from torch.utils.data import DataLoader

import phasegpt
from phasegpt.core.errors import Collapsed, ConfigError
from phasegpt.data.windows import EvalWindows
from phasegpt.training.checkpointing import VerifiedIO
from phasegpt.training.datamodule import DataModule
from phasegpt.training.lit import LitGPT


@pytest.fixture
def parts(text):
    """LitGPT and a DataModule of 5 batches."""

    def make(*words: str) -> tuple[LitGPT, DataModule]:
        return phasegpt.lightning(
            phasegpt.compose([*TWO_STEPS, *text, "trainer.max_steps=5", *words])
        )

    return make


def trainer(folder, **words) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "default_root_dir": folder, "accelerator": "cpu"}
    return pl.Trainer(**quiet | {"num_sanity_val_steps": 0, "limit_val_batches": 1} | words)


@pytest.mark.parametrize(("words", "steps"), [({"max_steps": 7}, 7), ({"max_epochs": 1}, 5)])
def test_the_trainers_own_number_of_steps_wins(tmp_path, parts, words, steps):
    """The configuration's is 5."""
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


def test_lightnings_callbacks_see_what_a_module_logs(tmp_path, parts):
    monitor = ThroughputMonitor(lambda batch: len(batch["idx"]), lambda batch: batch["idx"].numel())
    saver = ModelCheckpoint(tmp_path / "saved", monitor="val/loss", save_top_k=1)
    rates, stop = LearningRateMonitor("step"), EarlyStopping("train/loss", patience=99)
    own = trainer(
        tmp_path,
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=2,
        val_check_interval=2,
        log_every_n_steps=1,
        callbacks=[monitor, saver, rates, stop],
        enable_checkpointing=True,
        logger=CSVLogger(tmp_path, name="", version=""),
        profiler=SimpleProfiler(tmp_path, "profile"),
        plugins=[VerifiedIO()],  # so that phasegpt.load reads what it saves
    )
    lit, data = parts()
    own.fit(lit, data)
    assert own.global_step == 4 and stop.best_score > 1
    assert "optimizer_step" in (tmp_path / "fit-profile.txt").read_text()
    assert saver.best_model_score.item() == pytest.approx(lit.validation["val/loss"])
    assert phasegpt.load(saver.best_model_path).num_parameters() == lit.model.num_parameters()
    own.logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    seen = {name for row in rows for name, value in row.items() if value}
    assert {"train/loss", "val/loss", "val/ppl", "val/bpb", "lr-AdamW/pg1", "train/time"} <= seen


@pytest.mark.parametrize("split", ["val", "test"])
def test_validate_and_test_return_their_values(tmp_path, parts, split):
    other = ["data=synthetic", "data.path=null", "data.characters=10000"]
    lit, data = parts(*(other if split == "test" else []))
    own = trainer(tmp_path, limit_test_batches=2, limit_val_batches=2)
    (found,) = own.test(lit, data) if split == "test" else own.validate(lit, data)
    windows = EvalWindows(data.corpus.split(split), context=16, stride=16)
    batch = next(iter(DataLoader(windows, batch_size=2 * data.config.batch_size)))
    with torch.no_grad():
        logits = lit.model(batch["idx"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    assert set(found) == {f"{split}/loss", f"{split}/ppl", f"{split}/bpb"}
    assert found[f"{split}/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found[f"{split}/ppl"] == pytest.approx(loss.exp().item(), rel=1e-5)


@pytest.mark.parametrize("method", ["validate", "test"])
def test_a_loss_that_is_not_finite_is_a_collapse_without_a_fit(tmp_path, parts, method):
    lit, data = parts("data=synthetic", "data.path=null", "data.characters=10000")
    lit.model.blocks[1].mlp.c_fc.weight.data.fill_(float("nan"))
    with pytest.raises(Collapsed, match=r"^step 0: .* first in layer 1 in the forward pass"):
        getattr(trainer(tmp_path, limit_test_batches=1, limit_val_batches=1), method)(lit, data)


def test_a_corpus_without_a_test_split_says_so(tmp_path, parts):
    with pytest.raises(ConfigError, match="split=test does not exist in text"):
        trainer(tmp_path).test(*parts())


def test_lr_find_sets_the_rate_that_trains_and_is_saved(tmp_path, parts):
    lit, data = parts("trainer.max_steps=40")
    before = {name: p.clone() for name, p in lit.model.named_parameters()}
    own = trainer(tmp_path, max_steps=1)
    found = Tuner(own).lr_find(lit, data, num_training=20, max_lr=0.1).suggestion()
    assert found not in (None, 3e-4) and lit.lr == found
    assert all(torch.equal(p, before[name]) for name, p in lit.model.named_parameters())
    own.fit(lit, data)
    assert own.optimizers[0].param_groups[0]["initial_lr"] == found
    assert lit.hparams["config"]["optimizer"]["lr"] == found


def read_numbers(loader: DataLoader) -> list[int]:
    """Numbers of the batches that a train loader would hand out in one epoch."""
    return list(loader.sampler)


def test_every_epoch_of_a_trainer_has_new_batches_also_after_a_resume(tmp_path, parts):
    _, data = parts()
    loader = data.train_dataloader()
    assert [read_numbers(loader) for _ in range(2)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    for consumed, epochs in ((2, [[2, 3, 4], [5, 6, 7, 8, 9]]), (7, [[7, 8, 9], [*range(10, 15)]])):
        data.load_state_dict({"consumed": consumed})
        loader = data.train_dataloader()
        assert [read_numbers(loader) for _ in range(2)] == epochs


@pytest.mark.parametrize(
    "words", [{}, {"limit_train_batches": 3}, {"accumulate_grad_batches": 2}], ids=str
)
def test_a_trainer_of_several_epochs_resumes_with_its_own_batches(tmp_path, parts, words):
    def batches_of(folder, **more):
        seen: list[list[int]] = []

        class Seen(pl.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, index):
                seen.append([trainer.current_epoch, *batch["idx"].flatten().tolist()])

        lit, data = parts()
        saver = ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
        own = trainer(folder, max_epochs=3, callbacks=[Seen(), saver], enable_checkpointing=True,
                      **words)  # fmt: skip
        own.fit(lit, datamodule=data, **more)
        return seen

    whole = batches_of(tmp_path / "whole")
    assert len({tuple(batch) for _, *batch in whole}) == len(whole)  # every epoch has new ones
    for epoch in (0, 1):
        file = tmp_path / "whole" / f"epoch={epoch}.ckpt"
        again = batches_of(tmp_path / f"from{epoch}", ckpt_path=file)
        assert again == [row for row in whole if row[0] > epoch]


def test_a_schedule_of_several_epochs_ends_with_the_last(tmp_path, parts):
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            rates.append(module.last_lr)

    lit, data = parts("optimizer.min_lr=0", "optimizer.warmup_steps=2")
    own = trainer(tmp_path, max_epochs=3, callbacks=[Rates()])
    own.fit(lit, datamodule=data)
    assert own.global_step == len(rates) == 15
    assert rates[0] < rates[1] and 0 < rates[-1] < 0.1 * max(rates)
    assert rates[1:] == sorted(rates[1:], reverse=True)
