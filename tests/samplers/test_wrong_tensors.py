"""Tensors that are no logits, no tokens, or of another batch or device: one error each."""

from typing import Any

import pytest
import torch

from phasegpt import samplers
from phasegpt.core.errors import ConfigError
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.samplers.processor import Processor

B, V = 2, 12
LOGITS = torch.randn(B, V, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(B * 4).view(B, 4)
ANY = [
    *(samplers.AllowedTokens([1, 2]), samplers.Vocabulary(8), samplers.DynamicTemperature(0.5, 2)),
    *(samplers.TopK(3), samplers.TopP(0.9), samplers.MinP(0.1), samplers.Typical(0.9)),
    *(samplers.TopH(0.4), samplers.Epsilon(0.1), samplers.Eta(0.1), samplers.PLess()),
    *(samplers.TopNSigma(1.0), samplers.Temperature(0.8)),
]
READERS = [
    *(samplers.RepetitionPenalty(1.2), samplers.DRY(), samplers.NegativeBursts(every=3)),
    samplers.AllowedWords(["to"], [" to", "x", *" " * 10]),
]


def name(processor: Any) -> str:
    return type(processor).__name__


def test_no_processor_is_left_out() -> None:
    found = {
        kind
        for kind in vars(samplers).values()
        if isinstance(kind, type)
        and getattr(kind.__call__, "__annotations__", {}).keys() == {"ids", "logits", "return"}
    }
    assert found - {Processor} == {type(p) for p in [*ANY, *READERS]}


@pytest.mark.parametrize("processor", [*ANY, *READERS], ids=name)
@pytest.mark.parametrize(
    "logits",
    [None, [0.0], torch.arange(V).expand(B, V), LOGITS > 0, LOGITS.to(torch.complex64),
     torch.tensor(1.0), LOGITS[:, :0], LOGITS.to("meta")],
    ids=["None", "list", "whole", "bool", "complex", "number", "empty", "meta"],
)  # fmt: skip
def test_what_are_no_logits_is_refused(processor: Processor, logits: Any) -> None:
    with pytest.raises(ConfigError, match=r"^(logits|ids)"):
        processor(IDS, logits)


@pytest.mark.parametrize("processor", READERS, ids=name)
@pytest.mark.parametrize(
    "ids",
    [None, [[1, 2]], IDS.float(), IDS > 0, IDS[0], IDS[:1], IDS - 1, IDS + V, IDS.to("meta"), "x"],
    ids=["None", "list", "real", "bool", "flat", "rows", "negative", "beyond", "meta", "text"],
)
def test_what_are_no_tokens_is_refused(processor: Processor, ids: Any) -> None:
    with pytest.raises(ConfigError, match="ids"):
        processor(ids, LOGITS)
    assert processor(IDS, LOGITS).shape == LOGITS.shape


@pytest.fixture(scope="module")
def model() -> GPT:
    shape = GPTConfig(block_size=16, vocab_size=V, n_layer=2, n_head=2, n_embd=8)
    return GPT(shape, seed=0).eval()


class Mute:
    """A tokenizer that decodes nothing."""

    def decode(self, ids: list[int]) -> None: ...


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"prompt": IDS.to("meta")}, "ids is on the device meta"),
        ({"prompt": samplers.Prompt(IDS), "chain": [lambda ids, x: x.long()]}, "torch.int64 on"),
        ({"chain": [lambda ids, x: x.to("meta")]}, "on meta; a processor maps"),
        ({"stop": samplers.Stop(criteria=[lambda ids, s: "x"])}, "a stop criterion gave 'x'"),
        ({"stop": samplers.Stop(strings="x", tokenizer=Mute())}, "decodes tokens to None"),
        ({"model": torch.nn.Linear(2, 2, device="meta")}, "the model is on the device meta"),
    ],
)
def test_decoding_answers_what_cannot_be_decoded(model: GPT, words: Any, says: str) -> None:
    given = {"model": model, "prompt": IDS, "max_new_tokens": 2, "seeds": [1, 2], **words}
    with pytest.raises(ConfigError, match=says):
        samplers.decode(**given)
    with pytest.raises(ConfigError, match="attention_mask is on the device meta"):
        samplers.Prompt(IDS, torch.ones_like(IDS, device="meta"))
    with pytest.raises(ConfigError, match="int is no model"):
        samplers.Sampler()(3, IDS)


def test_what_is_no_tokenizer_and_no_text_is_named() -> None:
    with pytest.raises(ConfigError, match="tokenizer=3 must be"):
        samplers.token_texts(3)
    with pytest.raises(ConfigError, match="ids_T is a str"):
        samplers.LoopDetector().first("abc")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="logits_BV is a NoneType"):
        samplers.EntropyGate()(None, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ["softmax", "kuramoto"])
def test_a_cache_takes_no_other_rows_and_no_other_model(attention: str) -> None:
    def build(layers: int = 2, **other: Any) -> GPT:
        sizes = {"block_size": 16, "vocab_size": V, "n_head": 2, "n_embd": 8}
        shape = GPTConfig(n_layer=layers, attention=attention, **{**sizes, **other})
        return GPT(shape, seed=0).eval()

    model = build()
    cache = model.new_cache()
    model(IDS, cache=cache)
    for other, ids in ((model, IDS[:1]), (build(n_embd=16), IDS), (build().double(), IDS)):
        with pytest.raises(ConfigError, match="the cache holds keys of 2 rows, 2 heads"):
            other(ids, cache=cache.select(torch.arange(2)))
    with pytest.raises(ConfigError, match="cache is of a model of 2 layers; this one has 3"):
        build(3)(IDS, cache=cache)
    with pytest.raises(ConfigError, match="idx_BT is on meta and the model on cpu"):
        model(IDS.to("meta"))
