"""The score equals a slow loop over tokens, for any windows; there is one definition of loss."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_run, text_data
from torch.nn import functional as F

from phasegpt.core.errors import ConfigError
from phasegpt.data.config import DataConfig
from phasegpt.data.corpus import Corpus, prepare
from phasegpt.model import loading, scoring
from phasegpt.model.loaded import Loaded
from phasegpt.model.scoring import Score, nats, score

UNICODE = "Caf\u00e9 \u201cna\u00efve\u201d \U0001f600 s\u00e3o \u4f60\u597d wor ld \n\n" * 12


@pytest.fixture(scope="module")
def loaded(run: Path) -> Loaded:
    return loading.load_run(run)


@pytest.fixture(scope="module")
def corpus(loaded: Loaded) -> Corpus:
    assert loaded.config is not None
    return prepare(DataConfig.parse(loaded.config["data"]))


def slow_nats(model: Any, tokens: list[int], context: int, stride: int) -> float:
    """The definition, one token at a time: the first window that reaches a token scores it."""
    total, last = 0.0, len(tokens) - 1
    for t in range(1, len(tokens)):
        window = max(0, math.ceil((t - context) / stride))
        start = max(0, min(window * stride, last - context))
        with torch.no_grad():
            logits = model(torch.tensor([tokens[start:t]])).logits[0, -1]
        total -= logits.double().log_softmax(-1)[tokens[t]].item()
    return total


# ---- nats


def test_nats_is_the_cross_entropy_of_the_scored_targets() -> None:
    logits, targets = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    targets[0, :4] = -100
    total, count = nats(logits, targets)
    assert (total.dtype, count.item()) == (torch.float64, 11)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="mean")
    torch.testing.assert_close((total / count).float(), expected)


def test_nats_has_the_gradient_of_the_cross_entropy() -> None:
    logits = torch.randn(2, 4, 9, requires_grad=True)
    targets = torch.randint(9, (2, 4))
    total, count = nats(logits, targets)
    (mine,) = torch.autograd.grad((total / count).float(), logits)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(mine, torch.autograd.grad(loss, logits)[0])


def test_nats_computes_in_float32_at_least() -> None:
    logits, targets = torch.randn(1, 6, 50, dtype=torch.float64), torch.randint(50, (1, 6))
    exact = -logits.log_softmax(-1).gather(-1, targets[..., None]).sum()
    torch.testing.assert_close(nats(logits, targets)[0], exact, rtol=1e-14, atol=0)
    half = logits.bfloat16()
    upcast = -half.float().log_softmax(-1).gather(-1, targets[..., None]).sum().double()
    torch.testing.assert_close(nats(half, targets)[0], upcast, rtol=1e-6, atol=0)


# ---- score


@pytest.mark.parametrize(
    ("context", "stride"),
    [(32, 32), (32, 1), (32, 13), (32, 31), (7, 7), (7, 3), (1, 1), (30, 29)],
)
def test_every_context_and_stride_agrees_with_a_loop_over_tokens(
    loaded: Loaded, corpus: Corpus, context: int, stride: int
) -> None:
    result = score(loaded.model, corpus, "val", context=context, stride=stride, batch_size=3)
    tokens = corpus.split("val").tolist()
    assert result.tokens == len(tokens) - 1
    assert result.nats == pytest.approx(slow_nats(loaded.model, tokens, context, stride), rel=1e-6)


def test_the_score_does_not_depend_on_the_batch_size(loaded: Loaded, corpus: Corpus) -> None:
    scores = [
        score(loaded.model, corpus, "train", context=32, stride=16, batch_size=n)
        for n in (4, 4, 1, 100)
    ]
    assert scores[0] == scores[1]
    assert [s.nats for s in scores] == pytest.approx([scores[0].nats] * 4, rel=1e-6)


def test_tokens_with_a_long_context_are_also_scored_apart(
    loaded: Loaded, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LATE", 5)
    tokens = corpus.split("val").tolist()
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 16, 16):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([tokens[start : start + 16]])).logits[0].double()
        late = range(5, 16)
        total -= sum(logits[i].log_softmax(-1)[tokens[start + i + 1]].item() for i in late)
        count += len(late)
    words = {"context": 16, "stride": 16, "batch_size": 7}
    cut = corpus.splits | {"val": corpus.split("val")[: (len(tokens) - 1) // 16 * 16 + 1]}
    found = score(loaded.model, replace(corpus, splits=cut), "val", **words)
    assert found.late_bytes == count
    assert found.late_bits_per_byte == pytest.approx(total / math.log(2) / count, rel=1e-6)


def test_modes_and_the_global_generator_are_left_alone(loaded: Loaded, corpus: Corpus) -> None:
    model, state = loaded.model, torch.get_rng_state()
    before = score(model, corpus, "val", context=8, stride=8, batch_size=2)
    model.train()
    model.blocks[0].eval()
    modes = [m.training for m in model.modules()]
    assert score(model, corpus, "val", context=8, stride=8, batch_size=2) == before
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_bytes_and_words_are_those_of_the_text(tmp_path: Path, tokenizer: str) -> None:
    run = make_run(tmp_path / "run", *text_data(tmp_path, UNICODE, tokenizer))
    loaded = loading.load_run(run)
    corpus = prepare(DataConfig.parse(loaded.config["data"]))  # type: ignore[union-attr]
    text = corpus.tokenizer.decode(corpus.split("train"))
    result = score(loaded.model, corpus, "train", context=32, stride=32, batch_size=8)
    meta = corpus.meta["splits"]["train"]
    assert result.bytes == len(text.encode()) - 1 == meta["bytes"] - 1  # it begins with "C"
    assert result.words == len(text.split()) == meta["words"]
    assert result.bits_per_byte == pytest.approx(result.nats / math.log(2) / result.bytes)
    assert result.word_ppl == pytest.approx(math.exp(result.nats / result.words))


def test_ratios_of_a_score() -> None:
    result = Score(nats=20.0, tokens=10, bytes=20, words=4, context=8, stride=8, floor_nats=10.0)
    assert (result.loss, result.floor_loss) == (2.0, 1.0)
    assert result.ppl == pytest.approx(math.e**2)
    assert result.floor_ppl == pytest.approx(math.e)
    assert result.bits_per_byte == pytest.approx(1 / math.log(2))
    assert result.word_ppl == pytest.approx(math.e**5)
    bad = Score(nats=1e6, tokens=10, bytes=20, words=None, context=8, stride=8)
    assert (bad.ppl, bad.word_ppl, bad.floor_loss, bad.floor_ppl) == (
        math.exp(709),
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": 33, "stride": 1}, "context=33"),
        ({"context": 0, "stride": 1}, "context=0"),
        ({"context": 8, "stride": 9}, "stride=9"),
        ({"context": 8, "stride": 0}, "stride=0"),
        ({"context": 8, "stride": 8, "batch_size": 0}, "batch_size=0"),
    ],
)
def test_windows_that_cannot_be_scored_are_named(
    loaded: Loaded, corpus: Corpus, options: dict[str, int], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        score(loaded.model, corpus, "val", **{"batch_size": 2, **options})
