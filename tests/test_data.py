"""Corpora, the token cache, training batches, evaluation windows, loaders that resume."""

import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from phasegpt import corpora, data, references
from phasegpt.config import DataConfig
from phasegpt.data import DataModule, EvalWindows, TrainBatches
from phasegpt.errors import ConfigError, DataError

DATA_DIR = os.environ.get("PHASEGPT_DATA_DIR")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="PHASEGPT_DATA_DIR is not set")


@pytest.fixture
def config(tmp_path):
    """Make a DataConfig whose cache is a folder of this test."""

    def make(corpus="synthetic", **keys):
        keys = {"batch_size": 4, "characters": 10_000, "cache_dir": str(tmp_path / "cache"), **keys}
        return DataConfig(corpus=corpus, **keys)

    return make


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PHASEGPT_DATA_DIR", raising=False)


def counts(corpus, key):
    return [split[key] for split in corpus.meta["splits"].values()]


# Corpora


@needs_data
def test_shakespeare_has_the_published_counts(config):
    corpus = data.prepare(config("shakespeare"))
    assert counts(corpus, "characters") == counts(corpus, "tokens") == [1_003_854, 111_540]
    assert corpus.tokenizer.vocab_size == 65
    text = Path(DATA_DIR, "shakespeare/input.txt").read_text()
    assert corpus.tokenizer.decode(corpus.split("val")) == text[1_003_854:]
    assert counts(data.prepare(config("shakespeare", tokenizer="gpt2")), "tokens") == [
        301_966,
        36_059,
    ]
    with pytest.raises(ConfigError, match=r"split=test does not exist .* train, val"):
        corpus.split("test")


@needs_data
def test_wikitext_has_the_published_counts(config):
    corpus = data.prepare(config("wikitext2", tokenizer="gpt2"))
    assert counts(corpus, "tokens") == [2_448_382, 258_659, 295_877]
    assert counts(corpus, "bytes") == [10_797_148, 1_121_681, 1_256_449]
    assert counts(corpus, "words") == [2_051_910, 213_886, 241_211]
    assert counts(corpus, "lines") == [36_718, 3_760, 4_358]


@needs_data
def test_raw_wikitext_without_its_train_split_is_an_error(config, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"wikitext-2-raw/train.txt") as error:
        data.prepare(config("wikitext2", variant="raw"))
    assert "6707892fa378" in str(error.value)
    assert "valid.txt" not in str(error.value)


@needs_data
def test_pinned_vocabulary_sizes_are_those_of_the_text(config):
    for c in (config("shakespeare"), config("wikitext2"), config("synthetic")):
        assert data.prepare(c).tokenizer.vocab_size == corpora.known_vocab_size(c)


def test_vocabulary_sizes_are_known_without_data(config, offline):
    assert corpora.known_vocab_size(config("shakespeare")) == 65
    assert corpora.known_vocab_size(config("text", tokenizer="gpt2")) == 50257
    assert corpora.known_vocab_size(config("hub", tokenizer="byte")) == 256
    assert corpora.known_vocab_size(config("wikitext2", variant="raw")) is None
    assert corpora.known_vocab_size(config("text")) is None


@needs_data
def test_rows_from_the_hub_give_the_known_files(config, offline, monkeypatch):
    def load(name, subset, *, streaming=False):
        assert (name, subset) == ("Salesforce/wikitext", "wikitext-2-v1")
        names = {"train": "train", "validation": "valid", "test": "test"}
        files = {k: Path(DATA_DIR, f"wikitext-2-tokens/{v}.txt") for k, v in names.items()}
        # As the Hub has them: a row is a line, blank lines are empty.
        rows = {k: f.open(encoding="utf-8", newline="\n") for k, f in files.items()}
        return {k: ({"text": x if x.strip() else ""} for x in r) for k, r in rows.items()}

    monkeypatch.setattr(corpora, "_load_dataset", load)
    corpus = data.prepare(config("wikitext2", tokenizer="byte"))
    assert counts(corpus, "tokens") == [10_797_148, 1_121_681, 1_256_449]
    changed = {"train": [], "validation": [{"text": "other"}], "test": []}
    monkeypatch.setattr(corpora, "_load_dataset", lambda *_: changed)
    with pytest.raises(DataError, match="not the known file"):
        data.prepare(config("wikitext2"))


