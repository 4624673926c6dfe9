"""Stagnation is seen, the shock has the stated size, and every event is told."""

import re
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from helpers import TEXT
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import (
    EntropyShockSampler,
    KVShock,
    LoopDetector,
    LowEntropy,
    Prompt,
    Stop,
    decode,
)


def texts(looped: bool) -> list[Tensor]:
    """100 texts of 240 characters; looped ones fall into a loop of 1 to 40 characters.

    People wrote the sonnet and the pages of Python's reference that pydoc holds.
    """
    pages = "\n".join(topics[name] for name in sorted(topics))
    source = TEXT + " ".join(re.sub(r"[^A-Za-z ,.;:']+", " ", pages).split())
    found = []
    for i in range(100):
        text = source[i * 3500 : i * 3500 + 240]
        if looped:
            period = 1 + i * 39 // 99
            head = text[: 60 + i % 40]
            text = (head + head[-period:] * 240)[:240]
        found.append(torch.tensor([ord(c) for c in text]))
    return found


def test_the_loop_detector_finds_loops_and_lets_human_text_be() -> None:
    detector = LoopDetector(match=16)
    looped = [detector.first(ids) for ids in texts(looped=True)]
    human = [detector.first(ids) for ids in texts(looped=False)]
    assert sum(at is not None for at in looped) >= 95
    assert sum(at is not None for at in human) <= 5
    # A loop of period p that begins at t is told when it has been read twice, at the latest.
    assert max(at for at in looped if at is not None) <= 100 + 2 * 40 + 16 + 4


def test_a_loop_shorter_than_the_match_overlaps_itself() -> None:
    ids = torch.tensor([9, 8, 7, *[1, 2] * 20])
    assert LoopDetector(match=16, patience=1).first(ids) == 3 + 16 + 2
    assert LoopDetector(match=16, patience=4).first(ids) == 3 + 16 + 2 + 3
    long = torch.tensor([*range(100, 130)] * 2)  # a period longer than the match: twice, whole
    assert LoopDetector(match=16, patience=1).first(long) == 60
    assert LoopDetector(match=50).first(ids) is None


def run(model: Any, ids: Any, shock: KVShock, **options: Any) -> Tensor:
    if "seeds" not in options:
        options["seeds"] = range(1, len(ids) + 1)
    return decode(model, ids, intervention=shock, **{"max_new_tokens": 30, **options})


def always(patience: int = 3) -> LowEntropy:
    return LowEntropy(threshold=100.0, patience=patience)


def test_events_come_after_the_patience_and_the_cooldown(hf: Callable, ids: Callable) -> None:
    shock = KVShock(0.1, detector=always(3), cooldown=7, window=4)
    run(hf("gpt2"), ids(2, 5), shock)
    for row in (0, 1):
        at = [e.token for e in shock.events if e.row == row]
        # The first step is the second new token; the third stuck one is the fourth.
        assert at == [8, 15, 22, 29]
    assert all(e.positions == 4 for e in shock.events)
    assert len(shock.report().splitlines()) == 1 + len(shock.events)


def test_patience_does_not_survive_into_the_next_text(hf: Callable, ids: Callable) -> None:
    shock = KVShock(0.1, detector=always(4), cooldown=100)
    run(hf("gpt2"), ids(1, 5), shock, max_new_tokens=4)
    assert shock.events == []
    run(hf("gpt2"), ids(1, 5), shock, max_new_tokens=4)
    assert shock.events == []


@pytest.mark.parametrize("kind", ["gpt2", "llama", "kuramoto", "hybrid"])
@pytest.mark.parametrize("target", ["keys", "values", "both"])
def test_the_shock_is_gaussian_of_the_stated_size_in_the_window_alone(
    kind: str, target: str, hf: Callable, ids: Callable, make_model: Any, roughen: Any
) -> None:
    is_hf = kind in ("gpt2", "llama")
    model = hf(kind) if is_hf else roughen(make_model(kind, n_embd=64, n_head=2))
    before: list[Any] = []

    class Watched(KVShock):
        def _shock(self, i: int) -> int:
            before.extend((p.keys.clone(), p.values.clone()) for p in self._parts)
            return super()._shock(i)

    shock = Watched(0.5, detector=always(1), cooldown=100, window=16, target=target)
    run(model, ids(1, 30), shock, max_new_tokens=2)
    assert len(shock.events) == 1
    for part, (keys, values) in zip(shock._parts, before, strict=True):
        width = keys.shape[-1] - 2 * part.oscillators
        for name, old, new in (("keys", keys[..., :width], part.keys[..., :width]),
                               ("values", values, part.values)):  # fmt: skip
            change = (new - old)[:, :, : old.shape[2]]
            assert (change[:, :, :-16] == 0).all()
            if target in (name, "both"):
                size = change[:, :, -16:].std((2, 3)) / old[:, :, -16:].std((2, 3))
                torch.testing.assert_close(size, torch.full_like(size, 0.5), atol=0.15, rtol=0)
            else:
                assert (change == 0).all()
        assert torch.equal(part.keys[..., width:], keys[..., width:])  # phases stay on circles


