"""An exported folder that transformers reads too, its model card, and the hub.

Beside the weights and config.json of our own export it holds tokenizer.json in the form of
`tokenizers`, with our state in another file, and the three lines that trust_remote_code runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import phasegpt
from phasegpt.attention import coupled_axis
from phasegpt.core import modules
from phasegpt.core.errors import ConfigError, OutputError
from phasegpt.data.hf_tokenizers import prefix_token, tokenizer_config, tokenizer_json
from phasegpt.data.tokenizers import STATE_BESIDE
from phasegpt.model.exported import CARD, OF_TRANSFORMERS, as_json, contents
from phasegpt.model.loaded import Loaded
from phasegpt.model.scoring import UNITS
from phasegpt.phase import null_order_parameter

_CODE = '''"""For trust_remote_code; the model is in the package: pip install "phasegpt[hf]"."""

from phasegpt.model.huggingface import PhaseGPTConfig, PhaseGPTForCausalLM  # noqa: F401
'''
#: The file that trust_remote_code runs; see code().
CODE_FILE = "modeling_phasegpt.py"
#: Where config.json says that the classes are.
AUTO_MAP = {
    "AutoConfig": "modeling_phasegpt.PhaseGPTConfig",
    "AutoModelForCausalLM": "modeling_phasegpt.PhaseGPTForCausalLM",
}
_ORDER = re.compile(r"phase/R/layer(\d+)")


def hf_contents(loaded: Loaded, *, licence: str) -> dict[str, bytes]:
    """The files of the folder by name, but for SHA256SUMS. Raises ConfigError."""
    files, model, tokenizer = contents(loaded), loaded.model, loaded.tokenizer
    theirs = {
        "architectures": ["PhaseGPTForCausalLM"],
        "auto_map": AUTO_MAP,
        "dtype": "float32",
    }
    assert tuple(theirs) == OF_TRANSFORMERS
    generation: dict[str, Any] = {
        "use_cache": not model.leaky,
        "bos_token_id": prefix_token(tokenizer),  # what generate() without a prompt begins with
    }
    if unused := list(range(tokenizer.vocab_size, model.config.vocab_size)):
        generation["suppress_tokens"] = unused  # rows of the embedding without a token
    record = json.loads(files["run.json"]) if "run.json" in files else {}
    return files | {
        "config.json": as_json(json.loads(files["config.json"]) | theirs),
        "generation_config.json": as_json(generation),
        STATE_BESIDE: files["tokenizer.json"],
        "tokenizer.json": tokenizer_json(tokenizer).encode(),
        "tokenizer_config.json": as_json(tokenizer_config(tokenizer, model.config.block_size)),
        CODE_FILE: code(model.config.attention),
        CARD: card(loaded, record, licence).encode(),
    }


def card(loaded: Loaded, record: dict[str, Any], licence: str) -> str:
    """The model card: what the model is, what its run measured, how to load and cite it."""
    config, unit = loaded.model.config, UNITS[loaded.tokenizer.name]
    layers = list(config.attention_layers)
    where = f" in layers {layers} of {config.n_layer} (counted from 0)" if layers else ""
    attention = config.attention if layers else "softmax"
    phased = any(block.attn.has_phases for block in loaded.model.blocks)
    data = record.get("data") or {}
    facts = {
        "attention": f"{attention}{where}",
        "shape": f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, context "
        f"{config.block_size} tokens, positions {config.positions}",
        "parameters": f"{loaded.model.num_parameters(non_embedding=False):,}",
        "tokens": f"{loaded.tokenizer.name}, {loaded.tokenizer.vocab_size:,} of them",
        "text": data.get("corpus"),
        "text fingerprint": loaded.data_fingerprint,
        "seed": record.get("seed"),
        "checkpoint sha256": loaded.sha256,
    }
    lines = [
        "---",
        f"license: {licence}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [phasegpt, {attention}]",
        "---",
        "",
        "# A PhaseGPT language model",
        "",
        f"A GPT-2 with {attention} attention{', which has phase oscillators' if phased else ''}.",
        "",
        *_table("| what | value |", facts),
        "",
        "## Measured",
        "",
        *_measured(loaded, record, unit),
        "",
    ]
    if loaded.model.leaky:
        lines += [
            f"LEAKY: this model sees the future (attention={config.attention}). Its numbers "
            "compare with no causal model, and it generates without a cache.",
            "",
        ]
    own = "".join(f"    {line}\n" for line in _import(config.attention).splitlines())
    prefix = prefix_token(loaded.tokenizer)
    use = _USE.format(licence=licence, version=phasegpt.__version__, own=own, prefix=prefix)
    return "\n".join([*lines, use])


def code(attention: str) -> bytes:
    """The file that trust_remote_code runs for a model of this attention."""
    return (_CODE + _import(attention)).encode()


def _import(attention: str) -> str:
    """The line that imports a mechanism which is a module; an installed one is found by itself."""
    return f"import {attention}  # the attention\n" if modules.dotted(attention) else ""


_USE = """## Use

    pip install "phasegpt[hf]"

    import phasegpt.model.huggingface
{own}    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)

