"""Every option of Hugging Face's generate acts in our loop as in theirs, or is refused by name."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import PhaseSlip, Sampler, generate_options

SAMPLE = {"do_sample": True}
ENDS = {"eos_token_id": [5, 11, 17, 23, 29, 35, 41], "pad_token_id": 0}
LONG = {"max_new_tokens": 24}


def letters() -> Any:
    """A tokenizer of Hugging Face's with one letter per token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(ord("A") + i): i for i in range(65)}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="A"))
    own.pre_tokenizer, own.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=own)


#: By the name of an EQUAL option: values with which it acts, and others that it needs for that.
CASES: dict[str, dict] = {
    "max_length": {"max_length": 15},
    "max_new_tokens": {"max_new_tokens": 9},
    "min_length": {"min_length": 20, **ENDS, **LONG},
    "min_new_tokens": {"min_new_tokens": 12, **ENDS, **LONG},
    "max_time": {"max_time": 1e-9},
    "bos_token_id": {"bos_token_id": 3},
    "eos_token_id": {**ENDS, **LONG, **SAMPLE},
    "pad_token_id": {**ENDS, "pad_token_id": 61, **LONG, **SAMPLE},
    "decoder_start_token_id": {"decoder_start_token_id": 3},
    "do_sample": SAMPLE,
    "num_return_sequences": {"num_return_sequences": 3, **SAMPLE},
    "use_cache": {"use_cache": False, **SAMPLE},
    "cache_implementation": {"cache_implementation": "static", **SAMPLE},
    "cache_config": {"cache_config": {"nbits": 4}, **SAMPLE},
    "max_cache_len": {"cache_implementation": "static", "max_cache_len": 50, **SAMPLE},
    "disable_compile": {"cache_implementation": "static", "disable_compile": True, **SAMPLE},
    "temperature": {"temperature": 2.0, **SAMPLE},
    "top_k": {"top_k": 2, **SAMPLE},
    "top_p": {"top_p": 0.5, **SAMPLE},
    "min_p": {"min_p": 0.5, **SAMPLE},
    "top_h": {"top_h": 0.4, **SAMPLE},
    "typical_p": {"typical_p": 0.3, **SAMPLE},
    "epsilon_cutoff": {"epsilon_cutoff": 0.1, **SAMPLE},
    "eta_cutoff": {"eta_cutoff": 0.9, **SAMPLE},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1, **SAMPLE},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(1, 40)]},
    "sequence_bias": {"sequence_bias": {(5,): 9.0, (7, 8): -9.0}},
    "suppress_tokens": {"suppress_tokens": list(range(1, 40))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(1, 40)), **SAMPLE},
    "forced_bos_token_id": {"forced_bos_token_id": 7},
    "forced_eos_token_id": {"forced_eos_token_id": 7},
    "exponential_decay_length_penalty": {
        "exponential_decay_length_penalty": (3, 3.0), **ENDS, **LONG},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True, "top_k": 3, **SAMPLE},
    "guidance_scale": {"guidance_scale": 3.0},
    "watermarking_config": {"watermarking_config": {"bias": 9.0}, **SAMPLE},
    "transformers_version": {"transformers_version": "5.0.0"},
}  # fmt: skip
#: These name tokens, caches or versions: with them the tokens are those without.
SILENT = {"bos_token_id", "decoder_start_token_id", "cache_config", "transformers_version",
          "remove_invalid_values", "renormalize_logits", "use_cache", "cache_implementation",
          "max_cache_len", "disable_compile"}  # fmt: skip
#: By the name of a REFUSED option: a value that would act in generate.
REFUSED: dict[str, Any] = {
    "num_beams": 2, "early_stopping": True, "length_penalty": 2.0, "num_beam_groups": 2,
    "diversity_penalty": 0.5, "constraints": [object()], "force_words_ids": [[1]],
    "penalty_alpha": 0.6, "low_memory": True, "dola_layers": "high", "use_mtp": True,
    "is_assistant": True, "num_assistant_tokens": 5,
    "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.9,
    "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 3, "assistant_early_exit": 1,
    "assistant_lookbehind": 3, "target_lookbehind": 3, "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash", "return_dict_in_generate": True, "output_scores": True,
    "output_logits": True, "output_attentions": True, "output_hidden_states": True,
    "token_healing": True, "compile_config": "compile", "prefill_chunk_size": 2,
    "continuous_batching_config": "batching",
}  # fmt: skip


