"""Every processor answers tensors that are no logits, or no tokens of theirs, by one error."""

from typing import Any

import pytest
import torch

from phasegpt import samplers
from phasegpt.core.errors import ConfigError
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
