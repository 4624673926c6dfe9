"""A GPT inside transformers: caches, padding, generate, loss; every mechanism of conf/."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, pipeline
from transformers.generation.streamers import BaseStreamer

from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.export import ExportConfig, export
from phasegpt.model.huggingface import PhaseGPTConfig, PhaseGPTForCausalLM
from phasegpt.model.padding import PaddedCache
from phasegpt.samplers import PhaseSlip, Prompt, Sampler, TopK, decode

MECHANISMS = sorted(path.stem for path in (CONF_DIR / "attention").glob("*.yaml"))
CAUSAL = [name for name in MECHANISMS if name != "as_coded"]
#: Those whose memory is running sums.
SUMS = {"phase_sync", "hybrid_phase_sync", "selective_rope", "ssa", "ssa_as_published", "uniform"}
MODELS: dict[tuple[Any, ...], PhaseGPTForCausalLM] = {}
#: Where tokens are compared: no other CPU rounds so that another one is the likeliest.
F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:oscillators are integrated in plain PyTorch")


def model_with(
    mechanism: str, positions: str = "learned", dtype: torch.dtype = torch.float32
) -> PhaseGPTForCausalLM:
    """A model of two layers, both of the mechanism, with weights far from their initial values."""
    if (mechanism, positions, dtype) not in MODELS:
        options = plain(compose([f"attention={mechanism}"]))["attention"]
        name, _ = options.pop("name"), options.pop("layers")
        if "num_oscillators" in options:
            options |= {"num_oscillators": 4, "steps": 3}
        config = PhaseGPTConfig(
            n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=65, dropout=0.0,
            positions=positions, attention=name, attention_layers=(0, 1),
            attention_options=options,
        )  # fmt: skip
        model = PhaseGPTForCausalLM(config)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        MODELS[mechanism, positions, dtype] = model.eval().to(dtype)
    return MODELS[mechanism, positions, dtype]


@pytest.fixture(params=CAUSAL)
def mechanism(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ids(text_ids: Callable[[int, int], Tensor]) -> Tensor:
    return text_ids(3, 12)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def left_padded(ids: Tensor, pads: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """ids whose row i begins with pads[i] tokens that must not count, and the mask."""
    mask = (torch.arange(ids.shape[1]) >= torch.tensor(pads)[:, None]).long()
    return torch.where(mask.bool(), ids, 64), mask


@pytest.mark.parametrize("positions", ["learned", "rope"])
@torch.no_grad()
def test_tokens_in_pieces_give_what_they_give_at_once(
    mechanism: str, positions: str, ids: Tensor
) -> None:
    model = model_with(mechanism, positions)
    out, past = [], None
    for piece in ids.split([5, 1, 4, 2], dim=1):
        step = model(piece, past_key_values=past, use_cache=True)
        past = step.past_key_values
        out.append(step.logits)
    assert past is not None
    assert past.get_seq_length() == 12
    close(torch.cat(out, dim=1), model(ids, use_cache=False).logits)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@torch.no_grad()
def test_padded_rows_with_a_cache_equal_single_rows(
    mechanism: str, positions: str, ids: Tensor
) -> None:
    model, pads = model_with(mechanism, positions), (4, 0, 2)
    padded, mask = left_padded(ids, pads)
    first = model(padded[:, :8], attention_mask=mask[:, :8], use_cache=True)
    then = model(padded[:, 8:], attention_mask=mask, past_key_values=first.past_key_values)
    logits = torch.cat((first.logits, then.logits), dim=1)
    for row, pad in enumerate(pads):
        alone = model(ids[row : row + 1, pad:], use_cache=False).logits
        close(logits[row : row + 1, pad:], alone)


@torch.no_grad()
def test_padding_behind_or_between_tokens_counts_nowhere_either(
    mechanism: str, ids: Tensor
) -> None:
    model = model_with(mechanism)
    mask = torch.ones_like(ids)
    mask[0, 7:], mask[1, :3], mask[2, 5:7] = 0, 0, 0
    for use_cache in (False, True):
        logits = model(ids, attention_mask=mask, use_cache=use_cache).logits
        for row in range(3):
            kept = mask[row].bool()
            close(logits[row, kept], model(ids[row, kept][None]).logits[0])


@torch.no_grad()
def test_padding_is_no_token_of_a_model_that_sees_the_future(ids: Tensor) -> None:
    with pytest.warns(UserWarning, match="sees the future"):
        model = model_with("as_coded", dtype=F64)
    padded, mask = left_padded(ids, (4, 0, 2))
    mask[1, 9:] = 0
    logits = model(padded, attention_mask=mask).logits
    for row in range(3):
        kept = mask[row].bool()
        close(logits[row, kept], model(ids[row, kept][None]).logits[0])
    greedy = model.generate(ids, max_new_tokens=5, do_sample=False)
    ours = decode(model.gpt, ids, max_new_tokens=5, seeds=None, greedy=True, use_cache=False)
    assert torch.equal(greedy, ours)
    with pytest.raises(ConfigError, match="sees the future"):
        model.generate(ids, max_new_tokens=5, use_cache=True)


def test_generate_takes_the_tokens_of_our_own_loop(mechanism: str, ids: Tensor) -> None:
    model = model_with(mechanism, dtype=F64)
    greedy = model.generate(ids, max_new_tokens=15, do_sample=False)
    assert torch.equal(greedy, decode(model.gpt, ids, max_new_tokens=15, seeds=None, greedy=True))
    for chain, words in (([], {"top_k": 0}), ([TopK(5)], {"top_k": 5})):
        torch.manual_seed(3)
        theirs = model.generate(ids, max_new_tokens=15, do_sample=True, **words)
        torch.manual_seed(3)
        ours = decode(model.gpt, ids, max_new_tokens=15, seeds=None, chain=chain)
        assert torch.equal(theirs, ours)


def test_padded_rows_are_continued_as_if_alone(mechanism: str, ids: Tensor) -> None:
    model = model_with(mechanism, dtype=F64)
    padded, mask = left_padded(ids, (4, 0, 2))
    out = model.generate(padded, attention_mask=mask, max_new_tokens=12, do_sample=False)
    for row, pad in enumerate((4, 0, 2)):
        alone = model.generate(ids[row : row + 1, pad:], max_new_tokens=12, do_sample=False)
        assert torch.equal(out[row, pad:], alone[0])
    ours = decode(model, Prompt(padded, mask), max_new_tokens=12, seeds=None, greedy=True)
    assert torch.equal(out, ours)


def test_beams_with_a_cache_are_the_beams_without(mechanism: str, ids: Tensor) -> None:
    model = model_with(mechanism, dtype=F64)
    padded, mask = left_padded(ids, (4, 0, 2))
    words = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    words |= {"num_return_sequences": 2}
    with_cache = model.generate(padded, **words)
    assert torch.equal(with_cache, model.generate(padded, use_cache=False, **words))


def test_assisted_decoding_needs_a_memory_that_can_be_cropped(mechanism: str, ids: Tensor) -> None:
    model, ids = model_with(mechanism, dtype=F64), ids[:1]
    words = {"max_new_tokens": 15, "do_sample": False}
    helper = model_with("softmax", "rope", F64)
    if mechanism in SUMS:
        with pytest.raises(ConfigError, match="running sums cannot be cropped"):
            model.generate(ids, assistant_model=helper, **words)
        return
    assisted = model.generate(ids, assistant_model=helper, **words)
    assert torch.equal(assisted, model.generate(ids, **words))
    looked_up = model.generate(ids.repeat(1, 1), prompt_lookup_num_tokens=2, **words)
    assert torch.equal(looked_up, assisted)


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_tokens_are_streamed_as_they_come(ids: Tensor) -> None:
    heard = Heard()
    out = model_with("kuramoto").generate(
        ids[:1], max_new_tokens=6, do_sample=False, streamer=heard
    )
    assert heard.tokens == out[0].tolist()
    assert heard.ended


def test_our_sampler_acts_through_the_wrapper(mechanism: str, ids: Tensor) -> None:
    model = model_with(mechanism, dtype=F64)
    words: dict[str, Any] = {"do_sample": True, "max_new_tokens": 10, "seeds": [1, 2, 3]}
    own = {"max_new_tokens": 10, "seeds": [1, 2, 3]}
    plain = model.generate(ids, custom_generate=Sampler(), top_k=0, **words)
    assert torch.equal(plain, decode(model.gpt, ids, **own))
    if mechanism == "softmax":
        slip = PhaseSlip(angle=1.0)
        out = model.generate(ids, custom_generate=Sampler(slip), top_k=0, **words)
        assert torch.equal(out, decode(model.gpt, ids, intervention=slip, **own))
        assert not torch.equal(out, plain)


def test_the_loss_is_the_mean_of_the_next_tokens_surprise(mechanism: str, ids: Tensor) -> None:
    model = model_with(mechanism)
    labels = ids.clone()
    labels[0, :5] = -100
    out = model(ids, labels=labels)
    nats = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(out.loss, nats)
    out.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "wte" in name)
    model.zero_grad()


def test_a_pipeline_continues_a_text(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    export(ExportConfig(checkpoint=str(run), out=str(folder)))
    pipe = pipeline("text-generation", model=str(folder))
    (found,) = pipe("Shall I", max_new_tokens=10, do_sample=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Shall I", return_tensors="pt")["input_ids"]
    out = decode(pipe.model, ids, max_new_tokens=10, seeds=None, greedy=True)
    assert found["generated_text"] == tokenizer.decode(out[0])


def test_what_a_gpt_does_not_do_is_refused_by_name(ids: Tensor) -> None:
    model = model_with("kuramoto")
    other = model_with("softmax")
    past = model(ids).past_key_values
    for match, words in (
        ("inputs_embeds", {"inputs_embeds": torch.zeros(1, 2, 16)}),
        ("output_attentions", {"input_ids": ids, "output_attentions": True}),
        ("output_hidden_states", {"input_ids": ids, "output_hidden_states": True}),
        ("input_ids is missing", {}),
        ("use_cache=False", {"input_ids": ids, "past_key_values": past, "use_cache": False}),
        ("past_key_values is a tuple", {"input_ids": ids, "past_key_values": ()}),
        ("holds 3 rows", {"input_ids": ids[:2], "past_key_values": past}),
        ("has the shape", {"input_ids": ids, "attention_mask": torch.ones(3, 3)}),
        ("0 everywhere", {"input_ids": ids, "attention_mask": torch.zeros(3, 12)}),
        ("says another thing", {"input_ids": ids[:, :1], "past_key_values": past,
                                "attention_mask": torch.zeros(3, 13)}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=match):
            model(**words)
    with pytest.raises(ConfigError, match="cache_implementation"):
        other.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ConfigError, match="block_size"):
        other.generate(ids, max_new_tokens=40, do_sample=False)
    for size in ((66,), (None, 64)):
        with pytest.raises(ConfigError, match=r"keeps the size it was trained with, 65; .*rows"):
            other.resize_token_embeddings(*size)
    assert other.resize_token_embeddings(65) is other.get_input_embeddings()


@torch.no_grad()
def test_rows_of_a_cache_are_chosen_repeated_and_cropped(mechanism: str, ids: Tensor) -> None:
    model = model_with(mechanism)
    padded, mask = left_padded(ids, (4, 0, 2))
    whole = model(padded, attention_mask=mask, use_cache=False).logits
    cache = PaddedCache(model.gpt)
    cache.reorder_cache(torch.tensor([0]))  # empty ones have no rows
    cache.batch_repeat_interleave(2)
    cache.crop(-1)
    model(padded[:, :9], attention_mask=mask[:, :9], past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([4, 0, 3]))
    rows = torch.tensor([2, 0, 1])
    step = model(padded[rows, 9:11], attention_mask=mask[rows, :11], past_key_values=cache)
    close(step.logits, whole[rows, 9:11])
    cache.crop(0)
    assert cache.get_seq_length() == 11
    if mechanism in SUMS:
        with pytest.raises(ConfigError, match="running sums"):
            cache.crop(-2)
        return
    cache.crop(-4)
    assert cache.get_seq_length() == 7
    step = model(padded[rows, 7:], attention_mask=mask[rows], past_key_values=cache)
    close(step.logits, whole[rows, 7:])


@torch.no_grad()
def test_rows_that_became_alike_by_a_crop_go_on_as_they_were(ids: Tensor) -> None:
    model = model_with("kuramoto")
    mask = torch.ones_like(ids)
    mask[0, 10] = 0
    cache = model(ids[:, :11], attention_mask=mask[:, :11]).past_key_values
    cache.crop(-2)
    step = model(ids[:, 9:], past_key_values=cache)
    close(step.logits, model(ids).logits[:, 9:])


@torch.no_grad()
def test_padding_behind_the_text_needs_no_room(ids: Tensor) -> None:
    """Of a block_size of 32: 12 tokens and 30 of padding, whatever number stands there."""
    model = model_with("kuramoto")
    behind = torch.cat((ids, torch.full((3, 30), -1)), dim=1)
    mask = torch.zeros_like(behind)
    mask[:, :12] = 1
    mask[1, 8:12] = 0
    out = model(behind, attention_mask=mask, use_cache=False).logits
    assert out.shape[1] == 42 and (out[:, 12:] == 0).all()
    close(out[0, :12], model(ids[:1], use_cache=False).logits[0])
    close(out[1, :8], model(ids[1:2, :8], use_cache=False).logits[0])


@torch.no_grad()
def test_a_piece_of_padding_alone_goes_into_the_cache(ids: Tensor) -> None:
    model, past = model_with("kuramoto"), PaddedCache(model_with("kuramoto").gpt)
    mask = torch.ones(3, 14, dtype=torch.long)
    mask[:, 5:7] = 0
    padded = torch.cat((ids[:, :5], ids[:, :2], ids[:, 5:]), dim=1)
    found = []
    for begin, end in ((0, 5), (5, 7), (7, 14)):
        piece = model(padded[:, begin:end], attention_mask=mask[:, :end], past_key_values=past)
        found.append(piece.logits)
    assert (found[1] == 0).all()
    close(torch.cat((found[0], found[2]), dim=1), model(ids, use_cache=False).logits)


@torch.no_grad()
def test_what_a_cache_refuses_leaves_it_as_it_was(ids: Tensor) -> None:
    mixed = PhaseGPTConfig(
        n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=65, dropout=0.0,
        attention="phase_sync", attention_layers=(1,),
    )  # fmt: skip
    model = PhaseGPTForCausalLM(mixed).eval()
    past = PaddedCache(model.gpt)
    first = model(ids[:, :6], past_key_values=past).logits
    with pytest.raises(ConfigError, match="cannot be cropped"):
        past.crop(4)
    with pytest.raises(ConfigError, match="cannot attend to"):
        model(ids.repeat(1, 2)[:, 6:], past_key_values=past)
    assert past.get_seq_length() == 6
    rest = model(ids[:, 6:], past_key_values=past).logits
    close(torch.cat((first, rest), dim=1), model(ids, use_cache=False).logits)
    two, past = ids[:2].repeat(1, 2)[:, :16], PaddedCache(model.gpt)
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[0, :8] = 0
    model(two, attention_mask=mask[:, :16], past_key_values=past)
    with pytest.raises(ConfigError, match="cannot attend to 17"):
        model(two[:, :1], attention_mask=mask, past_key_values=past)
    assert [group.cache.length for group in past._groups] == [8, 16]