def test_without_an_event_decoding_is_plain(hf: Callable, ids: Callable) -> None:
    shock = KVShock(5.0, detector=LowEntropy(threshold=1e-9))
    out = run(hf("llama"), ids(2, 5), shock)
    assert shock.events == []
    assert torch.equal(out, decode(hf("llama"), ids(2, 5), max_new_tokens=30, seeds=[1, 2]))


def test_a_row_of_a_batch_is_shocked_as_if_alone(hf: Callable, ids: Callable) -> None:
    make = lambda: KVShock(1.0, detector=always(2), window=8)  # noqa: E731
    prompt = ids(3, 6)
    batch = run(hf("gpt2"), prompt, make())
    for row in range(3):
        alone = run(hf("gpt2"), prompt[row : row + 1], make(), seeds=[row + 1])
        assert torch.equal(alone[0], batch[row])
    assert not torch.equal(batch, decode(hf("gpt2"), prompt, max_new_tokens=30, seeds=[1, 2, 3]))


def test_padding_is_neither_shocked_nor_counted(hf: Callable, ids: Callable) -> None:
    short, alone, padded = ids(1, 3), KVShock(1.0, detector=always(2)), None
    out = run(hf("gpt2"), short, alone, seeds=[4])
    mask = torch.tensor([[0] * 7 + [1] * 3, [1] * 10])
    batch = torch.stack((torch.cat((torch.zeros(7).long(), short[0])), ids(1, 10)[0]))
    padded = KVShock(1.0, detector=always(2))
    both = run(hf("gpt2"), Prompt(batch, mask), padded, seeds=[4, 5])
    assert torch.equal(both[0, 7:], out[0])
    mine = [e._replace(entropy=0.0) for e in padded.events if e.row == 0]
    assert mine == [e._replace(entropy=0.0) for e in alone.events]


def test_a_row_that_has_ended_is_left_alone(hf: Callable, ids: Callable) -> None:
    shock = KVShock(0.1, detector=always(2), cooldown=0)
    out = run(hf("gpt2"), ids(2, 5), shock, stop=Stop(range(33)), max_new_tokens=25)
    ends = {i: int((row[5:] < 33).nonzero()[0]) + 6 for i, row in enumerate(out)}
    after = KVShock(0.1, detector=always(2), cooldown=0)
    run(hf("gpt2"), ids(2, 5), after, max_new_tokens=25)
    assert any(e.token > ends[e.row] for e in after.events)  # what was left alone
    assert all(e.token <= ends[e.row] for e in shock.events)


def test_a_greedy_loop_is_broken_by_a_shock(hf: Callable, ids: Callable) -> None:
    model, prompt = hf("llama"), ids(1, 5)
    loop = decode(model, prompt, max_new_tokens=58, seeds=[1], greedy=True)
    assert LoopDetector(match=8).first(loop[0]) is not None
    shock = KVShock(3.0, detector=LoopDetector(match=8))
    out = run(model, prompt, shock, greedy=True, max_new_tokens=58)
    first = shock.events[0].token
    assert torch.equal(out[0, : first + 1], loop[0, : first + 1])
    assert not torch.equal(out, loop)


def test_the_seeds_call_works_and_reports(hf: Callable, words: Any) -> None:
    sampler = EntropyShockSampler(
        hf("gpt2"), words, stagnation_threshold=100.0, patience=3, noise_scale=0.1
    )
    text = sampler.generate("THE SCIENTIFIC METHOD IS", max_new_tokens=20, seed=1)
    assert len(text) == 24 + 20
    assert sampler.intervention.events


def test_a_model_without_keys_cannot_be_shocked(make_model: Any, text_ids: Any) -> None:
    with pytest.raises(ConfigError, match="no layer of this model keeps keys"):
        run(make_model("phase_sync"), text_ids(1, 4), KVShock())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: KVShock(-1), "scale=-1"),
        (lambda: KVShock(target="key"), "did you mean target=keys"),
        (lambda: KVShock(heat=0), "heat=0"),
        (lambda: KVShock(window=0), "window=0"),
        (lambda: KVShock(cooldown=-1), "cooldown=-1"),
        (lambda: LoopDetector(match=0), "match=0"),
        (lambda: LowEntropy(threshold=0), "stagnation_threshold=0"),
        (lambda: LowEntropy(patience=1.5), "patience=1.5"),
        (lambda: EntropyShockSampler(None, None), "no model to decode with"),
    ],
)
def test_a_wrong_option_is_named(make: Callable, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_a_threshold_of_entropy_is_refused_where_loops_are_watched(
    hf: Callable, words: Any
) -> None:
    with pytest.raises(ConfigError, match=r"stagnation_threshold=0\.9 does nothing beside"):
        EntropyShockSampler(hf("gpt2"), words, 0.9, detector="loop")