@pytest.mark.parametrize("corpus", ["shakespeare", "wikitext2", "hub"])
def test_missing_data_offline_is_one_clear_error_at_once(config, offline, corpus):
    import datasets  # noqa: F401 - its import is not what is timed

    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        data.prepare(config(corpus, name="nobody/nothing" if corpus == "hub" else None))
    assert time.perf_counter() - start < 3
    if corpus != "hub":
        assert "PHASEGPT_DATA_DIR" in str(error.value) and "sha256" in str(error.value)


@needs_data
def test_a_known_file_that_was_changed_is_refused(config, monkeypatch, tmp_path):
    changed = Path(DATA_DIR, "shakespeare/input.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare/input.txt").write_bytes(changed)
    monkeypatch.setenv("PHASEGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=hashlib.sha256(changed).hexdigest()):
        data.prepare(config("shakespeare"))


def test_a_data_folder_that_does_not_exist_is_an_error(config, monkeypatch):
    monkeypatch.setenv("PHASEGPT_DATA_DIR", "/no/such/folder")
    with pytest.raises(DataError, match="PHASEGPT_DATA_DIR=/no/such/folder is not a folder"):
        data.prepare(config("shakespeare"))


def test_keys_of_another_corpus_are_refused(config):
    for key, value in {"path": "x.txt", "name": "a/b", "subset": "c", "variant": "raw"}.items():
        with pytest.raises(ConfigError, match=f"data.{key}="):
            data.prepare(config("synthetic", **{key: value}))


# The user's own text


def test_own_text_is_split_at_the_end_and_kept_exactly(config, tmp_path):
    text = "caf\u00e9 \u65e5\u672c\r\n" * 100
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    corpus = data.prepare(config("text", path=str(tmp_path / "a.txt"), val_fraction=0.2))
    assert counts(corpus, "characters") == [720, 180]
    got = [corpus.tokenizer.decode(tokens) for tokens in corpus.splits.values()]
    assert "".join(got) == text


def test_a_pattern_joins_files_by_name_and_adds_missing_line_ends(config, tmp_path):
    for name, text in {"b.txt": "third", "a1.txt": "first", "a2.txt": "second\n"}.items():
        (tmp_path / name).write_text(text)
    c = config("text", path=str(tmp_path / "*.txt"), tokenizer="byte", val_fraction=0.5)
    splits = data.prepare(c).splits.values()
    assert b"".join(bytes(s.astype(np.uint8)) for s in splits) == b"first\nsecond\nthird"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"x", "too short"),
        (b"abc\xff\xfe", "not UTF-8: byte 0xff at offset 3"),
        (b"ab\0c", "NUL byte at offset 2"),
        (None, "no such file"),
    ],
)
def test_bad_files_are_named(config, tmp_path, content, message):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.prepare(config("text", path=str(path)))
    assert not list(tmp_path.glob("cache/tokens/text*[0-9a-f]"))


