"""`python -m phasegpt.generate`: continue a prompt with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hydra

from phasegpt.core.composition import CONF_DIR, plain
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import read_text
from phasegpt.core.sections import Section, number

if TYPE_CHECKING:
    from phasegpt.model.checkpoint import Loaded
    from phasegpt.samplers import Processor


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Section):
    """conf/generate.yaml. Processors and sampler check their own; temperatures may be infinite."""

    checkpoint: str | None = None
    which: Literal["best", "last"] = "best"
    prompt: str = "\n"
    max_new_tokens: int = number(200, ge=1)
    temperature: Any = 0.8
    temperature_high: Any = None
    burst_every: int | None = None
    burst_temperature: Any = -1.0
    burst_length: int = 1
    top_h: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    p_less: bool = False
    top_n_sigma: float | None = None
    repetition_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breakers: str = '\n:"*'
    allowed: str | None = None
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "ancestral"})
    seed: int = number(1, ge=0)
    num_samples: int = number(1, ge=1)
    use_cache: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    debug: bool = False

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        for name in ("burst_temperature", "burst_length"):
            self.refuse_idle(name, "burst_every", self.burst_every is not None)
        for name in ("dry_base", "dry_allowed_length", "dry_breakers"):
            self.refuse_idle(name, "dry_multiplier", self.dry_multiplier is not None)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="generate")
def main(cfg: Any) -> None:
    """Command line."""
    from phasegpt.cli import guarded

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
    from phasegpt.cli import chosen_checkpoint, device

    target = chosen_checkpoint(settings.checkpoint)
    if not settings.prompt:
        raise ConfigError(
            "prompt is empty, and a model needs something to continue; leave prompt= out to "
            "begin after a line break"
        )
    import torch

    from phasegpt.core.randomness import keyed_seed
    from phasegpt.data.tokenizers import StreamDecoder
    from phasegpt.model.checkpoint import load_run
    from phasegpt.samplers import OnTokens, Vocabulary, build_sampler, decode

    intervention = build_sampler(settings.sampler)
    chosen = device(settings.device)
    loaded = load_run(target, settings.which)
    model, tokenizer = loaded.model.to(chosen), loaded.tokenizer
    if model.leaky and settings.use_cache:
        raise ConfigError(
            "this model sees the future (attention=as_coded), so it cannot decode with the "
            "cache; set use_cache=false"
        )
    prompt_T = torch.from_numpy(tokenizer.encode(settings.prompt).astype("int64"))
    chain = chain_of(settings, loaded, prompt=len(prompt_T))
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
        intervention=intervention,
        streamer=OnTokens(lambda new_B: write(stream.push(new_B[0]))),
        use_cache=settings.use_cache,
    )
    write(stream.flush())
    if intervention is not None:
        sys.stderr.write(f"\n{intervention.report()}\n")
    return [settings.prompt + tokenizer.decode(row[len(prompt_T) :]) for row in out_BT.tolist()]


def chain_of(settings: GenerateConfig, loaded: Loaded, *, prompt: int) -> list[Processor]:
    """The processors that settings ask for; `prompt`: its number of tokens. Raises ConfigError."""
    from phasegpt.samplers import (
        DRY,
        DynamicTemperature,
        NegativeBursts,
        Temperature,
        build_chain,
        token_texts,
    )

    temperature: Processor = Temperature(settings.temperature)
    if settings.temperature_high is not None:
        temperature = DynamicTemperature(settings.temperature, settings.temperature_high)
    if settings.burst_every is not None:
        temperature = NegativeBursts(
            settings.burst_temperature,
            every=settings.burst_every,
            length=settings.burst_length,
            start=prompt,
            between=temperature,
        )
    dry = None
    if settings.dry_multiplier is not None:
        texts = token_texts(loaded.tokenizer)
        dry = DRY(
            settings.dry_multiplier,
            base=settings.dry_base,
            allowed_length=settings.dry_allowed_length,
            breakers=[i for i, t in enumerate(texts) if set(t) & set(settings.dry_breakers)],
        )
    return build_chain(
        temperature=temperature,
        allowed=None if settings.allowed is None else _allowed(settings.allowed, loaded),
        repetition_penalty=settings.repetition_penalty,
        dry=dry,
        top_n_sigma=settings.top_n_sigma,
        top_h=settings.top_h,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        typical_p=settings.typical_p,
        epsilon_cutoff=settings.epsilon_cutoff,
        eta_cutoff=settings.eta_cutoff,
        p_less=settings.p_less,
    )


def _allowed(value: str, loaded: Loaded) -> Processor:
    """The tokens that allowed=ascii, seen, regex:PATTERN or words:FILE keeps."""
    from phasegpt.cli import training_corpus
    from phasegpt.samplers import AllowedTokens, AllowedWords, token_texts

    texts = token_texts(loaded.tokenizer)
    kind, _, rest = value.partition(":")
    if value == "ascii":
        return AllowedTokens.ascii(texts)
    if value == "seen":
        return AllowedTokens(set(training_corpus(loaded, None, None).split("train").tolist()))
    if kind == "regex" and rest:
        return AllowedTokens.matching(texts, rest)
    if kind == "words" and rest:
        return AllowedWords(read_text(Path(rest).expanduser()).split(), texts)
    raise ConfigError(
        f"allowed={value!r} is not known; choose from: ascii, seen, regex:PATTERN, words:FILE"
    )


if __name__ == "__main__":
    from phasegpt.cli import launch

    launch(main, "checkpoint", "prompt", "allowed", "dry_breakers", config_name="generate")
