"""The text metrics give the numbers that one gets by hand."""

import math

import pytest
from helpers import TEXT

from phasegpt.analysis import texts
from phasegpt.data import synthetic


def test_a_word_is_lower_case_without_stops_and_commas() -> None:
    assert texts.words("The CAT,\nsat. It's  a cat!") == ["the", "cat", "sat", "it's", "a", "cat!"]


def test_diversity_is_different_words_over_words() -> None:
    assert texts.unique_words("The cat, the dog.") == 3 / 4
    assert texts.unique_words("") == 0


def test_distinct_counts_all_texts_and_no_gram_over_a_border() -> None:
    assert texts.distinct(["a b a b", "a b"], 2) == 2 / 4  # ab ba ab | ab
    assert texts.distinct(["a b", "b a"], 3) == 0


def test_repetition_is_the_share_of_grams_that_were_there_before() -> None:
    assert texts.repetition("a b c d a b c d", 4) == pytest.approx(1 / 5)
    assert texts.repetition("abab", 2, "character") == pytest.approx(1 / 3)
    assert texts.repetition("a b", 4) == 0
    with pytest.raises(ValueError, match="n=0"):
        texts.repetition("a b", 0)


def test_self_bleu_by_hand() -> None:
    assert texts.self_bleu(["a b", "a c"], order=1) == pytest.approx(2 / 3)  # (1 + 1) / (2 + 1)
    assert texts.self_bleu(["a b", "a c"], order=2) == pytest.approx((2 / 3 * 1 / 2) ** 0.5)
    # a of the first text counts once, because the other has it once; the other's a counts.
    assert texts.self_bleu(["a a b", "a c"], order=1) == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert texts.self_bleu(["a b c d"] * 3) == pytest.approx(1)
    assert math.isnan(texts.self_bleu(["a b"]))


def test_self_bleu_clips_at_the_largest_count_in_any_other_text() -> None:
    rows = ["a a a", "a a b", "a c c"]
    expected = [(2 + 1) / 4, (2 + 1) / 4, (1 + 1) / 4]  # matches 2 of 3, a a, a
    assert texts.self_bleu(rows, order=1) == pytest.approx(sum(expected) / 3)


def test_zipf_exponent_of_counts_proportional_to_one_over_rank() -> None:
    text = " ".join(["a"] * 12 + ["b"] * 6 + ["c"] * 4 + ["d"] * 3)
    assert texts.zipf([text]) == pytest.approx(1)
    assert texts.zipf(["a b c"]) == pytest.approx(0)
    assert math.isnan(texts.zipf(["a a"]))


def test_jensen_shannon_divergence_by_hand() -> None:
    assert texts.jsd(["aa"], ["ab"], 1) == pytest.approx(
        (math.log2(1 / 0.75) + 0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25)) / 2
    )
    assert texts.jsd(["abcab"], ["abcab"], 3) == 0
    assert texts.jsd(["to be"], ["or not"], 1, "word") == pytest.approx(1)
    assert math.isnan(texts.jsd(["ab"], ["abc"], 3))


def test_real_words_are_those_of_the_vocabulary() -> None:
    known = frozenset(texts.words("Shall I compare thee"))
    assert texts.real_word_rate(["I compare.", "glorb thee"], known) == 3 / 4
    assert texts.real_word_rate([""], known) == 0


def windows(text: str, length: int = 240) -> list[str]:
    return [text[i : i + length] for i in range(0, len(text) - length, length)]


def test_loops_are_seen_in_looped_texts_and_not_in_others() -> None:
    human = windows(synthetic.generate(3, 24000)) + windows(TEXT)
    assert len(human) > 90
    assert sum(map(texts.looped, human)) <= 0.05 * len(human)
    # a block of 1 to 80 characters, said again and again from somewhere on, cut anywhere
    looped = [
        (text[:60] + text[60 : 60 + period] * 240)[: 225 + period % 13]
        for text, period in zip(human, range(1, 81), strict=False)
    ]
    assert sum(map(texts.looped, looped)) >= 0.95 * len(looped)


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("x" * 74, False),  # too short to tell
        ("x" * 75, True),
        ("The same long line of well over sixty characters, said just twice. " * 2, True),
        ("".join("the " * n + "thear\n" for n in (5, 7, 4, 6, 8, 5)), True),  # it drifts
        ("no " * 40 + "Now it went on to other things, and said them once, in its words.", False),
        ("", False),
    ],
)  # fmt: skip
def test_what_counts_as_a_loop(text: str, loop: bool) -> None:
    assert texts.looped(text) is loop
