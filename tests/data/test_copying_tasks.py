"""Copying against an oracle that reads a row as text."""

import numpy as np
import pytest
from test_tasks import task

from phasegpt.core.errors import ConfigError
from phasegpt.data.windows import IGNORED


def test_copying_asks_for_the_string_again():
    t = task("copying", length=9, val_lengths=[4, 9, 14])
    lengths = set()
    for train, rows in [(True, t.train(0, np.arange(300)))] + [
        (False, t.scored("val", np.arange(20), n)) for n in (4, 9, 14)
    ]:
        for idx, targets in zip(rows.idx.tolist(), rows.targets.tolist(), strict=True):
            bar = idx.index(t.bar)
            string = idx[1:bar]
            lengths.add(len(string))
            assert idx[0] == t.begin and max(string) < 26
            answer = [*string, t.stop] if train else string
            expected = [IGNORED] * bar + answer
            assert targets == expected + [IGNORED] * (len(idx) - len(expected))
            assert idx[bar + 1 : bar + 1 + len(string)] == string
            assert set(idx[bar + 1 + len(string) :]) <= {t.stop}
    assert lengths == {*range(2, 10), 14}


def test_copying_lengths_are_uniform():
    t = task("copying", min_length=2, length=9, val_lengths=[4])
    rows = t.train(0, np.arange(4000))
    counts = np.bincount((rows.idx == t.bar).argmax(axis=1) - 1)[2:]
    assert ((counts - 500) ** 2 / 500).sum() < 25  # chi square of 7, p = 0.001


def test_selective_copy_asks_for_what_is_not_blank_in_order():
    t = task("selective_copy")
    N, blank, question = 16, 14, 15
    rows = t.scored("val", np.arange(300), N)
    first = np.zeros(N)
    for idx, targets in zip(rows.idx.tolist(), rows.targets.tolist(), strict=True):
        asked = idx.index(question)
        kept = [token for token in idx[:asked] if token != blank]
        assert idx[asked + 1 :] == [blank] * N == [blank] * (len(idx) - asked - 1)
        assert targets == [IGNORED] * (asked + 1) + kept and len(kept) == N
        assert idx[asked - 1] != blank  # every blank stands before a token
        places = [i for i, token in enumerate(idx[:asked]) if token != blank]
        first += np.diff([-1, *places]) - 1
    assert np.allclose(first / 300, (128 - 33) / N, atol=0.6)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("copying", {"min_length": 40}),
        ("copying", {"val_lengths": [64]}),
        ("copying", {"min_length": 20, "val_lengths": [8, 32]}),
        ("selective_copy", {"length": 33}),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, keys):
    with pytest.raises(ConfigError, match=r"data\.\w+="):
        task(name, **keys)
