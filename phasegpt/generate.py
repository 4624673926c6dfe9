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
from phasegpt.core.sections import Section, option

if TYPE_CHECKING:
    from phasegpt.model.loaded import Loaded
    from phasegpt.samplers import Processor


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Section):
    """conf/generate.yaml. Processors and sampler check their own; temperatures may be infinite."""

    checkpoint: str | None = option(None, "a run folder, a .ckpt file or an exported folder")
    which: Literal["best", "last"] = option("best", "of a run folder")
    imports: str | tuple[str, ...] = option(
        (),
        "modules of your own to import first: what the checkpoint's attention is in",
        form="my_package.my_module, or a list",
    )
    prompt: str = option("\n", "the text to continue, taken to the letter")
    max_new_tokens: int = option(200, "tokens", ge=1, le=100_000_000)
    temperature: Any = option(
        0.8,
        "divides the logits; 0: always the likeliest token, -0.0: the least likely",
        form="a number of any sign, inf too",
    )
    temperature_high: Any = option(
        None,
        "from temperature (sure) to this (unsure), by the entropy; null: off",
        form="a number of any sign, or null",
    )
    burst_every: int | None = option(None, "a burst ends every run of so many tokens; null: off")
    burst_temperature: Any = option(
        -1.0, "of a burst; negative; -inf: uniform", form="a negative number, -inf too"
    )
    burst_length: int = option(1, "tokens in a burst")
    top_h: float | None = option(
        None, "keep the likeliest tokens that sum to this share of the entropy; null: all"
    )
    top_k: int | None = option(None, "keep the k likeliest tokens; null: all")
    top_p: float | None = option(
        None, "keep the likeliest tokens that sum to this probability; null: all"
    )
    min_p: float | None = option(
        None, "keep tokens at least this many times as probable as the likeliest; null: all"
    )
    typical_p: float | None = option(
        None, "keep tokens of most typical surprise that sum to this probability; null: all"
    )
    epsilon_cutoff: float | None = option(
        None, "keep tokens of at least this probability; null: all"
    )
    eta_cutoff: float | None = option(
        None, "eta: keep tokens of at least min(eta, sqrt(eta) e^-H), H: entropy, nats; null: all"
    )
    p_less: bool = option(False, "true: keep tokens at least as probable as the sum of all squares")
    top_n_sigma: float | None = option(
        None, "keep logits within this many standard deviations of the largest; null: all"
    )
    repetition_penalty: float | None = option(
        None, "above 1: tokens of the text so far become less likely; null: off"
    )
    dry_multiplier: float | None = option(
        None, "nats against a token that would prolong a repetition (DRY); null: off"
    )
    dry_base: float = option(1.75, "times this for every further token of the repetition")
    dry_allowed_length: int = option(2, "tokens from which a repetition counts")
    dry_breakers: str = option('\n:"*', "characters that a repetition does not reach over")
    allowed: str | None = option(
        None,
        "tokens that may appear; seen: in training; regex: of a token; null: all",
        form="ascii, seen, regex:PATTERN, words:FILE, or null",
    )
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "ancestral"})
    seed: int = option(1, "of the samples", ge=0)
    num_samples: int = option(1, "texts", ge=1, le=1_000_000)
    use_cache: bool = option(True, "false: recompute everything for each token")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    debug: bool = option(False, "true: show tracebacks")

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        bursts, dry = self.burst_every is not None, self.dry_multiplier is not None
        self.refuse_idle(bursts, "burst_every", "burst_temperature", "burst_length")
        self.refuse_idle(dry, "dry_multiplier", "dry_base", "dry_allowed_length", "dry_breakers")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="generate")
def main(cfg: Any) -> None:
    """Command line."""
    from phasegpt.cli import guarded

    def write(text: str) -> None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
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

    target = chosen_checkpoint(settings.checkpoint, settings.imports)
    if not settings.prompt:
        raise ConfigError(
            "prompt is empty, and a model needs something to continue; leave prompt= out to "
            "begin after a line break"
        )
    import torch

    from phasegpt.core.randomness import keyed_seed
    from phasegpt.data.tokenizers import StreamDecoder
    from phasegpt.model.loading import load_run
    from phasegpt.samplers import OnTokens, Vocabulary, build_sampler, decode

    intervention = build_sampler(settings.sampler)
    chosen = device(settings.device)
    loaded = load_run(target, settings.which)
    model, tokenizer = loaded.model.to(chosen), loaded.tokenizer
    if model.leaky and settings.use_cache:
        raise ConfigError(
            f"this model sees the future (attention={model.config.attention}), so it cannot decode "
            "with the cache; set use_cache=false"
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
        corpus = training_corpus(loaded, None, None, as_documents=True)
        return AllowedTokens(set(corpus.split("train").tolist()))
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
