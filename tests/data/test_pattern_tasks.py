"""Repeated patterns against an oracle that looks for them in the row."""

import numpy as np
import pytest
from test_tasks import task

from phasegpt.core.errors import ConfigError
from phasegpt.data.windows import IGNORED


@pytest.mark.parametrize("repeats", [1, 16])
def test_induction_asks_for_what_followed_the_token_before(repeats):
    t = task("induction", repeats=repeats)
    rows = t.scored("val", np.arange(200), repeats)
    for idx, targets in zip(rows.idx.tolist(), rows.targets.tolist(), strict=True):
        asked = [i for i, target in enumerate(targets) if target != IGNORED]
        a = idx[asked[0]]
        places = [i for i, token in enumerate(idx) if token == a]
        assert places[1:] == asked and len(asked) == repeats
        assert {targets[i] for i in asked} == {idx[places[0] + 1]} != {a}
        assert {idx[i + 1] for i in places} == {idx[places[0] + 1]}


def test_induction_places_are_uniform_over_those_that_do_not_meet():
    t = task("induction", length=6, repeats=1, vocab_size=50)
    rows = t.scored("val", np.arange(6000), 1)
    second = (rows.targets != IGNORED).argmax(axis=1)
    first = (rows.idx == rows.idx[np.arange(6000), second][:, None]).argmax(axis=1)
    pairs = np.bincount(first * 6 + second, minlength=36).reshape(6, 6)
    allowed = [(i, j) for i in range(5) for j in range(i + 2, 5)]
    assert pairs.sum() == sum(pairs[p] for p in allowed)
    assert all(abs(pairs[p] - 1000) < 130 for p in allowed)


def test_periodic_rows_repeat_their_motif_up_to_noise():
    t = task("periodic", noise=0.0)
    for load in t.config.loads:
        rows = t.scored("val", np.arange(20), load)
        whole = np.concatenate([rows.idx, rows.targets[:, -1:]], axis=1)
        assert np.array_equal(whole[:, load:], whole[:, :-load])
        assert (rows.targets[:, : 2 * load - 1] == IGNORED).all()
        assert np.array_equal(rows.targets[:, 2 * load - 1 :], whole[:, 2 * load :])


def test_periodic_noise_is_as_said():
    t = task("periodic", noise=0.3, length=512)
    rows = t.scored("val", np.arange(200), 8)
    whole = np.concatenate([rows.idx, rows.targets[:, -1:]], axis=1)[:, :512].reshape(200, 64, 8)
    counts = np.stack([(whole == v).sum(axis=1) for v in range(16)])
    motif = counts.argmax(axis=0)  # of 64 copies the commonest token
    right = (whole == motif[:, None]).mean()
    assert right == pytest.approx(1 - 0.3 * 15 / 16, abs=0.01)


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_the_ceiling_of_periodic_is_a_vote_over_the_copies_so_far(noise):
    t = task("periodic", noise=noise)
    rng, found = np.random.default_rng(0), {}
    for load in t.config.loads:
        rows = t.scored("val", np.arange(2000), load)
        whole = np.concatenate([rows.idx, rows.targets[:, -1:]], axis=1)
        votes, right = np.zeros((2000, load, 16)), []
        for place in range(257):
            seen = votes[:, place % load]  # [2000,16] times that each token was there
            if place >= 2 * load:
                told = (seen + rng.random(seen.shape) / 2).argmax(axis=1)  # ties at random
                right.append(told == whole[:, place])
            seen[np.arange(2000), whole[:, place]] += 1
        found[load] = np.array(right)
    trained = np.concatenate([v.ravel() for load, v in found.items() if load <= 32]).mean()
    beyond = np.mean([v.mean() for load, v in found.items() if load > 32])
    assert t.ceiling == pytest.approx(trained, abs=0.002)
    assert t.ceiling_beyond == pytest.approx(beyond, abs=0.002)
    assert t.meta()["ceiling_beyond"] == t.ceiling_beyond < t.ceiling


def test_the_ceiling_of_periodic_holds_with_many_tokens_and_without_noise():
    assert task("periodic", vocab_size=2**24).ceiling == pytest.approx(0.95, abs=0.005)
    assert task("periodic", noise=0.0).ceiling == pytest.approx(1)
    most = task("periodic", length=8 * 171 - 1, val_periods=[8, 16])  # 170 copies
    assert most.ceiling == pytest.approx(0.95 + 0.05 / 16, abs=0.005)


def test_periods_of_validation_leave_the_training_alone():
    few, many = task("periodic", val_periods=[8]), task("periodic")
    number = np.arange(50)
    assert np.array_equal(few.train(3, number).idx, many.train(3, number).idx)
    assert np.array_equal(few.scored("val", number, 8).idx, many.scored("val", number, 8).idx)


def test_periods_of_training_are_uniform():
    t = task("periodic", noise=0.0, vocab_size=4000, min_period=3, period=8, val_periods=[8])
    rows = t.train(0, np.arange(1200))
    period = (rows.idx[:, 1:] == rows.idx[:, :1]).argmax(axis=1) + 1
    counts = np.bincount(period)[3:9]
    assert counts.sum() > 1190 and all(abs(counts - 200) < 55)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("induction", {"repeats": 64}),
        ("periodic", {"length": 128}),
        ("periodic", {"min_period": 33}),
        ("periodic", {"val_periods": [40]}),
        ("periodic", {"val_periods": [2, 8]}),
        ("periodic", {"val_periods": [8], "length": 8 * 171}),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, keys):
    with pytest.raises(ConfigError, match=r"data\.\w+="):
        task(name, **keys)