or `phasegpt.load(FOLDER)` for the GPT itself. A character that the tokenizer does not have is an
error. With lm-eval:

    lm_eval --model hf --tasks TASKS \\
        --model_args pretrained=FOLDER,trust_remote_code=True,prefix_token_id={prefix}

## Licence and citation

Licence: {licence}

    @software{{phasegpt,
      title = {{PhaseGPT}},
      author = {{PhaseGPT contributors}},
      version = {{{version}}},
      license = {{MIT}}
    }}
"""


def _measured(loaded: Loaded, record: dict[str, Any], unit: str) -> list[str]:
    """The validation of the best checkpoint, and R with dR at the end of the training."""
    if record.get("smoke"):
        return ["Nothing: this was a smoke run, which did not train and validate in full."]
    best, final = record.get("best") or {}, record.get("final") or {}
    values = {
        f"validation loss, nats per {unit}": best.get("val/loss"),
        f"validation perplexity per {unit}": best.get("val/ppl"),
        "validation bits per byte": best.get("val/bpb"),
        "at step (the best of the run)": best.get("step"),
        "steps of the run": record.get("step"),
        "tokens of the run": record.get("tokens"),
    }
    for name, R in final.items():
        if found := _ORDER.fullmatch(name):
            gain, error = (
                final.get(f"phase/val/{what}/layer{found[1]}") for what in ("dR", "dR_se")
            )
            R = final.get(f"phase/val/R_end/layer{found[1]}", R)  # of the windows that dR is of
            values[f"R of layer {found[1]} at the end of the run{_null(loaded)}"] = R
            values[f"dR of layer {found[1]}: of it by coupling (0 without)"] = gain
            values[f"standard error of that dR, layer {found[1]}"] = error
    rows = _table("| measure | value |", values)
    return rows if len(rows) > 2 else ["Its run.json is not here or has no numbers."]


def _null(loaded: Loaded) -> str:
    """What R is of random phases, where R is over the oscillators of a head."""
    config = loaded.model.config
    options = {**config.attention_options.to_dict(), "name": config.attention}
    if "num_oscillators" not in options or coupled_axis(options) != "oscillators":
        return ""
    return f" ({null_order_parameter(options['num_oscillators']):.3f} with random phases)"


def _table(head: str, values: dict[str, Any]) -> list[str]:
    """A table in Markdown; what is not known is left out."""

    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    known = {name: value for name, value in values.items() if value is not None}
    rows = [f"| {name} | {shown(value)} |" for name, value in known.items()]
    return [head, "|---|---|", *rows]


def check_name(name: str) -> None:
    """ConfigError for what is no OWNER/NAME of the hub."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", name, re.ASCII):
        raise ConfigError(
            f"push_to_hub={name!r:.200} must be OWNER/NAME of letters, digits, -, _ and ."
        )


def push(folder: Path, name: str) -> str:
    """Upload a folder to the hub as model `name`, made as a private one if new; its address.

    Raises OutputError.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export from PhaseGPT")
    except Exception as error:  # of whatever library the request uses
        raise OutputError(
            f"{folder} is written, but cannot be uploaded as {name}: {error!s:.300}; log in with "
            f"`hf auth login`, check the name, and upload it with `hf upload {name} {folder}`"
        ) from error
    return str(address)
