"""`python -m phasegpt.generate`: continue a prompt with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import hydra

from phasegpt.config import CONF_DIR, plain
from phasegpt.errors import ConfigError
from phasegpt.validate import Section, number


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Section):
    """conf/generate.yaml. The processors check temperature, top_k, top_p and min_p."""

    checkpoint: str | None = None
    which: Literal["best", "last"] = "best"
    prompt: str = "\n"
    max_new_tokens: int = number(200, ge=1)
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = number(1, ge=0)
    num_samples: int = number(1, ge=1)
    use_cache: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    debug: bool = False


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="generate")
def main(cfg: Any) -> None:
    """Command line."""
    from phasegpt.shell import guarded

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def command() -> None:
        settings = GenerateConfig.parse(plain(cfg))
        count = settings.num_samples
        if count > 1:
            write(f"--- sample 1 of {count} ---\n")
        _, *others = generate(settings, write=write)
        write("\n")
        for i, text in enumerate(others, start=2):
            write(f"--- sample {i} of {count} ---\n{text}\n")

    guarded(command, debug=cfg.get("debug") is True)


def generate(settings: GenerateConfig, *, write: Callable[[str], None] | None = None) -> list[str]:
    """Sample settings.num_samples texts, each the prompt with its continuation.

    `write` gets the first text piece by piece as it comes, in whole characters. Text i depends
    on the seed and i alone. Raises ConfigError, DataError (the prompt has no tokens in the
    model's vocabulary), CheckpointError.
    """
    from phasegpt.shell import chosen_checkpoint, device

    target = chosen_checkpoint(settings.checkpoint)
    if not settings.prompt:
        raise ConfigError(
            "prompt is empty, and a model needs something to continue; leave prompt= out to "
            "begin after a line break"
        )
    import torch

    from phasegpt.checkpoint import load_run
    from phasegpt.randomness import keyed_seed
    from phasegpt.samplers import Vocabulary, build_chain, decode
    from phasegpt.tokenizers import StreamDecoder

    chain = build_chain(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
    )
    chosen = device(settings.device)
    loaded = load_run(target, settings.which)
    model, tokenizer = loaded.model.to(chosen), loaded.tokenizer
    if model.leaky and settings.use_cache:
        raise ConfigError(
            "this model sees the future (attention.as_coded=true), so it cannot decode with the "
            "cache; set use_cache=false"
        )
    prompt_T = torch.from_numpy(tokenizer.encode(settings.prompt).astype("int64"))
    if len(prompt_T) > model.config.block_size:
        sys.stderr.write(
            f"the prompt has {len(prompt_T)} tokens; the model attends to at most "
            f"{model.config.block_size}, so it sees only the end of the prompt\n"
        )
    stream = StreamDecoder(tokenizer)
    write = write or (lambda text: None)
    write(settings.prompt)
    out_BT = decode(
        model,
        prompt_T.expand(settings.num_samples, -1),
        max_new_tokens=settings.max_new_tokens,
        seeds=[keyed_seed("generate", settings.seed, i) for i in range(settings.num_samples)],
        chain=[Vocabulary(tokenizer.vocab_size), *chain],
        on_tokens=lambda new_B: write(stream.push(new_B[0])),
        use_cache=settings.use_cache,
    )
    write(stream.flush())
    return [settings.prompt + tokenizer.decode(row[len(prompt_T) :]) for row in out_BT.tolist()]


if __name__ == "__main__":
    from phasegpt.shell import launch

    launch(main, "checkpoint", "prompt", config_name="generate")
