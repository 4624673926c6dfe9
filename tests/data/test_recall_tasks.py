"""Recall tasks against an oracle that reads a row as a person would."""

import numpy as np
import pytest
from test_tasks import task

from phasegpt.core.errors import ConfigError
from phasegpt.data.recall_tasks import MQARConfig
from phasegpt.data.windows import IGNORED


def read(row: list[int], pairs: int, half: int) -> list[int]:
    """Answers of MQAR: what followed a key, wherever it comes again."""
    known: dict[int, int] = {}
    answers = []
    for t, token in enumerate(row):
        seen = token in known and t >= 2 * pairs and 0 < token < half
        answers.append(known[token] if seen else IGNORED)
        if t < 2 * pairs and t % 2 == 0:
            known[token] = row[t + 1]
    return answers


@pytest.mark.parametrize("keys", [{}, {"length": 128, "pairs": 8}, {"length": 16, "pairs": 4}])
def test_mqar_asks_for_the_value_of_every_key_once(keys):
    t = task("mqar", **keys)
    rows = t.scored("val", np.arange(300), t.config.pairs)
    P, half = t.config.pairs, t.config.vocab_size // 2
    for idx, targets in zip(rows.idx.tolist(), rows.targets.tolist(), strict=True):
        assert targets == read(idx, P, half)
        assert sum(target != IGNORED for target in targets) == P
        keys_P, values_P = idx[: 2 * P : 2], idx[1 : 2 * P : 2]
        assert min(keys_P) > 0 and max(keys_P) < half <= min(values_P)
        assert sum(token != 0 for token in idx) == 3 * P
        assert all(i % 2 == 0 for i, target in enumerate(targets) if target != IGNORED)


def test_mqar_gaps_follow_the_power_law():
    t = task("mqar", pairs=1, length=24, power_a=0.5)
    place = (t.scored("val", np.arange(20_000), 1).targets != IGNORED).argmax(axis=1)
    weights = np.arange(1, 12) ** -0.5
    found = np.bincount((place - 2) // 2, minlength=11) / 20_000
    assert np.allclose(found, weights / weights.sum(), atol=0.012)


def test_mqar_can_fill_its_empty_places():
    t = task("mqar", random_non_queries=True)
    rows = t.scored("val", np.arange(50), 4)
    assert (rows.idx == 0).mean() < 0.02
    assert (rows.targets != IGNORED).sum() == 50 * t.config.pairs


@pytest.mark.parametrize("keys", [{"length": 14}, {"length": 17}, {"vocab_size": 8}])
def test_mqar_refuses_what_does_not_fit(keys):
    with pytest.raises(ConfigError, match=r"data\.(length|vocab_size)="):
        MQARConfig(corpus="mqar", batch_size=1, **keys)
