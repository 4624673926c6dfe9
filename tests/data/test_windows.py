"""Training batches as a function of (seed, k), and windows that score every token once."""

import numpy as np
import pytest
import torch

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data.windows import EvalWindows, TrainBatches

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


@pytest.mark.parametrize("batch", [1, 4])
def test_documents_change_targets_and_no_input(batch):
    documents = np.arange(0, 1000, 5)
    found, plain = batches(batch=batch, documents=documents)[0], batches(batch=batch)[0]
    assert torch.equal(found["idx"], plain["idx"])
    hidden = found["targets"] == -100
    assert torch.equal(hidden, plain["targets"] % 5 == 0) and hidden.any()
    assert torch.equal(found["targets"][~hidden], plain["targets"][~hidden])


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
