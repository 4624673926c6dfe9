"""MAD's recall and memorisation against an oracle that reads a row with a dictionary."""

import numpy as np
import pytest
from test_tasks import task

from phasegpt.core.errors import ConfigError
from phasegpt.data.windows import IGNORED


@pytest.mark.parametrize("name", ["recall", "noisy_recall"])
def test_recall_asks_for_the_values_of_keys_that_came_before(name):
    t = task(name)
    rows = t.scored("val", np.arange(200), t.config.trained)
    K, told = t.keys, t.keys + t.values
    noisy = 0
    for idx, targets in zip(rows.idx.tolist(), rows.targets.tolist(), strict=True):
        known: dict[int, int] = {}
        for i in range(0, len(idx), 2):
            key, target, last = idx[i], targets[i], i + 1 == len(idx)
            noisy += key >= told
            assert key < K or key >= told
            assert target == known.get(key, IGNORED)
            assert last or targets[i + 1] == IGNORED
            if key < K and not last:
                assert K <= idx[i + 1] < told
                known[key] = idx[i + 1]
            elif key >= told:
                assert idx[i + 1] >= told
        assert last and target != IGNORED
    share = noisy / (200 * t.config.length / 2)
    assert share == pytest.approx(getattr(t.config, "noise", 0) * 30.5 / 32, abs=0.015)


@pytest.mark.parametrize("name", ["recall", "noisy_recall", "fuzzy_recall"])
def test_recall_is_trained_on_every_next_token(name):
    rows = task(name).train(0, np.arange(30))
    assert np.array_equal(rows.idx[:, 1:], rows.targets[:, :-1])
    assert (rows.targets != IGNORED).all()


def motifs(tokens: list[int], split: int) -> list[tuple[int, ...]]:
    """A row as keys and values in turn: where the kind of token changes, a motif ends."""
    found: list[list[int]] = []
    for token in tokens:
        if not found or (token < split) != (found[-1][-1] < split):
            found.append([])
        found[-1].append(token)
    return [tuple(m) for m in found]


def test_fuzzy_recall_asks_for_values_told_before():
    t = task("fuzzy_recall", length=128)
    rows = t.scored("val", np.arange(100), 128)
    pad, sizes = t.vocab_size - 1, set()
    for idx, targets in zip(rows.idx.tolist(), rows.targets.tolist(), strict=True):
        whole = [*idx, targets[-1]]
        start = whole.index(next(x for x in whole if x != pad))
        found = motifs(whole[start:], t.keys)
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        expected: list[int] = [IGNORED] * start
        for key, value in zip(found[::2], found[1::2], strict=True):
            assert len(key) == 3 and len(set(key)) == 3 and len(set(value)) == len(value)
            sizes.add(len(value))
            expected += [IGNORED] * 3 + (list(value) if key in known else [IGNORED] * len(value))
            assert known.setdefault(key, value) == value
        assert targets == expected[1:] and targets[-1] != IGNORED
    assert sizes == {1, 2, 3}
    train = motifs([x for x in t.train(0, np.arange(1)).idx[0].tolist() if x != pad], t.keys)
    assert {len(key) for key in train[::2]} == {1, 2, 3}


def test_memorization_has_one_map_for_every_row_and_run():
    t, known = task("memorization"), {}
    parts = [t.train(s, np.arange(60)) for s in (0, 1)] + [t.scored("val", np.arange(60), 63)]
    for rows in parts:
        assert (rows.idx[:, 1::2] == t.vocab_size - 1).all()
        assert (rows.targets[:, ::2] == IGNORED).all()
        keys, values = rows.idx[:, ::2].ravel().tolist(), rows.targets[:, 1::2].ravel().tolist()
        for key, value in zip(keys, values, strict=True):
            assert known.setdefault(key, value) == value
    assert sorted(known) == list(range(63)) and len(set(known.values())) == 63
    assert all(63 <= value < 127 for value in known.values())


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("recall", {"length": 7}),
        ("noisy_recall", {"noise_tokens": 30}),
        ("fuzzy_recall", {"motif": 8}),
        ("fuzzy_recall", {"length": 18}),
        ("memorization", {"length": 3}),
        ("memorization", {"vocab_size": 4}),  # one key: nothing to learn
        ("noisy_recall", {"noise": 0.0}),  # and 16 tokens that nothing has
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, keys):
    with pytest.raises(ConfigError, match=r"data\.\w+="):
        task(name, **keys)


@pytest.mark.parametrize(("length", "noise"), [(4, 0.2), (8, 0.9), (16, 0.95)])
def test_what_is_asked_for_in_noise_was_told_in_the_row(length, noise):
    t = task("noisy_recall", length=length, noise=noise)
    rows = t.scored("val", np.arange(500), length)
    for idx, targets in zip(rows.idx.tolist(), rows.targets.tolist(), strict=True):
        told = dict(zip(idx[:-1:2], idx[1::2], strict=True))
        assert told[idx[-1]] == targets[-1]
