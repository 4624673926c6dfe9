"""Does negative temperature twice come back? A model of a T = -1 sample, sampled at T = -1.

    python scripts/study_negative_temperature.py CHECKPOINT... --out results/negative_temperature

For every seed a Shakespeare model (the first) writes a corpus at T = -1, and one at T = 1; a second
model of the same shape is trained on each, and both are sampled at T = -1 and T = 1. Samples go on
from validation prompts. A second model that had learnt 1 / p exactly would give p back at T = -1,
at least after the contexts that it was trained on. Beside the samples stand human text, uniformly
random text, and how each second model predicts human text: its nats at T = -1 and at T = 1, and the
temperature that fits it best.

With several checkpoints seed i takes the i-th, in turn. Corpora and second models are kept in
--work, and what is there is not made again. At the defaults about 20 minutes of one CPU core for
12 layers of width 64.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from phasegpt.analysis.temperature_study import Reader, once, write_table
from phasegpt.cli import guarded, training_corpus
from phasegpt.core import targets
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import check_output, write_atomic
from phasegpt.core.randomness import keyed_generator, keyed_seed
from phasegpt.model.loading import load, load_run
from phasegpt.samplers import OnTokens, Temperature, decode, fit_temperature
from phasegpt.training.config import RunConfig
from phasegpt.training.run import fit

CORPORA = {"inverse": -1.0, "plain": 1.0}  # by the temperature at which the first model wrote them
_ROWS = 128  # of a corpus, written side by side


def write_corpus(path: Path, loaded, temperature: float, characters: int, seed: int, bar) -> None:
    """A corpus of the first model, in _ROWS texts that each begin after a line break.

    All characters of the first model end it once, in its validation split, so that the second
    model has the same tokens and is not trained on them.
    """
    start_T = torch.from_numpy(loaded.tokenizer.encode("\n").astype("int64"))
    ids_BT = decode(
        loaded.model,
        start_T.expand(_ROWS, -1),
        max_new_tokens=max(1, characters // _ROWS),
        seeds=[keyed_seed("corpus", seed, row) for row in range(_ROWS)],
        chain=[Temperature(temperature)],
        streamer=OnTokens(lambda _: bar.update()),
    )
    text = "".join(loaded.tokenizer.decode(row[1:]) for row in ids_BT.tolist())
    text += loaded.tokenizer.alphabet
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


def second_run(first: RunConfig, text: Path, steps: int, seed: int) -> RunConfig:
    """The first model's configuration, for another text and fewer steps."""
    warmup = min(first.optimizer.warmup_steps, steps // 5)
    callbacks = replace(
        first.callbacks,
        sample_text=replace(first.callbacks.sample_text, max_new_tokens=0),
        phase_monitor=replace(first.callbacks.phase_monitor, every_n_steps=None),
    )
    return replace(
        first,
        name=text.stem,
        seed=seed,
        resume=True,
        data=replace(first.data, corpus="text", path=str(text.resolve()), variant=None,
                     cache_dir=None, name=None, subset=None, val_fraction=0.1),
        trainer=replace(first.trainer, max_steps=steps, val_check_interval=max(1, steps // 4)),
        optimizer=replace(first.optimizer, warmup_steps=warmup),
        logger=replace(first.logger, name="csv"),
        callbacks=callbacks,
    )  # fmt: skip


def study(args: argparse.Namespace) -> None:
    for place, seed in enumerate(args.seeds):
        one_seed(args, seed, args.checkpoints[place % len(args.checkpoints)])
    for row in write_table(args.out):
        under, numbers = "", {"judge": "judge_nats", "first model": "nll_at_one"}
        if row.get("judge_nats") is None:
            under = f", beta* {row['second_beta']:.3f}"
            numbers = {"T=-1": "second_nll_at_minus_one", "T=1": "second_nll_at_one"}
        shown = "  ".join(
            f"{name} {row[key]:7.3f} [{_end(row[f'{key}_low'])}, {_end(row[f'{key}_high'])}]"
            for name, key in numbers.items()
        )
        print(f"{row['arm']:<26} {shown}{under}")


def _end(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def one_seed(args: argparse.Namespace, seed: int, checkpoint: str) -> None:
    loaded = load_run(checkpoint)
    if loaded.tokenizer.name != "char":
        raise ConfigError(f"{checkpoint} has {loaded.tokenizer.name} tokens; it must have char")
    reader = Reader(training_corpus(loaded, None, None), rows=args.rows, length=args.length)
    prompt = reader.prompts_BT.shape[1]
    settings = {
        "checkpoint": loaded.sha256,
        **{k: getattr(args, k) for k in ("rows", "length", "characters", "steps")},
    }

    def measured(ids_BT: torch.Tensor) -> dict:
        fit = fit_temperature(loaded.model, list(ids_BT), prompt=prompt)
        return {**reader.quality(ids_BT), **fit.record()}

    def sampled(model, prompts_BT: torch.Tensor, temperature: float) -> torch.Tensor:
        seeds = [keyed_seed("study", seed, row) for row in range(len(prompts_BT))]
        chain = [Temperature(temperature)]
        return decode(model, prompts_BT, max_new_tokens=args.length, seeds=seeds, chain=chain)

    def random_text() -> torch.Tensor:
        ids_BT = reader.human_BT.clone()
        shape = ids_BT[:, prompt:].shape
        generator = keyed_generator("random", seed)
        ids_BT[:, prompt:] = torch.randint(loaded.tokenizer.vocab_size, shape, generator=generator)
        return ids_BT

    def record(arm: str, make) -> None:
        once(args.out, arm, seed, settings, make)

    record("human", lambda: measured(reader.human_BT))
    record("random", lambda: measured(random_text()))
    for T in (1.0, -1.0):
        name = f"first at T={T:g}"
        record(name, lambda T=T: measured(sampled(loaded.model, reader.prompts_BT, T)))
    for corpus, temperature in CORPORA.items():
        text = args.work / f"{corpus}-seed{seed}.txt"
        if not text.is_file():
            steps = args.characters // _ROWS
            with tqdm(total=steps, desc=text.name, mininterval=2, unit="step") as bar:
                write_corpus(text, loaded, temperature, args.characters, seed, bar)
        folder = args.work / text.stem
        targets.refuse_named("the checkpoint", loaded.config)
        fit(second_run(RunConfig.parse(loaded.config), text, args.steps, seed), folder)
        second = load(folder)

        def of_human(second=second) -> dict:
            fit = fit_temperature(second, list(reader.human_BT), prompt=prompt)
            found = {f"second_{name}": value for name, value in fit.record().items()}
            return {**found, "second_nll_at_minus_one": dict(fit.curve)[-1]}

        for T in (-1.0, 1.0):
            record(
                f"{corpus} model at T={T:g}",
                lambda T=T, second=second: measured(sampled(second, reader.prompts_BT, T)),
            )
        record(f"human under {corpus} model", of_human)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", help="run folders of character models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/negative_temperature"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--characters", type=int, default=200_000, help="of a corpus")
    parser.add_argument("--steps", type=int, default=600, help="of training a second model")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=400, help="tokens sampled in a row")
    args = parser.parse_args()
    check_output(args.out / "table.csv", "--out")
    check_output(args.work / "text.txt", "--work")
    study(args)


if __name__ == "__main__":
    guarded(main)
