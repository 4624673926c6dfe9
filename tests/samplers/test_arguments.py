"""Every argument of decode and of its processors is of the right kind, or one clear error."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError, UserError
from phasegpt.samplers import (
    DRY,
    AllowedTokens,
    AllowedWords,
    DynamicTemperature,
    EntropyGate,
    Epsilon,
    Eta,
    KVShock,
    LoopDetector,
    LowEntropy,
    MinP,
    NegativeBursts,
    PhaseSlip,
    Prompt,
    RepetitionPenalty,
    Stop,
    Temperature,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Vocabulary,
    build_chain,
    calibrate_heads,
    decode,
    fit_logits,
    fit_temperature,
)

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
BIG = 10**400  # no float holds it
NONSENSE = ["x", True, None, math.nan, -math.inf, BIG, [1], {}, object, 1j]


@pytest.fixture
def model(make_model: Any, roughen: Any) -> Any:
    return roughen(make_model("kuramoto", layers=(1,), block_size=16))


def run(model: Any, prompt: Any = IDS, **options: Any) -> Tensor:
    return decode(model, prompt, **{"max_new_tokens": 8, "seeds": [1, 2], **options})


# ---- what is sensible acts


@pytest.mark.parametrize(
    "form",
    [torch.tensor, list, set, np.array, lambda ids: torch.tensor(ids, dtype=torch.int32), tuple],
)
def test_stop_ids_of_any_form_stop_the_rows(form: Callable, model: Any) -> None:
    ends = run(model)[:, 5].tolist()
    out = run(model, stop=Stop(form(ends)))
    assert torch.equal(out, run(model, stop=Stop(ids=ends)))
    assert out.shape[1] <= 6 < run(model).shape[1]


@pytest.mark.parametrize("form", [int, torch.tensor, np.int64])
def test_one_stop_id_needs_no_list(form: Callable, model: Any) -> None:
    end = int(run(model)[0, 4])
    one = run(model, IDS[:1], seeds=[1], stop=Stop(form(end)))
    assert int(one[0, -1]) == end and one.shape[1] <= 5


def test_ids_and_masks_of_any_whole_number_type_are_read(model: Any) -> None:
    expected = run(model)
    for kind in (torch.int32, torch.uint8, torch.int16):
        assert torch.equal(run(model, IDS.to(kind)), expected)
    for kind in (torch.bool, torch.float32, torch.long):
        assert torch.equal(run(model, Prompt(IDS, torch.ones(2, 3, dtype=kind))), expected)
    assert torch.equal(run(model, max_new_tokens=np.int64(8)), expected)


def test_memory_follows_the_text_and_not_the_limit(model: Any) -> None:
    # 2^31 tokens would be 34 gigabytes for two rows.
    out = run(model, max_new_tokens=2**31 - 1, stop=Stop(range(65)))
    assert out.shape == (2, 4)


# ---- what is not is named


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *[({"max_new_tokens": x}, "max_new_tokens") for x in [*NONSENSE, -1, 1.0, 10**20,
                                                              torch.tensor(3)]],
        *[({"seeds": x}, "seed") for x in ["ab", [1], [1, True], [1, 2**64], {1, 2}, [1, "2"], 3]],
        *[({"chain": x}, "chain") for x in ["ab", None, TopK(3), [TopK], [None], [3], {}]],
        *[({"greedy": x}, "greedy") for x in ["yes", 1, None]],
        *[({"use_cache": x}, "use_cache") for x in ["no", 0, None, [], object()]],
        *[({"intervention": x}, "intervention") for x in [0.3, PhaseSlip, "slip", TopK(3)]],
        *[({"streamer": x}, "streamer") for x in [print, "s", [], lambda _: None]],
        *[({"stop": x}, "stop") for x in [13, [13], Stop]],
        ({"stop": Stop(65)}, r"stop id 65 is outside the model's vocabulary 0\.\.64"),
        ({"stop": Stop(1, pad_id=65)}, "pad_id 65 is outside"),
        *[({"prompt": x}, "ids") for x in [
            [[1, 2]], None, "text", IDS[0], IDS[None], IDS.float(), IDS == 1, IDS[:, :0], IDS[:0],
            torch.tensor(3)]],
        ({"prompt": IDS + 62}, "token 68 is outside"),
        ({"prompt": IDS - 2}, "token -1 is outside"),
    ],
)  # fmt: skip
def test_an_argument_of_decode_is_refused_by_name(options: dict, says: str, model: Any) -> None:
    with pytest.raises(ConfigError, match=says) as found:
        run(model, **options)
    assert len(str(found.value)) < 600


@pytest.mark.parametrize(
    ("make", "says"),
    [
        *[(lambda x=x: Stop(x), "stop ids hold") for x in [
            [[1, 2]], [1.0], ["a"], "ab", -1, [True], None, [None], 2.5, {1: 2}, 2**40, print]],
        *[(lambda x=x: Stop(x), "stop ids") for x in [torch.tensor([1.0]), torch.tensor([[1]])]],
        *[(lambda x=x: Stop(strings=x), "stop strings") for x in [b"a", [1], None, 3, [""], ""]],
        *[(lambda x=x: Stop(strings="a", tokenizer=x), "tokenizer") for x in [None, "gpt2", 3]],
        *[(lambda x=x: Stop(criteria=x), "stop criteria") for x in [print, [1], None, [Stop]]],
        *[(lambda x=x: Stop(pad_id=x), "pad_id") for x in [-1, 1.0, "a", True, [0]]],
        *[(lambda x=x: Prompt(IDS, x), "attention_mask") for x in [
            [[1, 1, 1]] * 2, "x", torch.ones(2, 2), torch.ones(3), torch.full((2, 3), 2),
            torch.full((2, 3), math.nan), -torch.ones(2, 3), torch.zeros(2, 3)]],
    ],
)  # fmt: skip
def test_a_prompt_and_a_stop_are_checked_when_they_are_made(make: Callable, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize("gives", [None, "x", torch.ones(3), lambda z: z[:, :5], lambda z: z[0]])
def test_a_processor_that_gives_no_logits_is_named(gives: Any, model: Any) -> None:
    def wrong(ids: Tensor | None, logits: Tensor) -> Any:
        return gives(logits) if callable(gives) else gives

    with pytest.raises(ConfigError, match=r"wrong.* in the chain gave"):
        run(model, chain=[wrong])


def test_a_criterion_that_does_not_speak_of_rows_is_named(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"gave shape \[3\]"):
        run(model, stop=Stop(criteria=[lambda ids, _: torch.ones(3)]))


def test_a_cache_of_hugging_faces_is_not_for_our_models(model: Any) -> None:
    from transformers import DynamicCache

    with pytest.raises(ConfigError, match="keeps its own cache"):
        run(model, use_cache=DynamicCache())


#: By name: how it is made with one argument, and values beyond NONSENSE that it refuses.
NUMBERS: dict[str, tuple[Callable, list]] = {
    "TopK": (TopK, [0, 1.5, -1]),
    "TopP": (TopP, [0, 1.1, -0.1]),
    "MinP": (MinP, [-0.1, 1.1]),
    "Typical": (Typical, [0, 1.1]),
    "TopH": (TopH, [0, 1.1]),
    "Epsilon": (Epsilon, [0, 1.1]),
    "Eta": (Eta, [0, 1.1]),
    "TopNSigma": (TopNSigma, [0, math.inf]),
    "RepetitionPenalty": (RepetitionPenalty, [0, -1, math.inf]),
    "DRY": (DRY, [-1, math.inf]),
    "DRY base": (lambda x: DRY(base=x), [1, math.inf]),
    "DRY length": (lambda x: DRY(allowed_length=x), [0, 1.5]),
    "low": (lambda x: DynamicTemperature(x, 1.0), [math.inf, -1]),
    "exponent": (lambda x: DynamicTemperature(0.5, 1, x), [0, -1, math.inf]),
    "every": (lambda x: NegativeBursts(every=x), [0, 1.5]),
    "start": (lambda x: NegativeBursts(every=2, start=x), [-1, 1.5]),
    "Vocabulary": (Vocabulary, [0, -3, 2.5]),
    "center": (EntropyGate, [math.inf]),
    "gate temperature": (lambda x: EntropyGate(2.5, x), [0, -1]),
    "LowEntropy": (LowEntropy, [0, math.inf]),
    "patience": (lambda x: LowEntropy(0.5, x), [0, 1.5]),
    "match": (LoopDetector, [0, 1.5]),
    "scale": (KVShock, [-1, math.inf]),
    "shock window": (lambda x: KVShock(window=x), [0, 1.5]),
    "cooldown": (lambda x: KVShock(cooldown=x), [-1, 1.5]),
    "heat": (lambda x: KVShock(heat=x), [0, math.inf]),
    "target_kl": (lambda x: PhaseSlip(target_kl=x), [0, math.inf]),
    "window": (lambda x: PhaseSlip(window=x), [0, 1.5]),
    "anchor": (lambda x: PhaseSlip(anchor=x), [-0.1, 1.1]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_a_processor_is_checked(name: str) -> None:
    make, beyond = NUMBERS[name]
    for value in [*NONSENSE, *beyond, torch.tensor(1)]:
        with pytest.raises(ConfigError):
            make(value)


def test_temperatures_take_every_sign_and_no_nonsense() -> None:
    for value in (0, -0.0, math.inf, -math.inf, Fraction(1, 2), np.float32(0.5)):
        Temperature(value)
    for value in ("x", True, math.nan, BIG, [1], 1j, torch.tensor(1.0)):
        with pytest.raises(ConfigError):
            Temperature(value)


@pytest.mark.parametrize(
    "make",
    [
        *[lambda x=x: AllowedTokens(x) for x in ["ab", [1.5], [-1], [], None, torch.ones(2),
                                                 [[1]], [True], 2.5]],
        *[lambda x=x: DRY(breakers=x) for x in ["\n", [1.5], [-1], None, torch.ones(2), [None]]],
        *[lambda x=x: AllowedWords(x, ["a"]) for x in ["cat", [1], None, [], [""], b"cat"]],
        *[lambda x=x: AllowedWords(["a"], x) for x in ["cat", [1], None]],
        *[lambda x=x: AllowedTokens.matching(["a"], x) for x in ["(", "b", None, 3]],
        *[lambda x=x: NegativeBursts(every=2, between=x) for x in [0.8, "x", TopK]],
        *[lambda x=x: build_chain(allowed=x) for x in [[1, 2], "ascii", TopK]],
        *[lambda x=x: build_chain(dry=x) for x in [0.8, DRY]],
        *[lambda x=x: build_chain(temperature=x) for x in ["x", True, None, [1]]],
        *[lambda x=x: PhaseSlip(x) for x in [
            "all", [], 3, None, [(0.5, 0)], [(1,)], [(1, 2, 3)], [1, 2], [("a", 0)], [(True, 0)],
            torch.ones(1, 2), {}]],
        *[lambda x=x: PhaseSlip(angle=x) for x in ["x", True, math.nan, -1, 4, math.inf, [1]]],
        *[lambda x=x: PhaseSlip(candidates=x) for x in ["x", True, 0, 1.5]],
        *[lambda x=x: PhaseSlip(gate=x) for x in ["R", 0.5, True, EntropyGate]],
        *[lambda x=x: PhaseSlip(rotation=x) for x in ["spiral", ["plane"], None, 3]],
        *[lambda x=x: PhaseSlip(target=x) for x in ["keys", None, ["values"]]],
        *[lambda x=x: PhaseSlip(protect_prompt=x) for x in ["no", 1, None]],
        *[lambda x=x: PhaseSlip(force=x) for x in ["no", 1, None]],
        *[lambda x=x: KVShock(detector=x) for x in ["loop", 3, LoopDetector, print]],
        *[lambda x=x: KVShock(target=x) for x in ["all", None, ["keys"]]],
    ],
)  # fmt: skip
def test_other_values_of_a_processor_are_checked(make: Callable) -> None:
    with pytest.raises(ConfigError):
        make()


def test_ids_in_tensors_and_arrays_are_allowed_tokens_and_breakers() -> None:
    for form in (torch.tensor, np.array, list, set):
        assert AllowedTokens(form([3, 1])).allowed.tolist() == [1, 3]
        assert DRY(breakers=form([3, 1])).breakers.tolist() == [1, 3]
    assert PhaseSlip(torch.tensor([[1, 0]])).heads == [(1, 0)]
    assert PhaseSlip(np.array([[1, 0]])).heads == [(1, 0)]


@pytest.mark.parametrize(
    "use",
    [
        *[lambda m, x=x: calibrate_heads(m, x) for x in [
            IDS, [[1, 2, 3, 4]], torch.ones(1, 5), torch.full((1, 5), 65), None]],
        *[lambda m, x=x: calibrate_heads(m, IDS.view(1, 6), window=x) for x in [0, "x", 1.5, None]],
        *[lambda m, x=x: fit_temperature(m, x) for x in [
            torch.ones(9), torch.full((9,), 65), -torch.ones(9).long(), None, 3, [], [1, 2]]],
        *[lambda m, x=x: fit_temperature(m, IDS[0], context=x) for x in [0, 1.5, "x", 17, True]],
        *[lambda m, x=x: fit_temperature(m, IDS[0], prompt=x) for x in [0, 1.5, "x", None]],
        *[lambda m, x=x: fit_temperature(m, IDS[0], batch_size=x) for x in [0, 1.5, "x", None]],
        *[lambda m, x=x: fit_logits(*x) for x in [
            (None, None), (torch.ones(2, 3), torch.ones(2)), (torch.ones(2, 3).long(), IDS[0, :2]),
            (torch.ones(2, 3), torch.tensor([1, 3])), (torch.ones(2, 3), torch.tensor([-1, 0]))]],
    ],
)  # fmt: skip
def test_calibration_and_fits_check_what_they_are_given(use: Callable, model: Any) -> None:
    with pytest.raises(UserError):
        use(model)
