"""The page of results/discovery_lohe from its records and those of the leaderboard.

    python scripts/page_discovery_lohe.py --runs runs

Nothing is trained. Records: the leaderboard's (selective copy), arms (others on the seeds of its
verdict), and deep (more layers).
"""

import argparse
from pathlib import Path
from textwrap import fill

from phasegpt.analysis.discovery import Runs, by_stage, mean, middle, runs, scores, stage, told
from phasegpt.analysis.study import collect
from phasegpt.analysis.text_table import markdown, number
from phasegpt.cli import guarded
from phasegpt.core.files import write_atomic

RESULTS = Path(__file__).resolve().parents[1] / "results"
TASK, RIGHT, WHOLE = "selective_copy", "val/accuracy", "val/exact"
#: Arms in the order of the tables, and what they are called.
ARMS = {
    "lohe": "lohe",
    "lohe_one": "lohe, S = 1",
    "lohe_off": "lohe, S = 0: no token sees another",
    "lohe_learned": "lohe, learned positions",
    "softmax": "softmax + RoPE",
    "softmax_deep": "softmax + RoPE, 5 layers",
    "softmax_learned": "softmax, learned positions",
}
#: Arms beside those that the leaderboard has, by name: what they change.
MORE = {
    "lohe_one": "attention:lohe,attention.steps:1",
    "lohe_learned": "attention:lohe,model.positions:learned",
}
#: The same of another size, which has records of its own.
DEEP = {"softmax_deep": "attention:softmax,model.n_layer:5"}
#: What a vote of the tokens by their usual place has: docs/tasks.md.
PLACES = 0.70
#: Folders of records, and those of their runs.
PARTS = {"arms": "discovery_lohe", "deep": "discovery_lohe_deep"}
RIVALS = ("softmax", "lohe_off", "softmax_learned")


def main() -> None:
    """Collect records, if asked to, and write README.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, help="collect from RUNS/discovery_lohe first")
    args, folder = parser.parse_args(), RESULTS / "discovery_lohe"
    if args.runs:
        for part, name in PARTS.items():
            collect(args.runs / name, folder / part)
    write_atomic(folder / "README.md", text(folder).encode())


def text(folder: Path) -> str:
    """README.md."""
    board = runs(RESULTS / "leaderboard", TASK)
    arms = {arm: by for part in PARTS for arm, by in runs(folder / part, TASK).items()}
    last = list(scores(stage(board, "confirmation")["lohe"], RIGHT).values())
    new = [*last, *scores(stage(board, "verdict")["lohe"], RIGHT).values()]
    return PAGE.format(
        claim=claim(board, arms),
        below=sum(score < PLACES for score in new),
        n=len(new),
        spread=max(last) - min(last),
        registered="../../PREREGISTRATION.md#what-follows-a-win-of-lohe",
        stages="\n".join(stages(board)),
        arms="\n".join(by_arm(stage({**board, **arms}, "verdict"))),
        command=command(),
    )


def claim(board: Runs, arms: Runs) -> str:
    """What the confirmation shows, and the arms on the verdict's seeds."""
    of, new = stage(board, "confirmation"), stage(arms, "verdict")

    def right(arms: Runs, arm: str) -> str:
        return f"{middle(scores(arms[arm], RIGHT).values()):.3f}"

    mine = mean(scores(of["lohe"], RIGHT).values())
    return fill(
        f"**On {len(of['lohe'])} new seeds `lohe` has {mine} of tokens right, softmax + RoPE "
        f"{right(of, 'softmax')}, softmax with learned positions {right(of, 'softmax_learned')}; "
        f"a guess by places alone has {PLACES:.2f}.** With one step in place of four lohe has "
        f"{right(new, 'lohe_one')}, and five layers of softmax, with more FLOPs than lohe, "
        f"{right(new, 'softmax_deep')} (n = {len(new['lohe_one'])}). It is one task, which no arm "
        "has learned yet.",
        width=100,
    )


def stages(board: Runs) -> list[str]:
    """lohe at every stage, beside what it is compared with."""
    rows = []
    for name, mine, differences, p in by_stage(board, "lohe", RIGHT, RIVALS):
        each = " ".join(number(v) for v in mine.values())
        rows.append([name, str(len(mine)), mean(mine.values()), each, *differences, p])
    head = ["stage", "n", "lohe", "every seed", *(f"minus {ARMS[rival]}" for rival in RIVALS)]
    return markdown([*head, "largest p"], rows)