def both(model: Any, prompt: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Their tokens and ours from the same state of torch's generator."""
    if "max_length" not in options:
        options = {"max_new_tokens": 12, **options}
    torch.manual_seed(2)
    theirs = model.generate(prompt, **options)
    torch.manual_seed(2)
    return theirs, model.generate(prompt, custom_generate=Sampler(), **options)


def test_every_option_of_transformers_is_decided() -> None:
    from transformers import GenerationConfig, GenerationMixin

    options = {name for name in vars(GenerationConfig()) if name[0] != "_"}
    decided = generate_options.EQUAL | set(generate_options.REFUSED)
    assert options - decided == set()
    assert not generate_options.EQUAL & set(generate_options.REFUSED)
    taken = re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(
        GenerationMixin._extract_generation_mode_kwargs) + inspect.getsource(
        GenerationMixin.generate))  # fmt: skip
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) | set(taken)
    assert arguments - set(generate_options.ARGUMENTS) == {"self", "kwargs"}
    assert set(CASES) | {"stop_strings"} == generate_options.EQUAL
    assert set(REFUSED) == set(generate_options.REFUSED)


@pytest.mark.parametrize("name", CASES)
def test_an_option_gives_generates_own_tokens(name: str, hf: Callable, ids: Callable) -> None:
    model, options = hf("gpt2"), CASES[name]
    prompt = ids(3, 1 if name == "forced_bos_token_id" else 5)  # forced right after one token
    theirs, ours = both(model, prompt, **options)
    assert torch.equal(ours, theirs)
    without, _ = both(model, prompt, **{k: v for k, v in options.items() if k != name})
    assert (name in SILENT) == torch.equal(theirs, without)


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_cannot_act_is_refused_by_name(
    name: str, hf: Callable, ids: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt, value = hf("gpt2"), ids(1, 4), REFUSED[name]
    if value == "compile":
        from transformers import CompileConfig

        value = CompileConfig()
    says = "token.healing" if name == "token_healing" else name  # generate's own error
    with pytest.raises(ValueError, match=says):
        model.generate(prompt, max_new_tokens=2, custom_generate=Sampler(), **{name: value})
    monkeypatch.setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=says):
        model.generate(prompt, max_new_tokens=2, custom_generate=Sampler())


