"""The token cache, and loaders that resume."""

import dataclasses
import json
import multiprocessing
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import play

from phasegpt.core.errors import DataError
from phasegpt.data import corpus
from phasegpt.training.datamodule import DataModule


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A short text for the corpus `text`."""
    folder = tmp_path_factory.mktemp("text")
    play(folder)
    return folder / "play.txt"


@pytest.fixture
def config(data_config, text):
    """Make a DataConfig of that text."""

    def make(**keys):
        return data_config("text", **{"path": str(text), **keys})

    return make


# The token cache


def test_second_opening_reads_the_cache_and_is_the_same(config, monkeypatch):
    first = corpus.prepare(config())
    monkeypatch.setattr(corpus, "_tokenise", None)
    second = corpus.prepare(config())
    assert second.fingerprint == first.fingerprint and second.meta == first.meta
    assert not second.split("train").flags.writeable
    assert json.loads(json.dumps(second.meta)) == second.meta


def test_corpora_and_tokenizers_have_their_own_fingerprints(config, tmp_path):
    play(tmp_path, 5000)
    configs = [config(), config(tokenizer="byte"), config(path=str(tmp_path / "play.txt"))]
    assert len({corpus.prepare(c).fingerprint for c in configs}) == 3


def _prepare_at_once(config, barrier, log):
    tokenise = corpus._tokenise

    def logged(*arguments):
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.5)  # the others arrive meanwhile
        tokenise(*arguments)

    corpus._tokenise = logged
    barrier.wait(30)
    assert len(corpus.prepare(config).split("val")) >= 400


def test_four_processes_at_once_on_an_empty_cache(config, tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (config(), context.Barrier(4), tmp_path / "log")
    jobs = [context.Process(target=_prepare_at_once, args=arguments) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


def test_what_a_killed_process_left_is_swept_away(config, tmp_path):
    folder = _cache_folder(config)
    shutil.rmtree(folder)
    stale = folder.with_name(folder.name + ".tmp-dead")
    stale.mkdir()
    corpus.prepare(config())
    assert folder.is_dir() and not stale.exists()


def _cache_folder(config):
    corpus.prepare(config())
    (meta,) = Path(config().cache_dir).glob("tokens/*/meta.json")
    return meta.parent


@pytest.mark.parametrize("damage", ["flip", "cut", "meta", "gone"])
def test_a_damaged_cache_is_an_error_that_says_what_to_delete(config, damage):
    folder = _cache_folder(config)
    tokens = folder / "val.bin"
    if damage == "flip":
        content = bytearray(tokens.read_bytes())
        content[100] ^= 1
        tokens.write_bytes(content)
    elif damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-2])
    elif damage == "meta":
        (folder / "meta.json").write_text("[")
    else:
        tokens.unlink()
    with pytest.raises(DataError, match=f"{folder.name} is damaged .* delete that folder"):
        corpus.prepare(config())


def test_a_cache_that_cannot_be_written_names_the_key(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        corpus.prepare(config(cache_dir=str(tmp_path / "file")))


# Loaders


@pytest.fixture
def module(config):
    def make(workers=0, total=12, seed=3, **keys):
        c = config(num_workers=workers, **keys)
        return DataModule(corpus.prepare(c), c, block_size=16, seed=seed, total_batches=total)

    return make


def test_two_workers_give_the_batches_of_none(module):
    none, two = (list(module(workers).train_dataloader()) for workers in (0, 2))
    assert len(none) == len(two) == 12
    torch.testing.assert_close(none, two, rtol=0, atol=0)


def test_loaders_leave_the_global_generators_alone(module):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    dm = module()
    for loader in (dm.train_dataloader(), dm.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_validation_scores_the_whole_split_in_order(module):
    dm = module()
    targets = torch.cat([batch["targets"].flatten() for batch in dm.val_dataloader()])
    expected = dm.corpus.split("val")[1:].astype(np.int64)
    assert torch.equal(targets[targets != -100], torch.from_numpy(expected))


def test_a_block_longer_than_the_text_fails_early(config, tmp_path):
    (tmp_path / "t.txt").write_text("a short text\n" * 3)
    c = config(path=str(tmp_path / "t.txt"))
    with pytest.raises(DataError, match=r"model.block_size=64"):
        DataModule(corpus.prepare(c), c, block_size=64, seed=0, total_batches=1)


class _Recorder(pl.LightningModule):
    """Notes the samples it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.samples, self.validated = [], 0

    def training_step(self, batch, batch_idx):
        self.samples.append(batch["sample"].tolist())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated += int((batch["targets"] != -100).sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_goes_on_with_the_next_batch(module, tmp_path, workers, accumulate):
    def trainer(steps, limit):
        return pl.Trainer(
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            val_check_interval=2 * accumulate,
            limit_val_batches=limit,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )

    total = 4 * accumulate
    whole, part, rest = _Recorder(), _Recorder(), _Recorder()
    trainer(4, 1.0).fit(whole, datamodule=module(workers, total))
    assert whole.validated >= 2 * len(module().val_windows.tokens) - 2
    first = trainer(1, 0)
    first.fit(part, datamodule=module(workers, total))
    first.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["DataModule"]
    assert saved == {"consumed": accumulate}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer(4, 0).fit(
            rest,
            datamodule=module(workers, total),
            ckpt_path=tmp_path / "a.ckpt",
            weights_only=True,
        )
    assert part.samples + rest.samples == whole.samples
    assert whole.samples == [list(range(4 * k, 4 * k + 4)) for k in range(total)]


def test_corpus_is_frozen(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        corpus.prepare(config()).meta = {}
