"""N-gram models equal their definition; the judge and the synthetic corpus's floor are in order."""

import math

import numpy as np
import pytest
from helpers import TEXT

from phasegpt.analysis.texts import NGramJudge
from phasegpt.core.errors import ConfigError
from phasegpt.data import ngram
from phasegpt.data.corpus import prepare
from phasegpt.data.ngram import WittenBell


def test_synthetic_has_its_floor_and_is_below_the_trigram(data_config):
    corpus = prepare(data_config(characters=200_000))
    assert list(corpus.splits) == ["train", "val", "test"]
    splits = corpus.meta["splits"]
    assert 200_000 <= splits["train"]["characters"] < 220_000
    assert all(split["floor_nats"] / split["characters"] < 0.35 for split in splits.values())
    floor, trigram = ngram.floor(corpus), ngram.trigram(corpus)
    assert floor == pytest.approx(splits["val"]["floor_nats"] / (len(corpus.split("val")) - 1))
    assert floor < 0.25 < 1.2 < trigram < 1.6


@pytest.mark.parametrize("order", [1, 3, 4, 7])
def test_witten_bell_sums_to_one_and_equals_its_recursion_at_any_order(order: int) -> None:
    train = [0, 1, 2, 0, 1, 3, 0, 1, 2, 0, 2, 2]
    text = [0, 1, 2, 0, 1, 2, 3, 3, 4, 0, 1]  # 4 was never seen

    def p(w: int, h: list[int]) -> float:
        lower = p(w, h[1:]) if h else 1 / 5
        after = [
            train[i + len(h)] for i in range(len(train) - len(h)) if train[i : i + len(h)] == h
        ]
        kinds = len(set(after))
        return (after.count(w) + kinds * lower) / (len(after) + kinds) if after else lower

    model = WittenBell(np.array(train), order=order, vocab_size=5)
    found = model.nats(np.array(text))
    histories = [text[max(0, i - order + 1) : i] for i in range(len(text))]
    expected = [-math.log(p(w, h)) for w, h in zip(text, histories, strict=True)]
    assert found == pytest.approx(expected, rel=1e-12)
    for h in histories:
        sums = [model.nats(np.array([*h, w]))[-1] for w in range(5)]
        assert np.exp(-np.array(sums)).sum() == pytest.approx(1)


def test_the_trigram_is_witten_bell_and_scores_all_but_the_first() -> None:
    train, text = np.random.default_rng(0).integers(0, 4, (2, 60))
    nats = WittenBell(train, order=3, vocab_size=5).nats(text)
    assert ngram.trigram_nats(train, text, vocab_size=5) == pytest.approx(nats[1:].sum())


def test_an_order_that_overflows_is_refused() -> None:
    assert WittenBell(np.arange(3), order=10, vocab_size=66).nats(np.arange(2)).shape == (2,)
    with pytest.raises(ConfigError, match="order=11"):
        WittenBell(np.arange(3), order=11, vocab_size=66)


def test_the_judge_prefers_english_to_noise_and_uses_the_context() -> None:
    judge = NGramJudge(TEXT)
    english, noise = "summer's day shall fade", "qzx summe fdaeld hsl'ary"
    assert judge.nats_per_char(english) < judge.nats_per_char(noise) - 1
    with_context = judge.nats_per_char("mmer's day", "to a su")
    assert with_context < judge.nats_per_char("mmer's day") - 0.1
    assert with_context == judge.nats_per_char("mmer's day", "\u4f60 so long, compare thee to a su")
    assert judge.nats_per_char("\u4f60\u597d") == judge.nats_per_char("\u00e9\u00e8") < 10
    assert math.isnan(judge.nats_per_char(""))
    with pytest.raises(ConfigError, match="empty"):
        NGramJudge("")