def test_contrastive_search_is_refused_and_an_unknown_option_too(
    hf: Callable, ids: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GenerationConfig

    model, prompt = hf("gpt2"), ids(1, 4)
    with pytest.raises(ConfigError, match=r"penalty_alpha=0\.6 .*contrastive"):
        model.generate(prompt, penalty_alpha=0.6, top_k=4, custom_generate=Sampler())
    own = GenerationConfig.__init__

    def later(self: Any, **options: Any) -> None:
        own(self, **options)
        self.sharper = None

    monkeypatch.setattr(GenerationConfig, "__init__", later)
    model.generate(prompt, custom_generate=Sampler())
    with pytest.raises(ConfigError, match=r"sharper=2 .*does not know it"):
        model.generate(prompt, sharper=2, custom_generate=Sampler())
    monkeypatch.setattr(GenerationConfig, "get_generation_mode", lambda *_: "oracle")
    with pytest.raises(ConfigError, match="not oracle"):
        model.generate(prompt, custom_generate=Sampler())


def test_arguments_of_generate_give_its_own_tokens(hf: Callable, ids: Callable) -> None:
    from transformers import GenerationConfig

    model, prompt = hf("gpt2"), ids(2, 5)

    def odd(batch: int, ids_T: Tensor) -> list[int]:
        return list(range(1 + batch, 60, 2))

    def long(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return ids[:, -1] % 4 == 0

    for options in (
        {"input_ids": prompt},
        {"generation_config": GenerationConfig(max_new_tokens=7, do_sample=True, top_k=3)},
        {"prefix_allowed_tokens_fn": odd, "do_sample": True},
        {"logits_processor": [lambda ids, z: -z]},
        {"stopping_criteria": [long], **LONG, **SAMPLE},
        {"stopping_criteria": [long], **LONG, **SAMPLE, **ENDS},
        {"guidance_scale": 2.0, "negative_prompt_ids": ids(2, 3, 5),
         "negative_prompt_attention_mask": torch.ones(2, 3).long()},
        {"logits_to_keep": 3},
    ):  # fmt: skip
        given = () if "input_ids" in options else (prompt,)
        torch.manual_seed(2)
        theirs = model.generate(*given, **options)
        torch.manual_seed(2)
        assert torch.equal(model.generate(*given, custom_generate=Sampler(), **options), theirs)


def test_positions_that_do_not_count_from_0_are_refused(hf: Callable, ids: Callable) -> None:
    model, prompt = hf("gpt2"), ids(2, 8)
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0
    counted = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    theirs, ours = both(model, prompt, attention_mask=mask, position_ids=counted)
    assert torch.equal(ours, theirs)
    rows = torch.arange(8).expand(2, 8)
    assert torch.equal(*both(model, prompt, position_ids=rows))
    for wrong in (rows + 20, torch.arange(8) + 20, rows[:, :7], rows[:, None].expand(2, 3, 8)[:1]):
        with pytest.raises(ConfigError, match=r"position_ids.*counts the tokens"):
            model.generate(prompt, position_ids=wrong, custom_generate=Sampler())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_arguments_of_the_model_act_or_are_refused_by_name(
    kind: str, hf: Callable, ids: Callable
) -> None:
    from transformers.utils.generic import TransformersKwargs

    model, prompt = hf(kind), ids(1, 4)
    names = {*inspect.signature(model.forward).parameters, *TransformersKwargs.__optional_keys__}
    known = {"attention_mask", "past_key_values", "input_ids", *generate_options.MODEL_ARGUMENTS}
    for name in sorted(names - known - {"kwargs"}):
        value = torch.zeros(1, 4, 32) if name == "inputs_embeds" else torch.ones(1, 4).long()
        value = True if name.startswith("output_") else value
        with pytest.raises(ValueError, match=name):
            model.generate(prompt, max_new_tokens=2, custom_generate=Sampler(), **{name: value})


def test_a_cache_of_ones_own_is_filled_and_must_be_empty(hf: Callable, ids: Callable) -> None:
    from transformers import DynamicCache

    model, prompt = hf("llama"), ids(1, 5)
    cache = DynamicCache()
    out = model.generate(prompt, past_key_values=cache, max_new_tokens=6, custom_generate=Sampler())
    assert cache.get_seq_length() == out.shape[1] - 1
    with pytest.raises(ConfigError, match="past_key_values hold 10 tokens"):
        model.generate(out, past_key_values=cache, max_new_tokens=6, custom_generate=Sampler())


# ---- streams and stop strings


class Recorder:
    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.given.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_beside_custom_generate_is_refused_and_ended(
    hf: Callable, ids: Callable
) -> None:
    streamer = Recorder()
    with pytest.raises(ConfigError, match=r"streamer=.*Sampler\(\.\.\.\)\.generate"):
        hf("gpt2").generate(ids(1, 4), streamer=streamer, custom_generate=Sampler())
    assert streamer.ended == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [({"assistant_model": "gpt2"}, "assisted"), ({"synced_gpus": True}, "wait")],
)
def test_what_generate_keeps_to_itself_is_refused(
    options: dict, says: str, hf: Callable, ids: Callable
) -> None:
    model = hf("gpt2")
    options = {k: model if v == "gpt2" else v for k, v in options.items()}
    with pytest.raises(ConfigError, match=f"{next(iter(options))}=.*{says}"):
        model.generate(ids(1, 4), custom_generate=Sampler(), **options)


def test_sampler_generate_streams_as_generate_does(hf: Callable, ids: Callable) -> None:
    model, prompt, heard = hf("gpt2"), ids(2, 4), [Recorder(), Recorder()]
    torch.manual_seed(1)
    theirs = model.generate(prompt, streamer=heard[0], max_new_tokens=9, **SAMPLE)
    torch.manual_seed(1)
    ours = Sampler().generate(model, prompt, streamer=heard[1], max_new_tokens=9, **SAMPLE)
    assert torch.equal(ours, theirs)
    assert vars(heard[0]) == vars(heard[1])
    seeded = [
        Sampler(PhaseSlip([(2, 0)], angle=0.3)).generate(model, prompt, seeds=[1, 2], **SAMPLE)
        for _ in range(2)
    ]
    assert torch.equal(*seeded)


@pytest.mark.parametrize("options", [
    {"num_beams": 2}, {"cache_implementation": "paged"}, {"nonsense": 1}, {"max_length": 2},
])  # fmt: skip
def test_an_error_ends_the_stream_once(options: dict, hf: Callable, ids: Callable) -> None:
    streamer = Recorder()
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampler().generate(hf("gpt2"), ids(1, 4), streamer=streamer, **options)
    assert streamer.ended == 1


@pytest.mark.parametrize("ends", [{}, ENDS], ids=["no end token", "end tokens"])
def test_stop_strings_stop_as_in_generate(ends: dict, hf: Callable, ids: Callable) -> None:
    model, prompt = hf("gpt2"), ids(3, 4)
    torch.manual_seed(1)
    free = model.generate(prompt, **SAMPLE, **LONG)
    strings = ["".join(chr(ord("A") + i) for i in free[row, 8:10].tolist()) for row in (0, 1)]
    options = {**SAMPLE, **LONG, **ends, "stop_strings": strings, "tokenizer": letters()}
    torch.manual_seed(1)
    theirs = model.generate(prompt, **options)
    torch.manual_seed(1)
    assert torch.equal(Sampler().generate(model, prompt, **options), theirs)
    with pytest.raises(ValueError, match="stop strings"):
        Sampler().generate(model, prompt, stop_strings=strings)


def test_a_model_without_generate_is_sent_to_decode(make_model: Callable) -> None:
    with pytest.raises(ConfigError, match="decode"):
        Sampler().generate(make_model(), torch.ones(1, 2).long())


@pytest.mark.parametrize("name", [
    n for n, given in CASES.items()
    if n != "forced_bos_token_id" and "cache_implementation" not in given
])  # fmt: skip
def test_padded_rows_of_our_model_get_generates_own_tokens(
    name: str, hf: Callable, ids: Callable
) -> None:
    """Rows of three lengths: what looks at rows, lengths or padding sees what generate shows it."""
    prompt, mask = ids(3, 6), torch.ones(3, 6, dtype=torch.long)
    mask[1, :2], mask[2, :4] = 0, 0
    theirs, ours = both(hf("ours"), prompt * mask, attention_mask=mask, **CASES[name])
    assert torch.equal(ours, theirs)


def test_padded_rows_of_our_model_end_as_generate_has_it(hf: Callable, ids: Callable) -> None:
    model, prompt, mask = hf("ours"), ids(2, 4), torch.ones(2, 4, dtype=torch.long)
    mask[1, :2] = 0
    more: list[dict] = [
        {"logits_processor": [lambda ids, z: torch.eye(65)[(ids[:, -1] + 1) % 65]]},
        {"prefix_allowed_tokens_fn": lambda row, _: [11] if row == 0 else [12]},
    ]
    for options in more:
        theirs, ours = both(model, prompt * mask, attention_mask=mask, **options)
        assert torch.equal(ours, theirs)
    past = model(prompt[:, :2], use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="hold 2 tokens"):
        model.generate(prompt, past_key_values=past, custom_generate=Sampler())
    slips = {"custom_generate": Sampler(PhaseSlip(angle=0.3)), "attention_mask": mask}
    with pytest.raises(ConfigError, match=r"PrefixConstrained.* would be shown other rows"):
        model.generate(prompt * mask, max_new_tokens=3, **slips, **more[1])
    out = model.generate(prompt * mask, max_new_tokens=3, seeds=[1, 2], top_k=5, **SAMPLE, **slips,
                         renormalize_logits=True)  # fmt: skip
    assert out.shape == (2, 7)