def by_arm(arms: Runs) -> list[str]:
    """Every arm on the same seeds."""
    base, rows = next(iter(arms["softmax"].values())), []
    mine = scores(arms["lohe"], RIGHT)
    for arm in (arm for arm in ARMS if arm in arms):
        of, one = arms[arm], next(iter(arms[arm].values()))
        right, whole = scores(of, RIGHT), scores(of, WHOLE)
        cost = one["flops_per_token"]["causal"] / base["flops_per_token"]["causal"]
        size = one["parameters"]["all"] / base["parameters"]["all"]
        difference = "" if arm == "lohe" else told(mine, right)[0]
        each = " ".join(number(v) for v in right.values())
        cells = [mean(right.values()), each, number(middle(whole.values())), difference]
        rows.append([ARMS[arm], str(len(of)), *cells, f"{cost:.2f}", f"{size:.2f}"])
    head = ["arm", "n", "tokens right", "every seed", "whole rows", "lohe minus it"]
    return markdown([*head, "FLOPs", "parameters"], rows)


def command() -> str:
    """What makes the records and this page."""
    sweeps = [
        [
            "python -m phasegpt.train -m +sweep=leaderboard scale=small task=selective_copy",
            f"records=results/discovery_lohe/{part} hydra.sweep.dir=runs/{PARTS[part]}",
            "stage=rates,verdict",
            *(f"'+leaderboard.arms.{name}={{{keys}}}'" for name, keys in more.items()),
            f"arm={','.join(more)}",
        ]
        for part, more in (("arms", MORE), ("deep", DEEP))
    ]
    return "\n".join(
        [
            *(" \\\n  ".join(sweep) for sweep in sweeps),
            "# the leaderboard's, into runs/leaderboard-small",
            "python -m phasegpt.train -m +sweep=leaderboard scale=small task=selective_copy \\",
            "  stage=verdict,confirm arm=softmax,softmax_learned,lohe,lohe_off",
            "python scripts/analyze_results.py runs/leaderboard-small --into results/leaderboard",
            "python scripts/page_discovery_lohe.py --runs runs",
        ]
    )


PAGE = """\
# lohe copies selected tokens better than softmax, with four steps of attention in a layer

{claim}

{stages}

Tokens right, of 16 that stand among 112 blanks. Differences are paired by seed, with 95% t
intervals; p is the exact two-sided sign-flip test's, the largest of three: 0.0625 is the least that
five pairs can give, 0.002 that of ten. It was found in the screening; verdict and confirmation have
new seeds. Task and rules: [leaderboard](../leaderboard/selective_copy.md).

## Steps, depth or positions?

{arms}

The verdict's seeds, rates chosen as for all arms. FLOPs and parameters: ratios to softmax + RoPE.

- **The steps do it**: with S = 1 lohe has no more than softmax + RoPE. S = 2 and 3 were not run.
- **Depth of softmax does not do the same** in these steps: five layers have more FLOPs than lohe,
  and 2.5 times the parameters.
- **Positions alone do nearly as much**: softmax with learned positions has what a vote of the
  tokens by their usual place gives, 0.70. With them lohe fails on some seeds.

These arms were [registered]({registered})
before they ran. Expected was that five layers of softmax have about 0.70: they have less.

## Keep in mind

- **{below} of the {n} new seeds are below 0.70**, where no selection is shown.
- lohe without coupling mixes no tokens. That lohe is better says that it mixes, not that its
  oscillators matter. What an attention that runs four times without spheres would do was not run.
- No arm has learned the task after 1,000 steps. Who is ahead later is not known.
- It has groups of 4: points on spheres have no phase and no R. Nothing is said of synchronization.
- On copying and induction lohe is below softmax. On cycle navigation 3 of 5 runs
  solve the trained lengths, which need no order, and it is at chance beyond.
- The decision hangs on no reading of the rule for runs of two groups: the confirmation's scores
  are {spread:.3f} apart, less than a third of the way from chance to 1, 0.310.

## Again

```bash
{command}
```

Records: `arms/runs`, `deep/runs`, and the leaderboard's.
"""


if __name__ == "__main__":
    guarded(main)
