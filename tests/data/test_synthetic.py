"""The embedded corpus: one source that writes texts and knows their exact probability."""

import hashlib
import math
import random
from collections import Counter
from itertools import pairwise

import pytest

from phasegpt.core.errors import DataError
from phasegpt.data import _grammar, synthetic
from phasegpt.data.ngram import trigram_nats
from phasegpt.data.tokenizers import CharTokenizer


@pytest.fixture(scope="module")
def text():
    return synthetic.generate(7, 300_000)


def test_same_seed_same_text_and_another_seed_another():
    assert synthetic.generate(3, 20_000) == synthetic.generate(3, 20_000)
    assert synthetic.generate(3, 20_000) != synthetic.generate(4, 20_000)


def test_text_is_pinned_across_machines_and_python_versions():
    digest = hashlib.sha256(synthetic.generate(synthetic.SOURCE_SEED, 50_000).encode()).hexdigest()
    assert digest == synthetic.fingerprint()
    assert digest.startswith("6706880fc576f05c"), "the grammar changed: pin the new text"


def test_text_ends_with_the_scene_that_reaches_the_length_asked_for():
    assert 100_000 <= len(synthetic.generate(1, 100_000)) < 110_000


def test_alphabet_is_pinned_and_all_of_it_occurs(text):
    assert "".join(sorted(set(text))) == synthetic.ALPHABET
    assert len(synthetic.ALPHABET) == synthetic.VOCAB_SIZE
    splits = synthetic.splits(10_000)
    assert list(splits) == ["train", "val", "test"]
    assert set("".join(splits.values())) == set(synthetic.ALPHABET)


def test_text_is_a_play_of_whole_scenes(text):
    assert text.startswith("SCENE: the ")
    assert text.endswith("Exeunt.\n\n")
    assert "{" not in text
    for scene in text.split("SCENE: ")[1:]:
        _, entrance, blank, *lines = scene.splitlines()
        assert entrance.startswith("Enter ") and not blank and lines[-2:] == ["Exeunt.", ""]
        labels = {line.split(".")[0] for line in lines[:-2] if line.split(".")[0].isupper()}
        cast = " ".join([entrance, *(line for line in lines if line.startswith("Enter "))])
        assert all(label.capitalize() in cast for label in labels)


def test_log_prob_is_what_the_sampler_added_up():
    class Adding(synthetic._Sampler):
        log_prob = 0.0

        def pick(self, options, weights=None):
            chosen = super().pick(options, weights)
            self.log_prob += synthetic._log_share(options, weights, chosen)
            return chosen

    sampler = Adding(11)
    while sampler.length < 50_000:
        _grammar.write_scene(sampler)
    text = "".join(sampler.pieces)
    assert text == synthetic.generate(11, 50_000)
    assert synthetic.log_prob(text) == pytest.approx(sampler.log_prob, rel=1e-12)


def test_log_prob_is_additive_over_scenes():
    a, b = synthetic.generate(1, 1), synthetic.generate(2, 1)
    both = synthetic.log_prob(a) + synthetic.log_prob(b)
    assert synthetic.log_prob(a + b) == pytest.approx(both, rel=1e-12)


def test_a_tampered_text_is_rejected_with_the_place():
    text = synthetic.generate(5, 2_000)
    rng = random.Random(0)
    rejected = 0
    for _ in range(200):
        i = rng.randrange(len(text))
        other = rng.choice([c for c in synthetic.ALPHABET if c != text[i]])
        try:
            synthetic.log_prob(text[:i] + other + text[i + 1 :])
        except DataError as error:
            assert "at character" in str(error)
            rejected += 1
    assert rejected >= 195  # one letter seldom makes another word of the source
    for bad in ("", text[:-1], text[1:], text + "SCENE: the ", text.lower()):
        with pytest.raises(DataError):
            synthetic.log_prob(bad)


def test_agreement_with_what_was_said_earlier_is_enforced():
    text = synthetic.generate(9, 200_000)
    place = text.index("Why do you fear him")
    with pytest.raises(DataError):
        synthetic.log_prob(text[:place] + "Why do you fear her" + text[place + 19 :])


def test_choices_have_the_frequencies_that_are_scored():
    """Over 3,000 scenes, places and sizes of the cast stand where their probabilities say."""
    scenes = [synthetic.generate(seed, 1) for seed in range(3_000)]
    places = Counter(scene.split()[2] for scene in scenes)
    n, p = len(scenes), 1 / len(_grammar.PLACES)
    assert set(places) == set(_grammar.PLACES)
    assert max(abs(c - n * p) for c in places.values()) < 5 * math.sqrt(n * p)
    three = sum("," in scene.splitlines()[1] for scene in scenes)
    assert abs(three - n * 2 / 3) < 5 * math.sqrt(n * 2 / 9)


def test_no_option_is_the_beginning_of_another(monkeypatch):
    def strict(self, options, weights=None):
        ordered = sorted(options)
        assert not any(b.startswith(a) for a, b in pairwise(ordered)), options
        assert weights is None or (len(weights) == len(options) and min(weights) > 0)
        return pick(self, options, weights)

    pick = synthetic._Sampler.pick
    monkeypatch.setattr(synthetic._Sampler, "pick", strict)
    synthetic.generate(21, 200_000)


def test_floor_is_far_below_a_trigram_model(text):
    tokenizer = CharTokenizer(synthetic.ALPHABET)
    val = synthetic.generate(8, 50_000)
    trigram = trigram_nats(
        tokenizer.encode(text), tokenizer.encode(val), vocab_size=tokenizer.vocab_size
    )
    floor = -synthetic.log_prob(val)
    bits = len(val) * math.log(2)
    assert 0.25 < floor / bits < 0.5
    assert 1.5 < trigram / bits < 2.5
