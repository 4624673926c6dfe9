"""GPT-2 with a swappable attention in every block.

Parameter names and initialisation are GPT-2's. Shapes: B batch, T time, D model width, V words,
H heads, N oscillators.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phasegpt.attention import (
    Attention,
    AttentionOutput,
    Flops,
    Link,
    Phase,
    ReturnPhase,
    build,
    layer_class,
    linear_flops,
)
from phasegpt.attention._cache import Cache, LayerCache
from phasegpt.attention._oscillators import CoupledPhases
from phasegpt.core import arguments
from phasegpt.core.errors import ConfigError
from phasegpt.core.randomness import keyed_generator
from phasegpt.model import growth, published
from phasegpt.model.body import Head, mlp, norm
from phasegpt.model.config import AttentionSection, GPTConfig, check_memory
from phasegpt.phase.steering import NoiseKey, Perturbation


class GPTOutput(NamedTuple):
    """logits[B,T,V] (or [M,V] at M positions), and by layer index the phases if asked."""

    logits: Tensor
    phase: dict[int, Phase]


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        """Softmax attention unless `layer` is one of config.attention_layers."""
        super().__init__()
        special = layer in config.attention_layers
        name = config.attention if special else "softmax"
        options = config.attention_options if special else None
        self.ln_1 = norm(config)
        self.attn: Attention = build(name, config, options, layer)
        if config.mlp != "none":
            self.ln_2 = norm(config)
        self.mlp = mlp(config)

    def forward(
        self,
        x_BTD: Tensor,
        cache: LayerCache | None,
        perturbation: Perturbation | None,
        return_phase: ReturnPhase,
        carry: Tensor | None = None,
        link: Link | None = None,
    ) -> AttentionOutput:
        """The block's output as `y`, with its attention's phases, and the carry for the next."""
        carried: dict[str, Any] = {} if self.attn.link is None else {"carry": carry}
        mixed = self.attn(
            self.ln_1(x_BTD),
            cache=cache,
            perturbation=perturbation,
            return_phase=return_phase,
            **carried,
        )
        x_BTD = x_BTD + mixed.y
        if self.mlp is not None:
            x_BTD = x_BTD + self.mlp(self.ln_2(x_BTD))
        carry = mixed.carry if carried else carry
        if link is not None:
            assert carry is not None  # the first layer of a mechanism with a link begins it
            carry = link(x_BTD, carry, cache=None if cache is None else cache.child("link"))
        return AttentionOutput(x_BTD, mixed.phase, carry)


class GPT(nn.Module):
    """Decoder-only language model; `config` is flat and frozen.

    `tokenizer` is set on models that were loaded from a checkpoint.

    Parameters are drawn from streams keyed by (seed, parameter name), so two models that differ
    in one layer's mechanism share every other initial weight. Without `seed`, one is taken from
    torch's global generator.
    """

    tokenizer: Any = None

    def __init__(self, config: GPTConfig, seed: int | None = None) -> None:
        """Build on the CPU and initialise."""
        super().__init__()
        check_memory(config)
        self.config = config
        parts: dict[str, nn.Module] = {"wte": nn.Embedding(config.vocab_size, config.n_embd)}
        if config.positions == "learned":
            parts["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        parts["drop"] = nn.Dropout(config.dropout)
        parts["h"] = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        linking = layer_class(config.attention).link if config.attention_layers else None
        if linking is not None:
            if len(config.attention_layers) < 2:
                raise ConfigError(
                    f"attention={config.attention} hands its state from layer to layer, and "
                    f"attention.layers={list(config.attention_layers)} is one of model.n_layer="
                    f"{config.n_layer}; give it two layers at least"
                )
            parts["link"] = linking(config, config.attention_options)
        parts["ln_f"] = norm(config)
        self.transformer = nn.ModuleDict(parts)
        if config.kv_heads < config.n_head and not any(b.attn.softmax_parts for b in self.blocks):
            raise ConfigError(
                f"model.n_kv_head={config.n_kv_head} does nothing: attention={config.attention} in "
                f"every layer has no keys and values; leave it out"
            )
        self.lm_head = Head(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = parts["wte"].weight  # type: ignore[assignment]
        self.reset_parameters(int(torch.randint(2**31, ()).item()) if seed is None else seed)

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order."""
        return cast(list[Block], list(cast(nn.ModuleList, self.transformer["h"])))

    @property
    def link(self) -> Link | None:
        """What updates the carry between blocks, if the mechanism has one."""
        return cast(Link, self.transformer["link"]) if "link" in self.transformer else None

    @property
    def leaky(self) -> bool:
        """True if some layer sees the future."""
        return any(block.attn.leaky for block in self.blocks)

    @property
    def oscillators(self) -> dict[int, CoupledPhases]:
        """Those of every layer that has some, by layer."""
        return {
            layer: module
            for layer, block in enumerate(self.blocks)
            for module in block.attn.modules()
            if isinstance(module, CoupledPhases)
        }

    def reset_parameters(self, seed: int) -> None:
        """GPT-2's rule: N(0, 0.02), residual projections over sqrt(2 n_layer), biases 0.

        Oscillator parameters then follow their own layer's rule.
        """
        for name, module in self.named_modules():
            tied = name == "lm_head" and self.config.tie_embeddings
            if isinstance(module, (nn.Linear, nn.Embedding)) and not tied:
                scale = (2 * self.config.n_layer) ** -0.5 if name.endswith("c_proj") else 1.0
                generator = keyed_generator("init", seed, f"{name}.weight")
                nn.init.normal_(module.weight, std=0.02 * scale, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer, block in enumerate(self.blocks):
            block.attn.reset_oscillators(partial(keyed_generator, "init", seed, f"h.{layer}"))
        if self.link is not None:
            self.link.reset(partial(keyed_generator, "init", seed, "link"))

    def num_parameters(self, *, non_embedding: bool = True) -> int:
        """Trainable numbers; the tied head counts once, embeddings only if asked."""
        total = sum(p.numel() for p in self.parameters())
        if non_embedding:
            total -= sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Embedding))
        return total

    def flops(self, time: int, *, backward: bool = False, scored: float = 1.0) -> Flops:
        """FLOPs of one token among `time`: attention, links, MLPs and head, see attention.Flops.

        `scored`: the share of tokens that the head runs for, see `only_BT` of forward.

        `backward`: of forward and backward together, three times as many, since a matrix product
        has two gradients of its size; activations that are computed again are not counted. The
        elementwise work is that of the attention layers alone.
        """
        layers = [block.attn.flops(time) for block in self.blocks]
        if self.link is not None:
            layers += [self.link.flops(time)] * len(self._linked)
        body = [block.mlp for block in self.blocks if block.mlp is not None]
        weights = sum(map(linear_flops, body)) + scored * linear_flops(self.lm_head)
        layers.append(Flops(weights, 0.0, 0.0))
        return Flops.sum(layers * (3 if backward else 1))

    @property
    def _linked(self) -> tuple[int, ...]:
        """The layers after which the link runs."""
        return self.config.attention_layers[:-1] if self.link is not None else ()

    def forward(
        self,
        idx_BT: Tensor,
        *,
        cache: Cache | None = None,
        perturbations: Mapping[int, Perturbation] | None = None,
        return_phase: ReturnPhase = False,
        only_BT: Tensor | None = None,
    ) -> GPTOutput:
        """Predict the next token at every position, or where `only_BT` (bool) is true.

        idx_BT: token ids. `cache` (see new_cache) holds the tokens before and is extended; when
        it is split, the logits are those of its 2B rows. With `only_BT` the logits are [M,V], of
        its M true positions row by row: a large head costs no more than what is scored.
        `perturbations` by layer come from draw_perturbations, in training; for `return_phase`
        see phasegpt.attention.ReturnPhase. Raises ConfigError when the tokens do not fit into
        block_size.
        """
        # Where these tokens stand.
        if not torch.compiler.is_compiling():
            _check_inputs(idx_BT, cache, perturbations, return_phase, self.config.n_layer)
            if idx_BT.device != (device := self.lm_head.weight.device):
                raise ConfigError(
                    f"idx_BT is on {idx_BT.device} and the model on {device}; move one of them"
                )
        start = cache.length if cache is not None else 0
        T = idx_BT.shape[1]
        if start + T > self.config.block_size:
            raise ConfigError(
                f"cannot attend to {start + T} tokens: model.block_size is "
                f"{self.config.block_size}; pass fewer tokens"
            )

        # Tokens and learned positions into the residual stream.
        x_BTD = self._embedded(idx_BT)
        if "wpe" in self.transformer:
            position = torch.arange(start, start + T, device=idx_BT.device)
            x_BTD = x_BTD + self.transformer["wpe"](position)
        x_BTD = self.transformer["drop"](x_BTD)

        # Every block adds its attention and its MLP; phase layers hand out their phases.
        recompute = self.config.activation_checkpointing and self.training and cache is None
        phases: dict[int, Phase] = {}
        carry: Tensor | None = None  # what a mechanism with a link hands from layer to layer
        linked = self._linked
        for layer, block in enumerate(self.blocks):
            perturbation = None if perturbations is None else perturbations.get(layer)
            link = self.link if layer in linked else None
            layer_cache = None if cache is None else cache.layers[layer]
            if cache is not None:
                x_BTD = cache.expand(layer, x_BTD)
                carry = None if carry is None else cache.expand(layer, carry)
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            x_BTD, phase, carry = run(x_BTD, layer_cache, perturbation, return_phase, carry, link)
            if phase is not None:
                phases[layer] = phase

        # The stream, normalised, against every word (the head is the embedding, if tied).
        if only_BT is not None:
            x_BTD = x_BTD[only_BT]
        return GPTOutput(self.lm_head(self.transformer["ln_f"](x_BTD)), phases)

    def _embedded(self, idx_BT: Tensor) -> Tensor:
        """The tokens' rows of the embedding. On the CPU ConfigError for a token without one."""
        if torch.compiler.is_compiling():
            return self.transformer["wte"](idx_BT)
        try:
            return self.transformer["wte"](idx_BT)
        except IndexError:
            last = self.config.vocab_size - 1
            raise ConfigError(
                f"idx_BT holds a token outside of the vocabulary, 0..{last}"
            ) from None

    def new_cache(self) -> Cache:
        """An empty decode cache, written in place: no gradient goes through more than one call.

        ConfigError for a model that sees the future.
        """
        if self.leaky:
            raise ConfigError(
                f"this model sees the future (attention={self.config.attention}), so it cannot "
                f"decode with a cache"
            )
        return Cache(self.config.n_layer)

    def draw_perturbations(self, key: NoiseKey, time: int) -> dict[int, Perturbation]:
        """Training noise of every layer that has some; a pure function of the key."""
        device = self.lm_head.weight.device
        drawn = {
            layer: block.attn.draw_perturbation(key, time, device)
            for layer, block in enumerate(self.blocks)
        }
        return {layer: p for layer, p in drawn.items() if p is not None}

    @classmethod
    def from_hf(
        cls,
        name_or_folder: str | Path,
        attention: str = "softmax",
        *,
        layers: Literal["all"] | Sequence[int] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> GPT:
        """Published weights of GPT-2 or Llama: a folder with config.json and safetensors, or an id.

        In eval mode, as phasegpt.load returns it; call train() to go on training. Reads the files
        itself, without transformers; what they hold and a GPT does not compute is refused by name.

        attention: a mechanism grown into `layers` (None: all), with its own `options`. It keeps
        their projections where it has a use for them, and warns of those it has none for;
        what is new follows its rule, drawn from `seed` as in a GPT's. With kuramoto and beta=0, or
        a hybrid and blend=0, the logits are theirs (GPT-2's bit for bit on a CPU, at its head width
        of 64, where a sum does not depend on zeros beside it).
        Raises CheckpointError, and ConfigError for the options.
        """
        folder = published.find(arguments.path("name_or_folder", name_or_folder))
        found = published.config(folder)
        plain = cls(found, seed=0)
        published.fill(plain, folder)
        values = {"name": attention, "layers": "all" if layers is None else layers, **options}
        section = AttentionSection.parse(values)
        section.check_idle()
        if section.name == "softmax" and layers is None:
            return plain.eval()
        config = replace(
            found,
            attention=section.name,
            attention_layers=section.in_layers(found.n_layer),
            attention_options=section.options,
        )
        model = cls(config, seed)
        taken = growth.taken(model, plain, str(name_or_folder))
        growth.fill(model, taken)
        if taken.left_over:
            warnings.warn(f"{name_or_folder}: {growth.said(taken.record())}", stacklevel=2)
        return model.eval()


def _check_inputs(
    idx_BT: Tensor, cache: Any, perturbations: Any, return_phase: Any, layers: int
) -> None:
    """ConfigError for an argument of GPT.forward that is of another type."""
    arguments.tensor("idx_BT", idx_BT, "[B,T]", of="whole")
    if idx_BT.dtype not in (torch.int64, torch.int32) or not idx_BT.shape[1]:
        raise ConfigError(
            f"idx_BT is a tensor {list(idx_BT.shape)} of {idx_BT.dtype}; token ids are int64 or "
            f"int32, one at least in a row"
        )
    if cache is not None and not isinstance(cache, Cache):
        raise ConfigError(f"cache is a {type(cache).__name__}; it must come from new_cache()")
    if cache is not None and len(cache) != layers:
        raise ConfigError(f"cache is of a model of {len(cache)} layers; this one has {layers}")
    given = perturbations if isinstance(perturbations, Mapping) else {None: perturbations}
    if perturbations is not None and not all(
        isinstance(one, Perturbation) and layer in range(layers) for layer, one in given.items()
    ):
        raise ConfigError(
            f"perturbations={arguments.seen(perturbations)} must come from draw_perturbations()"
        )
    if not isinstance(return_phase, bool):
        arguments.choice("return_phase", return_phase, ("True", "False", "coupling"))
