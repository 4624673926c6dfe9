"""What every option of Hugging Face's generate does with our loop: the same as with theirs, or no.

EQUAL options act as in generate, token for token; a test goes through every one. The others are
refused by name, with what to do instead. An option that a later transformers adds is in neither,
so it is refused too, and a test fails until it is decided. Imports no transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError

#: Of GenerationConfig: generate makes criteria, processors, masks or caches of them that act here.
EQUAL = frozenset((
    # length and stops
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings",
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
    # the draw and the memory
    "do_sample", "num_return_sequences", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "disable_compile",
    # processors
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens",
    "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits",
    "guidance_scale", "watermarking_config",
    # which version wrote the file
    "transformers_version",
))  # fmt: skip

_BEAMS = "beams are not searched by this sampler; set num_beams=1 and leave {name} out"
_CONTRASTIVE = "contrastive search is not run by this sampler; leave {name} out"
_ASSISTED = "assisted decoding is not run by this sampler; leave {name} out"
_OUTPUT = "this sampler returns the ids alone; leave {name} out, and read a forward's logits"

#: Of GenerationConfig: what to do instead.
REFUSED = {
    **dict.fromkeys(
        ("num_beams", "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty",
         "constraints", "force_words_ids"), _BEAMS),
    **dict.fromkeys(("penalty_alpha", "low_memory"), _CONTRASTIVE),
    "dola_layers": "DoLa is not run by this sampler; leave {name} out",
    **dict.fromkeys(
        ("use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
         "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size",
         "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
         "assistant_ensemble_weight", "speculation_type"), _ASSISTED),
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions",
         "output_hidden_states"), _OUTPUT),
    "token_healing": "heal the prompt before, by the tokenizer, and leave {name} out",
    "compile_config": "this sampler compiles nothing; compile the model, and leave {name} out",
    "prefill_chunk_size": "this sampler reads the prompt at once; leave {name} out",
    "continuous_batching_config": "batches are not continuous here; leave {name} out",
}  # fmt: skip

#: Arguments of generate that act before or by the loop's own work, and those that do not reach it.
ARGUMENTS = {
    **dict.fromkeys(
        ("inputs", "generation_config", "logits_processor", "stopping_criteria",
         "prefix_allowed_tokens_fn", "negative_prompt_ids", "negative_prompt_attention_mask",
         "custom_generate", "input_ids", "trust_remote_code", "tokenizer", "assistant_tokenizer")),
    "streamer": "generate keeps it from a custom loop; stream by Sampler(...).generate(model, ids, "
                "streamer=...)",
    "assistant_model": _ASSISTED,
    "synced_gpus": "this sampler does not wait for other processes; leave {name} out",
}  # fmt: skip

#: What generate hands on to the model and this loop knows; see also check_positions.
MODEL_ARGUMENTS = frozenset(("position_ids", "use_cache", "logits_to_keep"))
_MODES = ("greedy_search", "sample")


def check(config: Any, arguments: Mapping[str, Any], model_arguments: Mapping[str, Any]) -> None:
    """ConfigError for the first option that this loop would not follow.

    `config`: the GenerationConfig of this call, everything filled in. `arguments`: those of
    generate, as far as they can be seen. `model_arguments`: what is meant for the forward.
    """
    for name, remedy in ARGUMENTS.items():
        if remedy is not None and arguments.get(name) not in (None, False):
            _refuse(name, "...", remedy)
    usual = vars(type(config)()) | getattr(config, "_get_default_generation_params", dict)()
    for name, value in usual.items():
        given = getattr(config, name, None)
        if name not in EQUAL and name[0] != "_" and given not in (None, False, value):
            _refuse(name, given, REFUSED.get(name, "this sampler does not know it; leave it out"))
    mode = config.get_generation_mode()
    if str(getattr(mode, "value", mode)) not in _MODES:
        raise ConfigError(
            f"this sampler runs {' and '.join(_MODES)}, not {mode}; leave its options out"
        )
    for name, given in sorted(model_arguments.items()):
        if given is not None and name not in MODEL_ARGUMENTS:
            _refuse(
                name,
                "...",
                "this sampler decodes from ids and attention_mask alone; leave {name} out",
            )
    if isinstance(model_arguments.get("logits_to_keep"), Tensor):
        _refuse("logits_to_keep", "...", "this sampler reads the last logits; leave {name} out")


def check_positions(given: Tensor | None, ids_BT: Tensor, mask_BT: Tensor | None) -> None:
    """ConfigError for position_ids that do not count the tokens of each row from 0."""
    if given is None:
        return
    shown_BT = torch.ones_like(ids_BT) if mask_BT is None else (mask_BT != 0).long()
    usual_BT = shown_BT.cumsum(-1) - 1
    try:
        same = bool(((given == usual_BT) | (shown_BT == 0)).all()) and given.shape[-1] == len(
            ids_BT[0]
        )
    except (RuntimeError, IndexError):  # of a shape that does not fit
        same = False
    if not same:
        _refuse("position_ids", "...",
                "this sampler counts the tokens of each row from 0; leave {name} out")  # fmt: skip


def _refuse(name: str, value: Any, remedy: str) -> None:
    raise ConfigError(f"{name}={value} is not for this sampler: {remedy.format(name=name)}")
