"""Small random models of Hugging Face, with weights far enough from 0 that texts differ."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

VOCAB = 65


def rough(model: Any, scale: float) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, None)
        setattr(model.generation_config, name, None)
    model.generation_config.pad_token_id = 0
    return model.eval()


@functools.cache
def build(kind: str) -> Any:
    if kind == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            n_layer=4, n_head=4, n_embd=32, n_positions=64, vocab_size=VOCAB,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return rough(GPT2LMHeadModel(config), 0.15)
    if kind == "ours":
        from phasegpt.model.huggingface import PhaseGPTConfig, PhaseGPTForCausalLM

        config = PhaseGPTConfig(
            n_layer=2, n_head=2, n_embd=16, block_size=64, vocab_size=VOCAB, dropout=0.0,
            positions="rope", attention="kuramoto", attention_layers=(1,),
        )  # fmt: skip
        return rough(PhaseGPTForCausalLM(config), 0.2)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, hidden_size=32,
        intermediate_size=48, vocab_size=VOCAB, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return rough(LlamaForCausalLM(config), 0.1)


@pytest.fixture
def hf() -> Callable[[str], Any]:
    """hf("gpt2"), hf("llama"): 4 layers, 64 positions; Llama has 2 key/value heads of 4.

    hf("ours"): a GPT of ours of 2 layers in Hugging Face's class, with phases in the second.
    """
    return build


@pytest.fixture
def ids() -> Callable[..., Tensor]:
    """ids(B, T): random tokens, none of them the padding 0."""

    def make(batch: int, time: int, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(1, VOCAB, (batch, time), generator=generator)

    return make


@pytest.fixture
def words() -> Any:
    """A tokenizer of one character per token, as ours are: encode, decode, vocab_size."""

    class Characters:
        vocab_size = VOCAB

        def encode(self, text: str) -> list[int]:
            return [ord(c) - 32 for c in text.upper()]

        def decode(self, ids: Any) -> str:
            return "".join(chr(int(i) + 32) for i in ids)

    return Characters()
