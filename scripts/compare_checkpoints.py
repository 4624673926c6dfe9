"""Which of two models predicts a text better: perplexities and a paired block bootstrap.

python scripts/compare_checkpoints.py RUN_A RUN_B --split test --out comparison.json

Blocks are the articles of WikiText, elsewhere windows of the context. The interval is about the
text, at fixed weights; it says nothing about seeds.
"""

import argparse
from pathlib import Path
from typing import Any

from phasegpt.analysis.statistics import perplexity_difference
from phasegpt.cli import device, guarded, training_corpus
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import check_output, write_json
from phasegpt.interpretation.comparison import documents
from phasegpt.model.checkpoint import run_folder
from phasegpt.model.loading import load_run
from phasegpt.model.scoring import UNITS, losses, perplexity


def compare(a: Path, b: Path, split: str) -> dict[str, Any]:
    loaded = [load_run(a), load_run(b)]
    corpora = [training_corpus(one, None, None) for one in loaded]
    if corpora[0].fingerprint != corpora[1].fingerprint:
        raise ConfigError(f"{a} and {b} were trained on different texts or tokens")
    corpus, context = corpora[0], min(one.model.config.block_size for one in loaded)
    chosen, tokens_T = device("auto"), corpora[0].split(split)
    nats = [losses(one.model.to(chosen), tokens_T, context=context).numpy() for one in loaded]
    document_T = documents(corpus, split)
    blocks = context if document_T is None else document_T
    found = perplexity_difference(*nats, blocks)
    return {
        "runs": [
            {
                "name": run_folder(one.path).resolve().name,
                "sha256": one.sha256,
                "leaky": one.model.leaky,
                "perplexity": perplexity(float(x.sum(dtype="float64")), len(x)),
            }
            for one, x in zip(loaded, nats, strict=True)
        ],
        "corpus": corpus.meta["corpus"],
        "data_fingerprint": corpus.fingerprint,
        "split": split,
        "unit": UNITS[corpus.tokenizer.name],
        "context": context,
        "tokens_scored": len(nats[0]),
        "blocks": f"windows of {context}" if document_T is None else "documents",
        "difference": {k: getattr(found, k) for k in ("effect", "low", "high", "n")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, help="the JSON")
    args = parser.parse_args()
    if args.out:
        check_output(args.out, "--out")
    result = compare(args.a, args.b, args.split)
    for run in result["runs"]:
        warning = "  LEAKY: it sees the future" * run["leaky"]
        print(f"{run['name']}: perplexity {run['perplexity']:.4f} per {result['unit']}{warning}")
    found = result["difference"]
    ends = "" if found["low"] is None else f" [{found['low']:+.4f} to {found['high']:+.4f}]"
    print(
        f"difference {found['effect']:+.4f}{ends}, 95% over {found['n']} {result['blocks']} of "
        f"{result['corpus']}, split {result['split']}"
    )
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    guarded(main)
