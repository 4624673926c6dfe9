"""Temperature against quality, fitted temperatures of texts, and negative bursts under a judge.

    python scripts/study_temperature.py CHECKPOINT --out results/temperature
    python scripts/study_temperature.py --regenerate results/temperature    table and curve, anew

Every arm samples `rows` continuations of `length` tokens of the same validation prompts. What is
there is not made again, so a broken study goes on. Per arm and seed: nats per character under a
7-gram judge that knows only the training text, nats per token under the model at T = 1 with the
fitted temperature, real words, distinct n-grams, the share that the judge accepts (it accepts 95%
of human texts), and the same numbers of the quarter that it likes best. At the defaults about 20
minutes of one CPU core for 12 layers of width 64.
"""

import argparse
import math
from pathlib import Path

from tqdm import tqdm

from phasegpt.analysis.temperature_study import Reader, draw_curve, once, write_table
from phasegpt.cli import guarded, training_corpus
from phasegpt.core.files import check_output
from phasegpt.core.randomness import keyed_seed
from phasegpt.model.loading import load_run
from phasegpt.samplers import NegativeBursts, Temperature, build_chain, decode, fit_temperature

SIZES = (0.01, 0.1, 0.3, 0.5, 0.65, 0.8, 1.0, 1.3, 2.0, 5.0, 100.0, 1e5, math.inf)
CURVE = {f"T={sign * T:g}": sign * T for sign in (1, -1) for T in SIZES}
TRUNCATED = {
    "T=0.8 top_k=40 top_p=0.92": build_chain(temperature=0.8, top_k=40, top_p=0.92),
    "T=1 min_p=0.1": build_chain(temperature=1.0, min_p=0.1),
    "T=1 typical_p=0.9": build_chain(typical_p=0.9),
    "T=-1 min_p=0.1": build_chain(temperature=-1.0, min_p=0.1),
}
BASE = 0.5  # between bursts
#: T = -inf, uniform tokens, and other plain temperatures are what bursts of T = -1 have to beat.
BURSTS = [(-1.0, 20), (-1.0, 50), (-1.0, 100), (-math.inf, 20), (-math.inf, 50), (-math.inf, 100)]


def arms(prompt: int) -> dict:
    bursts = {
        f"T={BASE:g} burst {T:g} every {every}": [
            NegativeBursts(T, every=every, start=prompt, between=Temperature(BASE))
        ]
        for T, every in BURSTS
    }
    return {**{arm: [Temperature(T)] for arm, T in CURVE.items()}, **TRUNCATED, **bursts}


def study(args: argparse.Namespace) -> None:
    check_output(args.out / "table.csv", "--out")
    loaded = load_run(args.checkpoint)
    model = loaded.model
    reader = Reader(training_corpus(loaded, None, None), rows=args.rows, length=args.length)
    prompts_BT = reader.prompts_BT
    settings = {"checkpoint": loaded.sha256, "rows": args.rows, "length": args.length}

    def measured(ids_BT) -> dict:
        fit = fit_temperature(model, list(ids_BT), prompt=prompts_BT.shape[1])
        return {**reader.quality(ids_BT), **fit.record()}

    def sampled(chain: list, seed: int) -> dict:
        ids_BT = decode(
            model,
            prompts_BT,
            max_new_tokens=args.length,
            seeds=[keyed_seed("study", seed, row) for row in range(args.rows)],
            chain=chain,
        )
        return measured(ids_BT)

    once(args.out, "human", 0, settings, lambda: measured(reader.human_BT))
    jobs = [
        (seed, arm, chain)
        for seed in args.seeds
        for arm, chain in arms(prompts_BT.shape[1]).items()
    ]
    for seed, arm, chain in (bar := tqdm(jobs, mininterval=2)):
        bar.set_description(f"{arm}, seed {seed}")
        once(args.out, arm, seed, settings, lambda c=chain, s=seed: sampled(c, s))
    rows = write_table(args.out)
    draw_curve(args.out, rows)
    by_arm = {row["arm"]: row for row in rows}
    for arm in ["human", *arms(0)]:
        row = by_arm[arm]
        fitted = "-" if row["temperature"] is None else f"{row['temperature']:.3f}"
        print(
            f"{arm:<26} judge {row['judge_nats']:6.3f}  model {row['nll_at_one']:6.3f}  "
            f"T* {fitted:>8}  words {row['real_words']:.3f}  distinct-2 {row['distinct_2']:.3f}  "
            f"accepted {row['accepted']:.2f}  best quarter: judge {row['kept_judge_nats']:6.3f}  "
            f"distinct-2 {row['kept_distinct_2']:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", help="a run folder or .ckpt file of known text")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--regenerate", type=Path, nargs="+", metavar="STUDY")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=400, help="tokens sampled in a row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    if args.regenerate:
        for folder in args.regenerate:
            draw_curve(folder, write_table(folder))
    elif args.checkpoint and args.out:
        study(args)
    else:
        parser.error("give a checkpoint and --out, or --regenerate")


if __name__ == "__main__":
    guarded(main)