def test_a_folder_or_no_path_is_an_error(config, tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        data.prepare(config("text", path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"data.path is missing"):
        data.prepare(config("text"))


def test_text_in_pieces_is_the_whole_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "_PIECE", 7)
    text = "a line\nand another one that is long\n\n\nend\u00e9"
    (tmp_path / "t").write_bytes(text.encode())
    for source in (text, tmp_path / "t"):
        pieces = list(corpora.pieces(source))
        assert "".join(pieces) == text and len(pieces) > 1
        assert all(piece.endswith("\n") for piece in pieces[:-1])


# Hugging Face datasets


def test_hub_documents_are_spooled_once_and_split(config, monkeypatch):
    calls = []

    def load(name, subset, *, streaming=False):
        calls.append(streaming)
        return {"train": [{"text": f"document {i}"} for i in range(20)]}

    monkeypatch.setattr(corpora, "_load_dataset", load)
    corpus = data.prepare(config("hub", name="own/set", val_fraction=0.1))
    assert corpus.tokenizer.decode(corpus.split("val")) == "document 9\ndocument 19\n"
    assert corpus.tokenizer.decode(corpus.split("train")).count("\n") == 18
    data.prepare(config("hub", name="own/set", val_fraction=0.1, tokenizer="byte"))
    assert calls == [True]
    with pytest.raises(DataError, match=r"text_column=body .* columns are text"):
        data.prepare(config("hub", name="own/set", text_column="body"))
    with pytest.raises(ConfigError, match=r"data.name is missing"):
        data.prepare(config("hub"))


def test_a_download_that_breaks_off_leaves_nothing(config, monkeypatch, tmp_path):
    def rows():
        yield {"text": "first"}
        raise RuntimeError("connection lost")

    monkeypatch.setattr(corpora, "_load_dataset", lambda *_, streaming: {"train": rows()})
    with pytest.raises(DataError, match="broke off: connection lost"):
        data.prepare(config("hub", name="own/set"))
    assert [p.suffix for p in (tmp_path / "cache/text").iterdir()] == [".lock"]


# The token cache


def test_synthetic_has_its_floor_and_is_below_the_trigram(config):
    corpus = data.prepare(config(characters=200_000))
    assert list(corpus.splits) == ["train", "val", "test"]
    floors = counts(corpus, "floor_nats")
    assert all(f / n < 0.35 for f, n in zip(floors, counts(corpus, "characters"), strict=True))
    floor, trigram = references.floor(corpus), references.trigram(corpus)
    assert floor == pytest.approx(floors[1] / (len(corpus.split("val")) - 1))
    assert floor < 0.25 < 1.2 < trigram < 1.6


def test_second_opening_reads_the_cache_and_is_the_same(config, monkeypatch):
    first = data.prepare(config())
    monkeypatch.setattr(data, "_tokenise", None)
    second = data.prepare(config())
    assert second.fingerprint == first.fingerprint and second.meta == first.meta
    assert not second.split("train").flags.writeable
    assert json.loads(json.dumps(second.meta)) == second.meta


def test_corpora_and_tokenizers_have_their_own_fingerprints(config):
    configs = [config(), config(tokenizer="byte"), config(characters=20_000)]
    assert len({data.prepare(c).fingerprint for c in configs}) == 3


def _prepare_at_once(config, barrier, log):
    tokenise = data._tokenise

    def logged(*arguments):
        with log.open("a") as file:
            file.write("built\n")
        tokenise(*arguments)

    data._tokenise = logged
    barrier.wait(30)
    assert len(data.prepare(config).split("val")) >= 100_000


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
    data.prepare(config())
    assert folder.is_dir() and not stale.exists()


def _cache_folder(config):
    data.prepare(config())
    (meta,) = Path(config().cache_dir).glob("tokens/*/meta.json")
    return meta.parent


@pytest.mark.parametrize("damage", ["flip", "cut", "meta", "gone"])
def test_a_damaged_cache_is_an_error_that_says_what_to_delete(config, damage):
    folder = _cache_folder(config)
    tokens = folder / "val.bin"
    if damage == "flip":
        content = bytearray(tokens.read_bytes())
        content[1000] ^= 1
        tokens.write_bytes(content)
    elif damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-2])
    elif damage == "meta":
        (folder / "meta.json").write_text("[")
    else:
        tokens.unlink()
    with pytest.raises(DataError, match=f"{folder.name} is damaged .* delete that folder"):
        data.prepare(config())


