"""Hugging Face models beyond GPT-2 and Llama: what works is right, what cannot work says why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import VOCAB

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import PhaseSlip, Sampler, calibrate_heads, decode, fit_temperature

HEADS = [(2, 0)]
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48}
KINDS = {
    "GPTNeo": {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 64,
               "attention_types": [[["global"], 4]]},
    "Falcon": {**SIZES, "multi_query": True, "alibi": False},
    "Qwen2": {**LLAMA, "max_position_embeddings": 64},
    "Bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4},
    "GPTBigCode": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "Gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 8},
    "DeepseekV3": {
        **SIZES, "num_key_value_heads": 4, "intermediate_size": 48, "moe_intermediate_size": 16,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "Bart": {"d_model": 32, "decoder_layers": 4, "decoder_attention_heads": 4,
             "decoder_ffn_dim": 48, "max_position_embeddings": 64},
}  # fmt: skip


def build(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    special = dict.fromkeys(("bos_token_id", "eos_token_id"))
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB, pad_token_id=0, **special, **KINDS[kind]
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def slipped(kind: str, ids: Callable, heads: Any = HEADS, batch: int = 2) -> PhaseSlip:
    slip = PhaseSlip(heads, angle=0.5)
    seeds = list(range(batch))
    decode(build(kind), ids(batch, 6), max_new_tokens=4, seeds=seeds, intervention=slip)
    return slip


@pytest.mark.parametrize("kind", ["GPTNeo", "Falcon", "Qwen2"])
def test_other_models_slip_beside_an_unchanged_clean_path(kind: str, ids: Callable) -> None:
    model, prompt = build(kind), ids(2, 6)
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": True, "max_new_tokens": 20}
    torch.manual_seed(1)
    own = model.generate(prompt, **options)
    torch.manual_seed(1)
    ours = model.generate(
        prompt, **options, custom_generate=Sampler(PhaseSlip(HEADS, angle=0.5, anchor=1.0))
    )
    assert torch.equal(own, ours)
    assert min(float(step.kl.min()) for step in slipped(kind, ids).trace) > 0


def test_heads_are_counted_as_the_memory_keeps_them(ids: Callable) -> None:
    # Falcon names 4 key/value heads in its configuration and keeps one.
    assert calibrate_heads(build("Falcon"), ids(2, 20)).scores.shape == (4, 1)
    assert slipped("Falcon", ids, "auto")._fitted[1] == [(2, 0), (3, 0)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["Bloom", "GPTBigCode"])
def test_a_model_that_fixes_the_number_of_rows_is_named(
    kind: str, batch: int, ids: Callable
) -> None:
    with pytest.raises(ConfigError, match=f"{kind}ForCausalLM cannot compute a second path"):
        slipped(kind, ids, batch=batch)


def test_an_error_of_the_users_own_is_not_taken_for_the_models(ids: Callable) -> None:
    model, steps = build("Qwen2"), []

    def fail(module: Any, args: tuple, output: Any) -> None:
        steps.append(1)
        if len(steps) == 4:
            raise RuntimeError("my own hook is wrong")

    model.model.layers[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="my own hook is wrong"):
        decode(
            model, ids(1, 6), max_new_tokens=9, seeds=[1], intervention=PhaseSlip(HEADS, angle=1)
        )


def test_a_state_space_model_is_sampled_without_the_cache(ids: Callable) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=VOCAB, state_size=4)
    model, prompt = MambaForCausalLM(config).eval(), ids(1, 6)
    options = {"max_new_tokens": 5, "do_sample": True, "eos_token_id": None}
    with pytest.raises(ConfigError, match="pass use_cache=False"):
        model.generate(prompt, **options, custom_generate=Sampler())
    found = []
    for sampler in (None, Sampler()):
        torch.manual_seed(1)
        found.append(model.generate(prompt, **options, custom_generate=sampler, use_cache=False))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("kind", "heads", "says"),
    [
        ("Gemma2", "auto", "DynamicSlidingWindowLayer"),
        ("DeepseekV3", HEADS, "latent vector"),
        ("DeepseekV3", "auto", "latent vector"),
        ("Bart", HEADS, "12 blocks of BartForCausalLM were not found"),
        ("Bart", "auto", "12 blocks of BartForCausalLM were not found"),
        ("GPTNeo", "auto", "give the heads and the angle"),
        ("Bloom", "auto", "give the heads and the angle"),
    ],
)
def test_a_memory_that_cannot_be_edited_or_calibrated_is_named(
    kind: str, heads: Any, says: str, ids: Callable
) -> None:
    with pytest.raises(ConfigError, match=says):
        slipped(kind, ids, heads)


def test_an_encoder_and_decoder_is_no_causal_model() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48, vocab_size=VOCAB)
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration is no model to decode with"):
        decode(T5ForConditionalGeneration(config), torch.ones(1, 4).long(), max_new_tokens=1,
               seeds=[1])  # fmt: skip


@pytest.mark.parametrize("kind", ["Bloom", "Gemma2", "DeepseekV3"])
def test_every_causal_model_can_be_sampled_and_fitted(kind: str, ids: Callable) -> None:
    model = build(kind)
    assert decode(model, ids(2, 6), max_new_tokens=5, seeds=[1, 2]).shape == (2, 11)
    assert torch.isfinite(torch.tensor(fit_temperature(model, ids(1, 100)[0]).temperature))
