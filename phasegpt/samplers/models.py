"""What the decoding loop needs of a model, for ours and for Hugging Face's causal models.

Hugging Face's are known by what they have, not by their classes: this imports no transformers.

Shapes: B batch, T time, V vocabulary, D model width; R rows of a split cache (B or 2B).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from phasegpt.attention._cache import Cache
from phasegpt.core.errors import ConfigError
from phasegpt.model.gpt import GPT
from phasegpt.model.padding import PaddedCache, padded_logits


class Decoder(Protocol):
    """One model as the loop sees it."""

    module: Any
    context: int | None  # tokens that it can attend to; None: not known
    vocab_size: int
    head: nn.Module  # the linear map to logits; has `weight` [V,D]
    slides: bool  # whether its window moves on when the context is full

    def read(self, ids_BT: Tensor, mask_BT: Tensor | None, keep: bool) -> tuple[Tensor, Any]:
        """Logits[B,V] after the last token, float32, and a cache of the tokens if `keep`."""
        ...

    def step(self, ids_B1: Tensor, mask_BT: Tensor | None, cache: Any) -> Tensor:
        """Logits[R,V] after one more token, float32; the cache is extended."""
        ...

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in their order; ConfigError where they are not found."""
        ...

    def editable(self, cache: Any) -> Cache:
        """The cache in our form; ConfigError where it cannot be edited."""
        ...

    def expanding(self, cache: Cache) -> Any:
        """Context in which the model follows the rows of a split cache."""
        ...


def decoder(model: Any, past_key_values: Any = None) -> Decoder:
    """`model` as the loop sees it; ConfigError for what is no causal language model."""
    if isinstance(model, nn.Module) and any(p.is_meta for p in model.parameters()):
        raise ConfigError("the model is on the device meta, where its weights hold no numbers")
    own = getattr(model, "gpt", model)  # PhaseGPTForCausalLM is a GPT of ours inside
    if isinstance(own, GPT) and isinstance(past_key_values, PaddedCache):
        _check_empty(past_key_values)
        return Padded(own, past_key_values)
    if isinstance(own, GPT) and past_key_values is not None:
        raise ConfigError("a GPT of ours keeps its own cache; set use_cache to True or False")
    if isinstance(own, GPT):
        return _Own(own)
    head = getattr(model, "get_output_embeddings", None)
    if head is not None and head() is not None and not model.config.is_encoder_decoder:
        return _HuggingFace(model, past_key_values)
    raise ConfigError(
        f"{type(model).__name__} is no model to decode with; give a phasegpt GPT or a Hugging Face "
        f"causal language model"
    )


def _check_empty(past_key_values: Any) -> None:
    if held := past_key_values.get_seq_length():
        raise ConfigError(
            f"the given past_key_values hold {held} tokens; decoding begins with an empty cache: "
            f"pass the whole text as ids instead"
        )


class _Own:
    """A GPT of ours: no padding, and its attentions keep their own memory."""

    slides = True

    def __init__(self, model: GPT) -> None:
        self.module: Any = model
        self.context: int | None = model.config.block_size
        self.vocab_size = model.config.vocab_size
        self.head: nn.Module = model.lm_head

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.module.blocks)

    def read(self, ids_BT: Tensor, mask_BT: Tensor | None, keep: bool) -> tuple[Tensor, Any]:
        # forward, not __call__: a compiled model would compile again for every length.
        cache = self.module.new_cache() if keep else None
        return self.module.forward(ids_BT, cache=cache).logits[:, -1].float(), cache

    def step(self, ids_B1: Tensor, mask_BT: Tensor | None, cache: Any) -> Tensor:
        return self.module.forward(ids_B1, cache=cache).logits[:, -1].float()

    def editable(self, cache: Any) -> Cache:
        return cache

    @contextmanager
    def expanding(self, cache: Cache) -> Iterator[None]:
        yield  # GPT.forward does it


class Padded(_Own):
    """A GPT of ours whose rows are decoded together under Hugging Face's padding."""

    slides = False

    def __init__(self, model: GPT, cache: PaddedCache) -> None:
        super().__init__(model)
        self._cache = cache

    def read(self, ids_BT: Tensor, mask_BT: Tensor | None, keep: bool) -> tuple[Tensor, Any]:
        """See Decoder."""
        cache = self._cache if keep else None
        return padded_logits(self.module, ids_BT, mask_BT, cache)[:, -1].float(), cache

    def step(self, ids_B1: Tensor, mask_BT: Tensor | None, cache: Any) -> Tensor:
        """See Decoder."""
        return padded_logits(self.module, ids_B1, mask_BT, cache)[:, -1].float()

    def editable(self, cache: Any) -> Cache:
        """See Decoder."""
        raise ConfigError(
            "a PaddedCache holds a memory for each length of rows, which an intervention cannot "
            "edit; leave it out: rows are then decoded length by length"
        )


