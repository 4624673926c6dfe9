"""One loop for our models and Hugging Face's: the same tokens as theirs, rows independent."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import OnTokens, PhaseSlip, Prompt, Sampler, Stop, Temperature, decode

KINDS = ["gpt2", "llama"]
MECHANISMS = ["softmax", "kuramoto", "phase_sync", "hybrid", "torus", "fsn", "token_shift"]
#: What these do not keep.
WITHOUT = {"values": {"phase_sync", "torus", "fsn"}, "phases": {"softmax", "token_shift"}}
#: No second path; the short cut; two paths at angle 0; and with a candidate head.
ZERO = {
    "none": lambda: None,
    "angle 0": lambda: PhaseSlip(angle=0.0),
    "two paths": lambda: PhaseSlip([(1, 0), (2, 1)], angle=0.0, force=True),
    "candidates": lambda: PhaseSlip([(1, 0), (2, 1)], angle=0.0, force=True, candidates=9),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("case", ZERO)
def test_angle_0_gives_hugging_faces_own_tokens(
    kind: str, case: str, hf: Callable, ids: Callable
) -> None:
    model, prompt = hf(kind), ids(3, 5)
    options = {"do_sample": True, "max_new_tokens": 40, "temperature": 0.9, "top_k": 30}
    torch.manual_seed(4)
    theirs = model.generate(prompt, **options)
    torch.manual_seed(4)
    ours = model.generate(prompt, **options, custom_generate=Sampler(ZERO[case]()))
    assert torch.equal(ours, theirs)
    assert len({tuple(row) for row in ours.tolist()}) == 3
    torch.manual_seed(4)
    plain = decode(
        model, prompt, max_new_tokens=40, seeds=None, intervention=ZERO[case](),
        chain=[Temperature(0.9), lambda _, x: x.masked_fill(
            x < x.topk(30).values[:, -1:], -torch.inf)],
    )  # fmt: skip
    assert torch.equal(plain, theirs)


def test_numpys_whole_numbers_are_seeds(hf: Callable, ids: Callable) -> None:
    import numpy as np

    slip = PhaseSlip([(1, 0)], angle=1.0, anchor=0.0)
    given = [list(np.arange(1, 3)), [1, 2]]
    one, other = (
        decode(hf("gpt2"), ids(2, 4), max_new_tokens=9, seeds=seeds, intervention=slip)
        for seeds in given
    )
    assert torch.equal(one, other)


@every_kind
def test_greedy_is_hugging_faces_greedy(kind: str, hf: Callable, ids: Callable) -> None:
    model, prompt = hf(kind), ids(2, 5)
    theirs = model.generate(prompt, do_sample=False, max_new_tokens=20)
    ours = model.generate(prompt, do_sample=False, max_new_tokens=20, custom_generate=Sampler())
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("mechanism", "target"),
    [(m, t) for m in MECHANISMS for t in ("values", "phases") if m not in WITHOUT[t]],
)
def test_angle_0_is_plain_decoding_on_every_attention(
    mechanism: str, target: str, make_model: Any, roughen: Any, text_ids: Any
) -> None:
    model = roughen(make_model(mechanism, block_size=24, n_layer=3))
    options = {"max_new_tokens": 40, "seeds": [1, 2]}  # past the end of the context
    plain = decode(model, text_ids(2, 6), **options)
    slip = PhaseSlip([(1, 0), (2, 1)], angle=0.0, force=True, target=target)
    assert torch.equal(decode(model, text_ids(2, 6), intervention=slip, **options), plain)
    moved = PhaseSlip([(1, 0), (2, 1)], angle=2.0, target=target, gate=None, anchor=0.0)
    assert not torch.equal(decode(model, text_ids(2, 6), intervention=moved, **options), plain)
    assert max(float(step.kl.max()) for step in moved.trace) > 1e-6


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.stack([torch.cat((r.new_zeros(length - len(r)), r)) for r in rows])
    mask = torch.stack([(torch.arange(length) >= length - len(r)).long() for r in rows])
    return ids, mask


@pytest.mark.parametrize("kind", [*KINDS, "softmax", "kuramoto", "phase_sync"])
@pytest.mark.parametrize("slips", [False, True])
def test_every_row_of_a_left_padded_batch_equals_that_row_alone(
    kind: str, slips: bool, hf: Callable, ids: Callable, make_model: Any, roughen: Any
) -> None:
    model = hf(kind) if kind in KINDS else roughen(make_model(kind, block_size=32, n_layer=3))
    target = "phases" if kind == "phase_sync" else "values"
    heads = [(1, 0), (2, 1)]
    make = lambda: PhaseSlip(heads, angle=1.0, target=target) if slips else None  # noqa: E731
    rows = [ids(1, length, seed=length)[0] for length in (3, 9, 5, 9, 14, 1)]
    padded, mask = left_padded(rows)
    seeds = [11, 12, 13, 14, 15, 16]
    batch = decode(model, Prompt(padded, mask), max_new_tokens=25, seeds=seeds, intervention=make())
    assert batch.shape == (6, 14 + 25)
    for row, seed, out in zip(rows, seeds, batch, strict=True):
        alone = decode(model, row[None], max_new_tokens=25, seeds=[seed], intervention=make())
        assert torch.equal(out[14 - len(row) :], alone[0])


def test_the_context_is_filled_exactly(hf: Callable, ids: Callable) -> None:
    slip = PhaseSlip([(2, 0)], angle=0.5)
    out = decode(hf("gpt2"), ids(1, 4), max_new_tokens=61, seeds=[1], intervention=slip)
    assert out.shape == (1, 65)  # 64 positions were read; the last token needs none
    assert slip._memory.cache.length == 64
    assert len(slip.trace) == 60  # every token but the first


# ---- stopping and streaming


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.given.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


@every_kind
def test_a_streamer_gets_the_prompt_every_token_and_the_end(
    kind: str, hf: Callable, ids: Callable
) -> None:
    streamer, prompt = Recorder(), ids(1, 4)
    out = hf(kind).generate(
        prompt, do_sample=True, max_new_tokens=9, seeds=[3], token_streamer=streamer,
        custom_generate=Sampler(PhaseSlip([(2, 0)], angle=0.3)),
    )  # fmt: skip
    assert streamer.given == [prompt[0].tolist(), *([token] for token in out[0, 4:].tolist())]
    assert streamer.ended == 1


def test_a_streamer_is_ended_by_an_error_too(hf: Callable, ids: Callable) -> None:
    def fail(ids: Tensor | None, logits: Tensor) -> Tensor:
        raise ZeroDivisionError

    streamer = Recorder()
    with pytest.raises(ZeroDivisionError):
        decode(hf("gpt2"), ids(1, 3), max_new_tokens=3, seeds=[1], chain=[fail], streamer=streamer)
    assert streamer.ended == 1
    refused = Recorder()
    with pytest.raises(ConfigError):
        decode(hf("gpt2"), ids(1, 4), max_new_tokens=-1, seeds=[1], streamer=refused)
    assert refused.ended == 1 and not refused.given


@every_kind
def test_lists_of_eos_and_custom_criteria_stop_as_in_hugging_face(
    kind: str, hf: Callable, ids: Callable
) -> None:
    model, prompt = hf(kind), ids(4, 5)

    def long(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return ids.sum(dim=1) > 900

    free = model.generate(prompt, do_sample=False, max_new_tokens=30)
    ends = sorted({int(free[0, 9]), int(free[1, 12])})
    options = {"do_sample": False, "max_new_tokens": 30, "eos_token_id": ends, "pad_token_id": 0}
    theirs = model.generate(prompt, stopping_criteria=[long], **options)
    ours = model.generate(prompt, stopping_criteria=[long], **options, custom_generate=Sampler())
    assert torch.equal(ours, theirs)
    assert (ours == 0).any()  # some row ended before another


def test_a_stop_string_ends_a_row_where_its_new_text_has_it(
    hf: Callable, ids: Callable, words: Any
) -> None:
    model, prompt = hf("gpt2"), ids(3, 4)
    free = decode(model, prompt, max_new_tokens=30, seeds=[1, 2, 3])
    stop = words.decode(free[1, 10:13])
    out = decode(
        model, prompt, max_new_tokens=30, seeds=[1, 2, 3], stop=Stop((), [stop], words, pad_id=0),
    )  # fmt: skip
    for row in range(3):
        text = words.decode(free[row, 4:])
        end = 4 + text.index(stop) + 3 if stop in text else 34
        assert torch.equal(out[row, :end], free[row, : min(end, out.shape[1])])
        assert (out[row, end:] == 0).all()
    end = Stop((), stop, words, pad_id=0)  # one string
    one = decode(model, prompt, max_new_tokens=30, seeds=[1, 2, 3], stop=end)
    assert torch.equal(one, out)
    with pytest.raises(ConfigError, match="tokenizer"):
        Stop(strings=["x"])
    with pytest.raises(ConfigError, match="empty string"):
        Stop(strings=[""], tokenizer=words)


@pytest.mark.parametrize("seeds", [7, [-1], [0.5], torch.tensor([1])])
def test_seeds_that_are_no_list_of_whole_numbers_are_refused(
    seeds: Any, hf: Callable, ids: Callable
) -> None:
    with pytest.raises(ConfigError, match="must be a list of whole numbers"):
        decode(hf("gpt2"), ids(1, 4), max_new_tokens=3, seeds=seeds)


def test_several_sequences_of_one_prompt_have_a_seed_each(hf: Callable, ids: Callable) -> None:
    model, prompt = hf("llama"), ids(1, 5)
    options = {"do_sample": True, "max_new_tokens": 12, "custom_generate": Sampler()}
    out = model.generate(prompt, num_return_sequences=3, seeds=[1, 2, 1], **options)
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out[1:2], model.generate(prompt, seeds=[2], **options))


# ---- what cannot be done


def test_a_prompt_or_a_text_beyond_the_context_is_told_beforehand(
    hf: Callable, ids: Callable
) -> None:
    for prompt, new in ((ids(1, 65), 1), (ids(1, 60), 6)):
        with pytest.raises(ConfigError, match=r"attends to 64"):
            decode(hf("gpt2"), prompt, max_new_tokens=new, seeds=[1])


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([[1, 1, 1], [1, 1, 0]], "pad on the left"),
        ([[1, 0, 1], [1, 1, 1]], "pad on the left"),
        ([[0, 0, 0], [1, 1, 1]], "give every row a token"),
        ([[1, 1]], "must be equal"),
    ],
)
def test_a_mask_that_is_no_left_padding_is_refused(mask: list, says: str, ids: Callable) -> None:
    with pytest.raises(ConfigError, match=says):
        Prompt(ids(2, 3), torch.tensor(mask))  # fmt: skip


def test_rows_of_unequal_length_are_not_streamed_by_our_models(make_model: Any) -> None:
    padded, mask = left_padded([torch.tensor([3, 4]), torch.tensor([5])])
    with pytest.raises(ConfigError, match="one length"):
        decode(make_model(), Prompt(padded, mask), max_new_tokens=2, seeds=[1, 2],
               streamer=OnTokens(lambda _: None))  # fmt: skip


def test_beams_dictionaries_and_foreign_inputs_are_refused(hf: Callable, ids: Callable) -> None:
    model, prompt = hf("gpt2"), ids(1, 3)
    for options, says in (
        ({"num_beams": 2}, "num_beams=2"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"token_type_ids": torch.zeros_like(prompt)}, "token_type_ids"),
    ):
        with pytest.raises(ConfigError, match=says):
            model.generate(prompt, max_new_tokens=2, custom_generate=Sampler(), **options)
    with pytest.raises(ConfigError, match=r"guidance_scale=1\.5"):
        slip = PhaseSlip([(2, 0)], angle=0.3)
        model.generate(prompt, max_new_tokens=2, custom_generate=Sampler(slip), guidance_scale=1.5)


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(ConfigError, match="Linear is no model"):
        decode(torch.nn.Linear(2, 2), torch.ones(1, 1).long(), max_new_tokens=1, seeds=[1])


def test_a_model_without_a_head_is_named(hf: Callable) -> None:
    with pytest.raises(ConfigError, match="GPT2Model is no model"):
        decode(hf("gpt2").transformer, torch.ones(1, 1).long(), max_new_tokens=1, seeds=[1])
