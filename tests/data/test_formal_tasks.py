"""Regular languages and groups against oracles: Python's own arithmetic, permutation matrices."""

import itertools

import numpy as np
import pytest
from test_tasks import task

from phasegpt.core.errors import ConfigError
from phasegpt.data.windows import IGNORED


def matrices(n: int) -> list[np.ndarray]:
    return [np.eye(n)[list(p)] for p in itertools.permutations(range(n))]


def product(symbols: list[int], n: int) -> int:
    """The permutation of a string, as a matrix; rows of a permuted identity compose like tuples."""
    whole = np.eye(n)
    for s in symbols:
        whole = matrices(n)[s] @ whole
    return next(i for i, m in enumerate(matrices(n)) if np.array_equal(m, whole))


ORACLES = {
    "parity": lambda s: s.count(1) % 2,
    "even_pairs": lambda s: sum(f"{a}{b}" in ("01", "10") for a, b in itertools.pairwise(s)) % 2,
    "cycle_navigation": lambda s: sum({5: -1, 6: 0, 7: 1}[a] for a in s) % 5,
    "modular_arithmetic": lambda s: eval("".join("01234+-*"[a] for a in s)) % 5,
    "state_s2": lambda s: product(s, 2),
    "state_s3": lambda s: product(s, 3),
}
every = pytest.mark.parametrize("name", ORACLES)


@every
@pytest.mark.parametrize("scored", ["end", "every"])
def test_answers_are_the_oracles(name, scored):
    if (scored == "every") == (name == "modular_arithmetic"):
        return
    if scored == "end" and name.startswith("state"):
        return
    t = task(name, scored=scored, length=12, val_lengths=[6, 12, 21])
    parts = [t.train(0, np.arange(60)), *(t.scored("val", np.arange(20), n) for n in (6, 12, 21))]
    for rows in parts:
        for idx, targets in zip(rows.idx.tolist(), rows.targets.tolist(), strict=True):
            for place, target in enumerate(targets):
                if target != IGNORED:
                    string = idx[:place] if scored == "end" else idx[: place + 1]
                    assert target == ORACLES[name](string)


def test_end_asks_once_behind_strings_of_all_lengths():
    t = task("parity", scored="end", length=8, val_lengths=[4, 8, 12])
    rows = t.train(0, np.arange(4000))
    assert ((rows.targets != IGNORED).sum(axis=1) == 1).all()
    length = (rows.targets != IGNORED).argmax(axis=1)
    counts = np.bincount(length, minlength=9)[1:]
    assert ((counts - 500) ** 2 / 500).sum() < 25  # chi square of 7, p = 0.001
    assert ((rows.idx == t.question) == (np.arange(9) >= length[:, None])).all()
    longer = t.scored("val", np.arange(5), 12)
    assert longer.idx.shape == (5, 13) and (longer.targets[:, 12] != IGNORED).all()


def test_every_asks_after_every_symbol_and_validation_after_the_last():
    t = task("state_s3", length=8, val_lengths=[4, 12])
    assert (t.train(0, np.arange(9)).targets != IGNORED).all()
    rows = t.scored("val", np.arange(9), 12)
    assert (rows.targets[:, :-1] == IGNORED).all() and (rows.targets[:, -1] != IGNORED).all()


@every
def test_answers_at_the_end_are_near_uniform(name):
    t = task(name)
    rows = t.scored("val", np.arange(4000), t.config.loads[-1])
    answers = rows.targets[rows.targets != IGNORED]
    assert np.allclose(np.bincount(answers) / 4000, 1 / t.states, atol=0.03)


def test_arithmetic_strings_end_in_a_number():
    t = task("modular_arithmetic", length=9, val_lengths=[8, 9])
    rows = t.train(0, np.arange(200))
    length = (rows.targets != IGNORED).argmax(axis=1)
    assert set(length.tolist()) == {1, 3, 5, 7, 9}
    assert (t.scored("val", np.arange(5), 8).targets[:, 7] != IGNORED).all()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"val_lengths": [20, 10]}, "that rise"),
        ({"val_lengths": []}, "that rise"),
        ({"val_lengths": [50, 60]}, "has none up to 40"),
    ],
)
def test_lengths_must_rise_from_a_trained_one(keys, says):
    with pytest.raises(ConfigError, match=says):
        task("parity", **keys)
    with pytest.raises(ConfigError, match="not for modular_arithmetic"):
        task("modular_arithmetic", scored="every")


def test_learned_positions_end_with_the_training():
    config = task("parity").config
    assert config.loads_with(False) == (10, 20, 40)
    assert config.loads_with(True) == (10, 20, 40, 60, 80, 100)


@pytest.mark.parametrize(("length", "lengths"), [(39, [40]), (40, [39, 40]), (20, [39, 40])])
def test_a_length_of_arithmetic_does_not_count_twice(length, lengths):
    with pytest.raises(ConfigError, match="strings of 40 symbols have 39"):
        task("modular_arithmetic", length=length, val_lengths=[9, *lengths])


@pytest.mark.parametrize("keys", [{"length": 1, "val_lengths": [1]}, {"val_lengths": [1, 20]}])
def test_even_pairs_of_one_symbol_are_refused(keys):
    with pytest.raises(ConfigError, match="one symbol has no neighbours"):
        task("even_pairs", **keys)
