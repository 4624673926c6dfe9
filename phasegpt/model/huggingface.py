"""Our GPT as a model of transformers, and causal models of transformers by name (extra hf).

`import phasegpt.model.huggingface` makes AutoConfig and AutoModelForCausalLM know the folders that
`python -m phasegpt.export format=hf` writes; phasegpt.load reads what save_pretrained writes. The
one module that imports transformers; it is slow to import, so the others import it where they use
it.

Shapes: B batch, T time, V words.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    StopStringCriteria,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.data.tokenizers import STATE_BESIDE
from phasegpt.model import exported, shards
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.model.hf_folder import AUTO_MAP, CODE_FILE, code
from phasegpt.model.migration import migrated_flat
from phasegpt.model.padding import PaddedCache, padded_logits

_KEYS = tuple(field.name for field in fields(GPTConfig))


class PhaseGPTConfig(PreTrainedConfig):
    """GPTConfig's keys, flat, under transformers' roof; a wrong value is a ConfigError."""

    model_type = "phasegpt"
    attribute_map = {  # noqa: RUF012 (transformers' own form)
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
    }

    def __init__(self, **kwargs: Any) -> None:
        """GPTConfig's keys, and transformers' own."""
        given = {key: kwargs.pop(key) for key in _KEYS if key in kwargs}
        for key, value in GPTConfig.parse(migrated_flat(given)).to_dict().items():
            setattr(self, key, value)
        self.auto_map = kwargs.pop("auto_map", None) or dict(AUTO_MAP)
        self.use_cache = kwargs.pop("use_cache", True)
        tied = kwargs.pop("tie_word_embeddings", self.tie_embeddings)
        if tied is not self.tie_embeddings:
            raise ConfigError(
                f"tie_word_embeddings={tied} contradicts tie_embeddings={self.tie_embeddings}; "
                f"leave it out"
            )
        self.tie_word_embeddings = tied
        super().__init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: the code is in the package, and auto_map names it."""

    def gpt(self) -> GPTConfig:
        """The configuration of the GPT."""
        return GPTConfig.parse({key: getattr(self, key) for key in _KEYS})


class PhaseGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """A GPT of ours, `self.gpt`, that transformers saves, loads, trains and generates with.

    Built from a configuration it has the weights of GPT(config, seed=0).
    """

    config_class = PhaseGPTConfig
    base_model_prefix = "gpt"
    _tied_weights_keys = {"gpt.lm_head.weight": "gpt.transformer.wte.weight"}  # noqa: RUF012
    #: The state of our tokenizer, as the folder had it that the weights come from.
    tokenizer_state: bytes | None = None

    def __init__(self, config: PhaseGPTConfig) -> None:
        """Build the GPT; one that sees the future generates without a cache by default."""
        super().__init__(config)
        self.gpt = GPT(config.gpt(), seed=0)
        self.post_init()
        if self.gpt.leaky:
            config.use_cache = self.generation_config.use_cache = False

    @classmethod
    def from_pretrained(  # type: ignore[override] # whatever AutoModel hands on
        cls, name: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers has it, but weights that are missing, left over or of another shape are
        a CheckpointError."""
        found: Any = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        model, info = found
        model.tokenizer_state = _tokenizer_state(name, kwargs)
        wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
        if wrong:
            raise CheckpointError(
                f"the weights of {name!s:.300} do not fit its config.json: {wrong!s:.600}; export "
                f"the run again, or copy the folder again"
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(  # type: ignore[override] # the rest is handed on
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As transformers has it; the folder is one that phasegpt.load reads, with SHA256SUMS.

        The tokenizer is that of the folder from which this model came. ConfigError for
        push_to_hub, which would upload the folder before it is whole.
        """
        if push_to_hub:
            raise ConfigError(
                "save_pretrained(push_to_hub=True) would upload a folder without SHA256SUMS; call "
                'model.push_to_hub("OWNER/NAME")'
            )
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        folder = Path(save_directory)
        if is_main_process and shards.there(folder) and not self._hf_peft_config_loaded:
            state = self.tokenizer_state
            beside = {} if state is None else {STATE_BESIDE: state}
            exported.complete(folder, {CODE_FILE: code(self.config.attention), **beside})

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing: the code is in the package, and auto_map names it."""

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> None:
        """The cache that generate begins with: ours."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ConfigError(
                f"cache_implementation={generation_config.cache_implementation} is none that "
                f"PhaseGPT has; leave it out"
            )
        if generation_config.use_cache is not False:
            model_kwargs.setdefault("past_key_values", PaddedCache(self.gpt))

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: GPT has drawn its weights when it was built."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.gpt.transformer["wte"]

    def get_output_embeddings(self) -> nn.Module:
        """The head; its weight is the embedding's."""
        return self.gpt.lm_head

    def resize_token_embeddings(  # type: ignore[override]
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """The embedding of tokens where its size stays; ConfigError for another size."""
        if new_num_tokens not in (None, self.config.vocab_size) or pad_to_multiple_of is not None:
            raise ConfigError(
                f"resize_token_embeddings({new_num_tokens}, {pad_to_multiple_of}): a PhaseGPT "
                f"keeps the size it was trained with, {self.config.vocab_size}; leave it out, or "
                f"train with model.vocab_size=N for rows to spare"
            )
        return self.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: PaddedCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits[B,T,V], the loss where there are labels, and the cache (see PaddedCache).

        attention_mask: 1 for tokens, 0 for padding on either side; a row gives what it gives
        alone. Labels are shifted inside, -100 counts nowhere. use_cache=None: the
        configuration's, and False in training. Raises ConfigError, for what a GPT of ours does
        not do too: embeddings as input, attention maps, hidden states.
        """
        asked = {
            "inputs_embeds": inputs_embeds is not None,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        for name in (name for name, value in asked.items() if value):
            raise ConfigError(f"PhaseGPT knows no {name}; leave it out, and see phasegpt.interpret")
        if input_ids is None:
            raise ConfigError("input_ids is missing; give token ids[B,T]")
        if use_cache is None:
            use_cache = past_key_values is not None or (self.config.use_cache and not self.training)
        if not use_cache and past_key_values is not None:
            raise ConfigError(
                "use_cache=False does not go with past_key_values, which would be extended; leave "
                "one of them out"
            )
        if not isinstance(past_key_values, PaddedCache | None):
            raise ConfigError(
                f"past_key_values is a {type(past_key_values).__name__}; give what an earlier call "
                f"of this model returned, or None"
            )
        if use_cache and past_key_values is None:
            past_key_values = PaddedCache(self.gpt)
        logits = padded_logits(self.gpt, input_ids, attention_mask, past_key_values)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        past: Any = past_key_values
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past)
        plain = return_dict is False or not getattr(self.config, "return_dict", True)
        return out.to_tuple() if plain else out


def _tokenizer_state(name: Any, options: dict[str, Any]) -> bytes | None:
    """The state of our tokenizer in a folder or repository; None where it has none."""
    place = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
    given = {key: options[key] for key in place if options.get(key) is not None}
    try:
        file = name and cached_file(name, STATE_BESIDE, **given)
    except OSError:
        return None
    return Path(file).read_bytes() if file else None


AutoConfig.register(PhaseGPTConfig.model_type, PhaseGPTConfig, exist_ok=True)
AutoModelForCausalLM.register(PhaseGPTConfig, PhaseGPTForCausalLM, exist_ok=True)


def load(name: str | Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or of a name on the hub; ConfigError where there is none."""
    try:
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name} is neither a checkpoint of ours nor a Hugging Face model that can be loaded "
            f"({str(error).splitlines()[0]})"
        ) from error


def stop_strings(tokenizer: Any, strings: str | list[str]) -> Any:
    """Hugging Face's own criterion that ends a row once one of `strings` is in its new text."""
    return StopStringCriteria(tokenizer, strings)
