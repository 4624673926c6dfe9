"""The page of scripts/reproduce_agreement.py from its records: what came out beside what was said.

    python scripts/page_agreement.py results/reproductions/agreement

Nothing is trained. Published numbers are those of the authors' repository, by seed.
"""

import argparse
from pathlib import Path

from phasegpt.analysis.statistics import interval
from phasegpt.cli import guarded
from phasegpt.core.files import read_json, write_atomic

WHAT = ("all", "hard")
FAILED = 85.0  # percent of hard sentences; the authors' line
LEARNED = 1.0  # points of all sentences below the ceiling, at most; our line
SUBJECT = 2  # its place, behind the begin and "the"
#: FabioPasqualetti/attention-by-synchronization at 9f87597, its file sva_paper_final.json.
PUBLISHED = {
    "oscillators": {
        "all": [97.78, 97.97, 97.65, 97.70, 97.97],
        "hard": [97.14, 97.75, 97.40, 96.96, 97.66],
    },
    "softmax": {
        "all": [93.95, 96.45, 96.28, 78.35, 95.93],
        "hard": [95.32, 94.19, 96.10, 78.14, 96.79],
    },
}
#: Our arms, what they are called here, and which published arm stands beside them.
ARMS = {
    "free_anchors": ("oscillators as published", "oscillators"),
    "fixed_query": ("phasegpt's fixed_query", "oscillators"),
    "softmax": ("softmax", "softmax"),
}
PAGE = """\
# Subject-verb agreement with fixed_query: a published result, trained anew

{claim}

Accuracy on {validation:,} validation sentences after {steps:,} steps, percent, with Student's 95%
interval. Hard sentences are those whose second noun has the other number.

{table}

- Ceiling: a reader who knows the number of every noun, and guesses where a noun has one form for
  both, has {ceiling_all:.2f}% of all and {ceiling_hard:.2f}% of hard sentences on average; a
  run can be lucky in its guesses.
- Learned: at most {learned:g} point below the ceiling of all. Failed: below {failed:g}% of hard
  ones, the authors' line.
- So this is about whether training gets there. Runs that do and runs that do not are no normal
  sample: an interval that leaves 0 to 100 says so. Read the counts and every seed.

## Every seed

{seeds}

## What was asked

Pasqualetti and Guo (arXiv 2606.12059) report that attention by fixed-query oscillators on a circle
learns this task in every run, and softmax does not. The model has one layer, one head and width 32:
{oscillators:,} parameters with oscillators, {softmax:,} with softmax. It sees all words of a
sentence, so it is not part of the GPT, which is causal.

## Keep in mind

- Sentences are drawn with the same random numbers as theirs: the ceiling agrees with theirs to the
  last digit. Initial weights, order and dropout are our own, so runs agree in distribution only.
- Their anchors begin on the circle and may leave it; phasegpt's `fixed_query` puts them back in
  every pass. So there are two oscillator arms, both at p = 1 and without a causal mask, from the
  same initial weights and with the same sentences and dropout.
- Free anchors do leave it: the subject's ended {subject[0]:.2f} to {subject[1]:.2f} long, others
  {rest[0]:.2f} to {rest[1]:.2f}. So the published arm learns a weight of each place beside its
  angle. Whether the failed run on the circle is due to that, five runs cannot tell.
- Softmax runs differ so much that {n} seeds say little about their mean. Read every seed.
- Seeds of an arm were trained side by side: each has its own weights, order of sentences, gradient
  norm and optimizer state, and dropout of all comes from one stream.
{alone}- The last epoch counts, as in the paper's table. Nothing was chosen on these sentences.
- Records: `arms/`, with settings, command, commit and accuracy after every epoch. They were made at
  commits {commits}.

## Again

```bash
python scripts/reproduce_agreement.py --out results/reproductions/agreement
python scripts/page_agreement.py results/reproductions/agreement
```
"""
ALONE = """\
- Before that, seed {seed} was trained by itself: {numbers}. Records:
  `alone/arms/`, of the script at commit {commit}, whose fixed_query had free anchors.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_atomic(folder / "README.md", page(folder).encode())


def records(folder: Path) -> list[dict]:
    return [read_json(path, "accuracy") for path in sorted((folder / "arms").glob("*.json"))]


def page(folder: Path) -> str:
    every, before = records(folder), records(folder / "alone")
    of = {arm: found for arm in ARMS if (found := [r for r in every if r["arm"] == arm])}
    here = {arm: {w: [r["accuracy"][w] for r in of[arm]] for w in WHAT} for arm in of}
    rows, seeds = [], []
    for arm in of:
        rows.append(numbers(f"{ARMS[arm][0]}, here", here[arm]))
        for r in of[arm]:
            curve = [f"{epoch['all']:.2f}" for epoch in r["curve"]]
            seeds.append([ARMS[arm][0], str(r["seed"]), *curve[:2], curve[4], curve[9], curve[-1],
                          f"{r['accuracy']['hard']:.2f}"])  # fmt: skip
    rows += [numbers(f"{arm}, published", values) for arm, values in PUBLISHED.items()]
    free = [r["anchor_lengths"] for r in of["free_anchors"]]
    subject = [lengths[SUBJECT] for lengths in free]
    rest = [x for lengths in free for at, x in enumerate(lengths) if at != SUBJECT]
    heads = [f"{what}: {x}" for what in WHAT for x in ("mean", "sd", "95% interval")]
    epochs = [f"epoch {epoch}" for epoch in (1, 2, 5, 10, len(every[0]["curve"]))]
    return PAGE.format(
        claim=claim(here, every[0]["ceiling"]["all"]),
        table=table(["", "n", *heads, "failed"], rows),
        seeds=table(["", "seed", *epochs, "hard, at the end"], seeds),
        n=len(of["softmax"]),
        alone=alone(before),
        validation=every[0]["settings"]["validation"],
        steps=every[0]["steps"],
        failed=FAILED,
        learned=LEARNED,
        ceiling_all=every[0]["ceiling"]["all"],
        ceiling_hard=every[0]["ceiling"]["hard"],
        subject=(min(subject), max(subject)),
        rest=(min(rest), max(rest)),
        commits=", ".join(sorted({commit(r) for r in every})),
        oscillators=of["fixed_query"][0]["parameters"],
        softmax=of["softmax"][0]["parameters"],
    )


def claim(here: dict[str, dict[str, list[float]]], ceiling: float) -> str:
    """In a line for each arm: how many runs learned it and failed, ours and theirs."""
    found = []
    for arm, values in here.items():
        name, beside = ARMS[arm]
        theirs = PUBLISHED[beside]
        ours_, theirs_ = (counts(v, ceiling) for v in (values, theirs))
        means = [f"{interval(v['all'])[0]:.2f}%" for v in (values, theirs)]
        found.append(f"- {name}: {ours_}, mean {means[0]}. Published: {theirs_}, mean {means[1]}.")
    return "\n".join(found)


def counts(values: dict[str, list[float]], ceiling: float) -> str:
    learned = sum(x >= ceiling - LEARNED for x in values["all"])
    failed, n = sum(x < FAILED for x in values["hard"]), len(values["all"])
    return f"{learned} of {n} runs learned it and {failed} failed"


def numbers(name: str, values: dict[str, list[float]]) -> list[str]:
    cells = [name, str(len(values["all"]))]
    for what in WHAT:
        mean, sd, low, high = interval(values[what])
        cells += [f"{mean:.2f}", f"{sd:.2f}", f"{low:.2f} to {high:.2f}"]
    return [*cells, str(sum(x < FAILED for x in values["hard"]))]


def alone(found: list[dict]) -> str:
    if not found:
        return ""
    numbers = ", ".join(f"{r['arm']} {r['accuracy']['all']:.2f}%" for r in found)
    return ALONE.format(seed=found[0]["seed"], numbers=numbers, commit=commit(found[0]))


def commit(record: dict) -> str:
    return record["environment"]["git"]["sha"][:12]


def table(names: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
