"""Samplers compared on one model: records, tables and a picture of quality against diversity.

python scripts/bench_samplers.py runs/my_run --out results/samplers/my_run
python scripts/bench_samplers.py gpt2 --text corpus.txt --out results/samplers/gpt2    (extra hf)
python scripts/bench_samplers.py --list                              the arms
python scripts/bench_samplers.py --regenerate results/samplers       tables and pictures, anew

MODEL is a run folder, checkpoint or exported folder of ours, or a Hugging Face folder or name; that
one needs --text, a file of human text of its kind. The protocol is the published one, 5 prompts x
40 rounds x 200 tokens. Arms that have a record are skipped, so a run that was cut goes on.
"""

import argparse
import sys
from pathlib import Path

from phasegpt.analysis.sampler_arms import ARMS, arms_for
from phasegpt.analysis.sampler_bench import Bench, Protocol, run
from phasegpt.analysis.sampler_subject import PUBLISHED_PROMPTS, Subject
from phasegpt.analysis.sampling import regenerate
from phasegpt.cli import guarded, training_corpus
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import check_output, read_text
from phasegpt.model import huggingface
from phasegpt.model.loading import is_ours, load_run


def bench(args: argparse.Namespace) -> None:
    check_output(args.out / "table.csv", "--out")
    label = args.name or Path(args.model).resolve().name
    if is_ours(args.model):
        loaded = load_run(args.model)
        subject = Subject.from_run(loaded, training_corpus(loaded, None, None), label)
    else:
        if args.text is None:
            raise ConfigError(
                f"{args.model} is no checkpoint of ours; for a Hugging Face model give --text FILE "
                f"too, human text to compare with"
            )
        text = read_text(args.text).replace("\r\n", "\n")
        subject = Subject.from_hugging_face(*huggingface.load(args.model), text, label)
    kind = args.prompts or ("text" if is_ours(args.model) else "seed")
    prompts = PUBLISHED_PROMPTS if kind == "seed" else subject.openings(len(PUBLISHED_PROMPTS))
    protocol = Protocol(
        prompts=prompts[: args.limit_prompts],
        rounds=args.rounds,
        tokens=args.tokens,
        seed=args.seed,
    )
    arms = arms_for(subject.phases, args.arms)
    run(Bench(subject, protocol), arms, args.out, force=args.force, say=say)
    for path in regenerate(args.out):
        print(path)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", nargs="?")
    add("--out", type=Path, default=Path("results/samplers"))
    add("--name", help="what the tables call the model; default: the name of its folder")
    add("--text", type=Path, help="human text, for a Hugging Face model")
    add("--prompts", choices=("seed", "text"), help="default: text (ours), seed (Hugging Face)")
    add("--arms", nargs="+", metavar="ARM", help="only these (see --list)")
    add("--rounds", type=int, default=Protocol.rounds)
    add("--tokens", type=int, default=Protocol.tokens)
    add("--limit-prompts", type=int, default=len(PUBLISHED_PROMPTS), help="fewer prompts, to try")
    add("--seed", type=int, default=Protocol.seed)
    add("--force", action="store_true", help="measure anew what has a record")
    add("--regenerate", type=Path, metavar="FOLDER", help="only tables and pictures, from records")
    add("--list", action="store_true", help="only show the arms")
    args = parser.parse_args()
    if args.list:
        for arm in ARMS:
            print(f"{arm.name:24}{arm.role:10}{arm.described()}")
    elif args.regenerate:
        for path in regenerate(args.regenerate):
            print(path)
    elif args.model is None:
        parser.error("name a model, or --list, or --regenerate FOLDER")
    else:
        bench(args)


if __name__ == "__main__":
    guarded(main)