def test_a_cache_that_cannot_be_written_names_the_key(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        data.prepare(config(cache_dir=str(tmp_path / "file")))


# Training batches


def batches(n=1000, block=8, batch=4, seed=1, **keys):
    return TrainBatches(
        np.arange(n, dtype=np.uint16), block_size=block, batch_size=batch, seed=seed, **keys
    )


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_batch_k_is_a_pure_function_of_seed_and_k():
    one, other = batches(), batches()
    expected = [one[k] for k in range(100)]
    for k in (99, 0, 57, 30, 31, 99):
        assert same(other[k], expected[k])
    assert not same(batches(seed=2)[0], expected[0])


def test_batch_has_shifted_targets_and_global_sample_numbers():
    batch = batches()[5]
    assert all(v.dtype == torch.int64 for v in batch.values())
    assert batch["idx"].shape == batch["targets"].shape == (4, 8)
    assert torch.equal(batch["targets"], batch["idx"] + 1)
    assert batch["sample"].tolist() == [20, 21, 22, 23]


@pytest.mark.parametrize("n", [9, 10, 16, 17, 24, 25, 26, 100, 1000, 1001])
def test_an_epoch_sees_each_token_about_once(n):
    dataset = batches(n, block=8, batch=1)
    offsets = set()
    for epoch in range(20):
        first = epoch * dataset.windows
        idx = torch.cat([dataset[first + i]["idx"] for i in range(dataset.windows)])
        seen = idx.flatten().tolist()
        assert len(set(seen)) == len(seen) and max(seen) < n - 1
        assert sorted(seen) == list(range(min(seen), min(seen) + len(seen)))
        assert len(seen) >= n - 2 * 8
        offsets.add(min(seen))
    if n >= 24:
        assert len(offsets) > 5


def test_epochs_have_different_orders():
    dataset = batches(10_000, batch=1)
    orders = [
        [int(dataset[e * dataset.windows + i]["idx"][0, 0]) for i in range(20)] for e in (0, 1)
    ]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


@pytest.mark.parametrize("n", [1000, 30])
def test_ranks_together_make_the_batch_of_one_process(n):
    whole = batches(n, batch=6)
    parts = [batches(n, batch=2, rank=r, world_size=3) for r in range(3)]
    for k in range(50):
        for key, value in whole[k].items():
            assert torch.equal(value, torch.cat([part[k][key] for part in parts]))


def test_too_short_corpora_are_errors():
    assert batches(9)[0]["idx"].shape == (4, 8)
    with pytest.raises(DataError, match=r"has 8 tokens, too few .* model.block_size=8"):
        batches(8)
    for n in (0, 1):
        with pytest.raises(DataError, match="at least 2"):
            EvalWindows(np.arange(n), context=8, stride=8)


# Evaluation windows


@pytest.mark.parametrize("n", [2, 3, 8, 9, 10, 16, 17, 18, 99, 100, 257])
@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 3), (8, 1), (1, 1), (64, 32)])
def test_every_token_but_the_first_is_scored_once(n, context, stride):
    windows = EvalWindows(np.arange(n, dtype=np.uint16), context=context, stride=stride)
    scored = []
    for i in range(len(windows)):
        idx, targets = windows[i]["idx"], windows[i]["targets"]
        assert len(idx) == len(targets) == min(context, n - 1)
        kept = targets != -100
        assert torch.equal(targets[kept], idx[kept] + 1)
        if i:  # a target has at least context - stride tokens before it
            assert int(kept.nonzero()[0]) >= context - stride
        scored += targets[kept].tolist()
    assert scored == list(range(1, n))
    assert windows.tokens_scored == n - 1
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_stride_is_checked():
    for stride in (0, 9):
        with pytest.raises(ConfigError, match="stride"):
            EvalWindows(np.arange(20), context=8, stride=stride)


# The trigram reference


def test_trigram_agrees_with_a_plain_count():
    rng = np.random.default_rng(0)
    train, text = rng.integers(0, 4, 60).tolist(), rng.integers(0, 5, 20).tolist()

    def p(w, h):
        lower = p(w, h[1:]) if h else 1 / 5
        after = [
            train[i + len(h)] for i in range(len(train) - len(h)) if train[i : i + len(h)] == h
        ]
        if not after:
            return lower
        return (after.count(w) + len(set(after)) * lower) / (len(after) + len(set(after)))

    assert sum(p(w, [1, 2]) for w in range(5)) == pytest.approx(1)
    expected = -sum(math.log(p(w, text[max(0, i - 1) : i + 1])) for i, w in enumerate(text[1:]))
    got = references.trigram_nats(np.array(train), np.array(text), vocab_size=5)
    assert got == pytest.approx(expected, rel=1e-12)


# Loaders


@pytest.fixture
def module(config):
    def make(workers=0, total=12, seed=3, **keys):
        c = config(num_workers=workers, **keys)
        return DataModule(data.prepare(c), c, block_size=16, seed=seed, total_batches=total)

    return make


def test_two_workers_give_the_batches_of_none(module):
    none, two = (list(module(workers).train_dataloader()) for workers in (0, 2))
    assert len(none) == len(two) == 12
    assert all(same(a, b) for a, b in zip(none, two, strict=True))


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
    c = config("text", path=str(tmp_path / "t.txt"))
    with pytest.raises(DataError, match=r"model.block_size=64"):
        DataModule(data.prepare(c), c, block_size=64, seed=0, total_batches=1)


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
        data.prepare(config()).meta = {}