class _HuggingFace:
    """A causal model of transformers."""

    slides = False

    def __init__(self, model: Any, past_key_values: Any) -> None:
        self.module, self._past = model, past_key_values
        self._config = model.config.get_text_config()
        positions = getattr(self._config, "max_position_embeddings", None)
        self.context = positions if positions and positions > 0 else None  # XLNet says -1
        self.head = model.get_output_embeddings()
        self.vocab_size = self._config.vocab_size
        self._doubled = False  # whether a second path has been computed
        self._takes = set(inspect.signature(model.forward).parameters)
        if past_key_values is not None:
            _check_empty(past_key_values)

    @property
    def blocks(self) -> list[nn.Module]:
        layers = self._config.num_hidden_layers
        for module in self.module.modules():
            if isinstance(module, nn.ModuleList) and len(module) == layers:
                return list(module)
        raise ConfigError(
            f"the {layers} blocks of {type(self.module).__name__} were not found, and an "
            f"intervention acts in some of them; decode without it"
        )

    def _inputs(self, ids_BT: Tensor, mask_BT: Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": ids_BT}
        if mask_BT is not None:
            inputs["attention_mask"] = mask_BT
            position = (mask_BT.long().cumsum(-1) - 1).masked_fill(mask_BT == 0, 0)
            if "position_ids" in self._takes:
                inputs["position_ids"] = position[:, -ids_BT.shape[1] :]
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = 1
        return inputs

    def read(self, ids_BT: Tensor, mask_BT: Tensor | None, keep: bool) -> tuple[Tensor, Any]:
        inputs = self._inputs(ids_BT, mask_BT)
        if keep:
            inputs["past_key_values"] = self._past
        out = self.module(**inputs, use_cache=keep)
        cache = getattr(out, "past_key_values", None) if keep else None
        if keep and cache is None:
            raise ConfigError(
                f"{type(self.module).__name__} returns no past_key_values; set use_cache=False"
            )
        return out.logits[:, -1].float(), cache

    def step(self, ids_B1: Tensor, mask_BT: Tensor | None, cache: Any) -> Tensor:
        inputs = self._inputs(ids_B1, mask_BT)
        doubled = getattr(cache, "split_at", None) is not None
        try:
            out = self.module(**inputs, past_key_values=cache, use_cache=True)
        except (RuntimeError, ValueError) as error:
            # Out of memory and not implemented have nothing to do with the number of rows.
            first = doubled and not self._doubled
            if not first or isinstance(error, (torch.OutOfMemoryError, NotImplementedError)):
                raise
            raise ConfigError(
                f"{type(self.module).__name__} cannot compute a second path beside the clean one: "
                f"its own code seems to fix the number of rows ({error}); decode without the "
                f"intervention"
            ) from error
        self._doubled = doubled
        return out.logits[:, -1].float()

    def editable(self, cache: Any) -> Cache:
        kinds = sorted({type(layer).__name__ for layer in getattr(cache, "layers", [None])})
        # Quantized, sliding, static and recurrent layers do not hold what was given to them.
        if kinds != ["DynamicLayer"]:
            raise ConfigError(
                f"this model's cache cannot be edited: {type(cache).__name__} of "
                f"{', '.join(kinds)}; an intervention needs full-attention layers with a plain "
                f"dynamic cache (no cache_implementation, no sliding window)"
            )
        if len(self.blocks) != len(cache.layers):
            raise ConfigError(
                f"{type(self.module).__name__} has {len(self.blocks)} blocks and its cache "
                f"{len(cache.layers)} layers: whose memory is whose is not known, so it cannot be "
                f"edited"
            )
        if getattr(self._config, "kv_lora_rank", None):
            raise ConfigError(
                f"the cache of {type(self.module).__name__} keeps one latent vector per token, "
                f"from which it makes its keys and Values anew: there are none to edit"
            )
        return Cache.holding((layer.keys, layer.values) for layer in cache.layers)

    @contextmanager
    def expanding(self, cache: Cache) -> Iterator[None]:
        at = cache.split_at
        if at is None:
            yield
            return

        def double(x: Any, rows: int) -> Any:
            if isinstance(x, tuple):
                return tuple(double(item, rows) for item in x)
            batched = isinstance(x, Tensor) and x.dim() > 1 and x.shape[0] == rows > 1
            return torch.cat((x, x)) if batched else x

        def hook(first: bool) -> Any:
            def expand(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
                hidden = args[0] if args else kwargs["hidden_states"]
                rows = len(hidden) if first else len(hidden) // 2
                wide = torch.cat((hidden, hidden)) if first else hidden
                rest = {k: double(v, rows) for k, v in kwargs.items() if k != "hidden_states"}
                if not args:
                    return (), {"hidden_states": wide, **rest}
                return (wide, *(double(x, rows) for x in args[1:])), rest

            return expand

        # Masks and positions are given to every block, for B rows.
        handles = [
            block.register_forward_pre_hook(hook(i == 0), with_kwargs=True)
            for i, block in enumerate(self.blocks[at:])
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
