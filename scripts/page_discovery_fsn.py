"""The page of results/discovery_fsn from its records and those of the leaderboard.

    python scripts/page_discovery_fsn.py --runs runs

Nothing is trained. Records: the leaderboard's (copying), arms (other arms at one learning rate),
top (the layer in layer 1 alone), long (four times the steps), and what
scripts/intervene_on_task.py and scripts/copy_freely.py wrote of the leaderboard's runs.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

from phasegpt.analysis.discovery import Runs, by_stage, mean, middle, runs, scores, stage, told
from phasegpt.analysis.study import collect
from phasegpt.analysis.text_table import markdown, number
from phasegpt.cli import guarded
from phasegpt.core import figures
from phasegpt.core.files import read_json, write_atomic

RESULTS = Path(__file__).resolve().parents[1] / "results"
TASK, TRAINED, BEYOND = "copying", 32, "val/accuracy/beyond"
FAR = (64, 96, 128)
#: Arms in the order of the tables, and what they are called.
ARMS = {
    "fsn": "fsn",
    "fsn_delay": "fsn, one harmonic",
    "fsn_nostep": "fsn, one harmonic, no step",
    "fsn_harmonics": "fsn, no delay",
    "fsn_off": "fsn, one harmonic, no delay",
    "fsn_eta025": "fsn, eta held at 0.25",
    "fsn_eta2": "fsn, eta held at 2",
    "tied_shift": "token shift, queries are gated keys",
    "token_shift": "token shift, at 3e-3",
    "softmax": "softmax + RoPE",
}
#: Arms beside those that the leaderboard has, by name: what they change.
MORE = {
    "fsn_delay": "attention:fsn,attention.harmonics:1",
    "fsn_nostep": "attention:fsn,attention.step:false",
    "fsn_harmonics": "attention:fsn,attention.delay:false",
    "fsn_eta025": "attention:fsn,attention.coupling:0.25,attention.learn_coupling:false",
    "fsn_eta2": "attention:fsn,attention.coupling:2.0,attention.learn_coupling:false",
    "tied_shift": "attention:token_shift,attention.tied:true",
}
#: Folders of records, and those of their runs.
PARTS = {"arms": "discovery_fsn", "top": "discovery_fsn_top", "long": "discovery_fsn_long"}
RIVALS = ("softmax", "token_shift", "fsn_off")


def main() -> None:
    """Collect records, if asked to, and write README.md and lengths.png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, help="collect from RUNS/discovery_fsn* first")
    args, folder = parser.parse_args(), RESULTS / "discovery_fsn"
    for part, name in PARTS.items() if args.runs else ():
        collect(args.runs / name, folder / part)
    write_atomic(folder / "README.md", text(folder).encode())
    draw(runs(RESULTS / "leaderboard", TASK), runs(folder / "arms", TASK), folder / "lengths.png")


def text(folder: Path) -> str:
    """README.md."""
    board, arms = runs(RESULTS / "leaderboard", TASK), runs(folder / "arms", TASK)
    screened = stage({**board, **arms}, "screening")
    new = stage(arms, "verdict")
    return PAGE.format(
        claim=claim(stage(board, "confirmation")),
        confirmed="\n".join(confirmed(board)),
        sensitivity=sensitivity(stage(board, "confirmation")),
        arms="\n".join(by_arm(screened)),
        step="\n".join(contrast(new["fsn_delay"], new["fsn_nostep"])),
        top="\n".join(by_arm(runs(folder / "top", TASK))),
        long="\n".join(by_arm(runs(folder / "long", TASK))),
        interventions="\n".join(intervened(folder / "interventions")),
        free="\n".join(free(folder / "free")),
        R="\n".join(along(screened["fsn"])),
        registered="../../PREREGISTRATION.md#changes-before-any-run-of-screening-of-these-arms",
        command=command(),
    )


def claim(of: Runs) -> str:
    n = len(of["fsn"])

    def shares(arm: str, what: str) -> str:
        return ", ".join(f"{middle(scores(of[arm], f'val/{what}/{k}').values()):.1%}" for k in FAR)

    def within(arm: str) -> str:
        return f"{middle(scores(of[arm], 'val/accuracy').values()):.1%}"

    def beyond(arm: str) -> str:
        return f"{middle(scores(of[arm], BEYOND).values()):.1%}"

    return (
        f"**Trained on strings of 2 to {TRAINED} letters and given the right letters so far, `fsn` "
        f"predicts {shares('fsn', 'accuracy')} of letters in strings of 64, 96 and 128 (means of "
        f"{n} new seeds); of whole strings {shares('fsn', 'exact')}.** Over the three lengths "
        f"softmax + RoPE has {beyond('softmax')} of letters, softmax with token shift "
        f"{beyond('token_shift')}, and fsn without delay and second harmonic {beyond('fsn_off')}. "
        f"Within the trained lengths they have {within('softmax')}, {within('token_shift')} and "
        f"{within('fsn_off')}: token shift did not learn the task in these steps."
    )


def sensitivity(of: Runs) -> str:
    """What the confirmation hangs on: how scores far apart are recognised as two groups."""
    found = sorted(scores(of["fsn_off"], BEYOND).values())
    whole = 1 - next(iter(of["fsn_off"].values()))["data"]["chance"]
    gap = max(b - a for a, b in pairwise(found))
    return fill(
        "One choice matters. Where scores of an arm fall into two groups, runs are counted instead "
        "of t-tested, and none of these solves strings this long. The code asks for a gap of a "
        f"third of the way from chance to 1, {whole / 3:.3f}; the largest of {ARMS['fsn_off']}, is "
        f"{gap:.3f}. Its highest and lowest score are {found[-1] - found[0]:.3f} apart: had the "
        "range been asked for, nothing would have been decided here.",
        width=100,
    )


def confirmed(board: Runs) -> list[str]:
    rows = [
        [name, str(len(mine)), mean(mine.values()), *differences, p]
        for name, mine, differences, p in by_stage(board, "fsn", BEYOND, RIVALS)
    ]
    names = [ARMS[rival].removesuffix(", at 3e-3") for rival in RIVALS]
    head = ["stage", "n", "fsn", *(f"minus {name}" for name in names), "largest p"]
    return markdown(head, rows)


def by_arm(arms: Runs) -> list[str]:
    rows = []
    for arm in (arm for arm in ARMS if arm in arms):
        of = arms[arm]
        metrics = [f"val/exact/{TRAINED}", "val/accuracy", *(f"val/accuracy/{n}" for n in FAR)]
        cells = [number(middle(scores(of, metric).values())) for metric in metrics]
        loss = middle(scores(of, "train/loss").values())
        each = " ".join(number(v) for v in scores(of, BEYOND).values())
        rows.append([ARMS[arm], str(len(of)), f"{loss:.1e}", *cells, each])
    head = ["arm", "n", "training loss", f"strings, {TRAINED}", f"letters, 8 to {TRAINED}"]
    return markdown([*head, *(f"letters, {n}" for n in FAR), "beyond, every seed"], rows)


def contrast(
    of: Mapping[int, Mapping[str, Any]], than: Mapping[int, Mapping[str, Any]]
) -> list[str]:
    mine, theirs = scores(of, BEYOND), scores(than, BEYOND)
    row = [str(len(mine)), mean(mine.values()), mean(theirs.values()), *told(mine, theirs)]
    head = ["n", ARMS["fsn_delay"], "the same without the step", "difference", "p"]
    return markdown(head, [row])


def intervened(folder: Path) -> list[str]:
    files = [read_json(path, "effects")["effects"] for path in sorted(folder.glob("*.json"))]
    rows = []
    for k, effect in enumerate(files[0]):
        each = [f[k]["scores"] for f in files]
        shown = [mean(s[name] for s in each) for name in ("accuracy", "accuracy/beyond")]
        rows.append([effect["name"], str(len(each)), *shown])
    return markdown(["changed at test time", "n", f"8 to {TRAINED}", f"beyond {TRAINED}"], rows)


def free(folder: Path) -> list[str]:
    """Free decoding by arm, from files ARM-seedN.json."""
    found: dict[str, list[Any]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        found[path.stem.rpartition("-seed")[0]].append(read_json(path))
    rows, lengths = [], [str(n) for n in (TRAINED, *FAR)]
    # Of the leaderboard's verdict, whose token shift has another rate than the table above.
    names = ARMS | {"token_shift": "token shift, at 1e-3"}
    for arm in (arm for arm in ARMS if arm in found):
        shares = [
            number(middle(f[n][what] for f in found[arm]))
            for what in ("strings", "letters")
            for n in lengths
        ]
        rows.append([names[arm], str(len(found[arm])), *shares])
    head = [f"{what}, {n}" for what in ("strings", "letters") for n in lengths]
    return markdown(["arm", "n", *head], rows)


def along(of: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """R and dR of each layer at the validations, means over seeds."""

    def at(measure: str, layer: int) -> dict[float, float]:
        name = f"phase/val/{measure}/layer{layer}"
        curves = [dict(record["curves"].get(name, [])) for record in of.values()]
        steps = sorted(set.intersection(*map(set, curves)))
        return {step: middle(curve[step] for curve in curves) for step in steps}

    found = {(m, n): at(m, n) for n in (0, 1) for m in ("R_end", "dR")}
    steps = sorted(set.intersection(*map(set, found.values())))
    rows = [[f"{s:g}", *(number(values[s]) for values in found.values())] for s in steps]
    return markdown(["step", *(f"{'R' if m == 'R_end' else m}, layer {n}" for m, n in found)], rows)


@figures.house()
def draw(board: Runs, arms: Runs, path: Path) -> None:
    """Accuracy by length at the screening's seeds, a line for each arm."""
    shown = stage({**board, **arms}, "screening")
    figure = figures.new(2.6)
    axes = figure.subplots()
    for arm in ("fsn", "fsn_off", "fsn_nostep", "token_shift", "softmax"):
        lengths = (8, 16, TRAINED, *FAR)
        y = [middle(scores(shown[arm], f"val/accuracy/{n}").values()) for n in lengths]
        own = figures.colour("fsn") if arm.startswith("fsn") else None
        axes.plot(lengths, y, "o-" if arm == "fsn" else "o--", color=own, label=ARMS[arm])
    axes.axvline(TRAINED, color=figures.SOFT, lw=0.8)
    axes.set(xlabel="letters to copy (trained: 2 to 32)", ylabel="accuracy", ylim=(-0.02, 1.04))
    figures.label_ends(axes)
    figures.save(figure, path)


def command() -> str:
    """What makes the records and this page."""
    sweep = [
        "python -m phasegpt.train -m +sweep=leaderboard scale=small task=copying",
        "records=results/discovery_fsn/arms hydra.sweep.dir=runs/discovery_fsn",
        "'leaderboard.rates.small=[3.0e-3]' stage=rates,screen",
        *(f"'+leaderboard.arms.{name}={{{keys}}}'" for name, keys in MORE.items()),
        f"arm=token_shift,{','.join(MORE)}",
    ]
    one = "python -m phasegpt.train -m +task=small/copying optimizer.lr=3e-3"
    folder = "hydra.sweep.dir=runs/discovery_fsn_{} 'hydra.sweep.subdir=${{name}}-seed${{seed}}'"
    run = "runs/reproduced/leaderboard/leaderboard-copying-fsn-seed11"
    return "\n".join(
        [
            "# arms; again with stage=verdict and arm=fsn_delay,fsn_nostep",
            " \\\n  ".join(sweep),
            "# top and long: arm by arm, with its options above, such as",
            f"{one} name=fsn_nostep attention=fsn attention.step=false \\",
            f"  'attention.layers=[1]' seed=1,2,3 {folder.format('top')}",
            f"{one} name=fsn_nostep attention=fsn attention.step=false \\",
            "  attention.layers=all trainer.max_steps=4000 trainer.val_check_interval=1000 \\",
            f"  seed=1 {folder.format('long')}",
            "# of each of the leaderboard's runs of the verdict; then the page",
            "python scripts/reproduce.py \\",
            "  results/leaderboard/runs/leaderboard-copying-fsn-seed11.json",
            f"python scripts/intervene_on_task.py {run} \\",
            "  --out results/discovery_fsn/interventions/seed11.json",
            f"python scripts/copy_freely.py {run} --out results/discovery_fsn/free/fsn-seed11.json",
            "python scripts/page_discovery_fsn.py --runs runs",
        ]
    )


PAGE = """\
# Given the letters so far, fsn predicts the next one in strings up to four times the trained length

{claim}

{confirmed}

Letters beyond 32: the mean over 64, 96 and 128. Differences are paired by seed, with 95% t
intervals; p is the exact two-sided sign-flip test's, the largest of three: 0.0625 is the least that
five pairs can give, 0.002 that of ten; the leaderboard's, of t-tests, are below 0.001. It was found
in the screening; verdict and confirmation have new seeds. The leaderboard's token shift has rate
1e-3. Task and rules: [leaderboard](../leaderboard/README.md).

{sensitivity}

## Which arms find it

{arms}

Screening seeds, learning rate 3e-3, parameters within 1%; validation strings of 8, 16 and 32
letters, and of 64, 96 and 128. fsn has 1.23 times softmax's FLOPs, fsn with one harmonic as many as
token shift.

- **This table does not separate learning from extrapolating.** Without the step, with eta held at
  0.25 or 2, and with either token shift, strings of 32 are not learned in 1,000 steps, so that low
  scores beyond say little. fsn without delay learns them, has two thirds of letters at 64, and a
  tenth or less at 128. kope and selective RoPE learn them too, and have a tenth beyond
  ([leaderboard](../leaderboard/copying.md)); so does token shift with softmax below (next but one
  table).
- eta alone is not the coupling strength: only eta times the learned kernel c enters. eta = 2 is
  another initialization.
- Gated keys differ from fsn's phases in norm, number of rotary pairs and initialization.

![Letters by length](lengths.png)

## The step alone, on new seeds

{step}

The same attention, delay and parameters; without the step the retrieved phases are read out. Those
runs had not learned strings of 32 yet, and the start (tau) was looked for with the step.

## With softmax below

{top}

The layer in layer 1 alone, softmax in layer 0: asked for by a referee, since one of two equal
layers may copy by itself and leave the other idle. Token shift then solves the trained lengths, and
does not extrapolate; fsn then fails at the trained lengths.

## Four times the steps

{long}

One seed each, 4,000 steps; fsn with its step was not run so long. Without it fsn goes on learning:
0.222 beyond after 1,000 steps with this seed. Softmax + RoPE learns strings of 32 whole.

## What the trained model needs

{interventions}

Means and 95% intervals over the leaderboard's verdict seeds, on the test examples. K is eta, S how
often the step is taken: once in training. Scrambled: the phases after the step are permuted among
the tokens of a string, or the channels of a token. `K x 1` and `S = 1` are controls; `K x 0` and
`S = 0` take away all mixing of tokens, and say nothing of synchronization.

## Free decoding

{free}

The model writes the string itself with its cache, the likeliest letter each time, and reads its
own errors on. Shares of whole strings and of letters, 32 strings of each length, the verdict
seeds.

## R along training

{R}

R over the prefix of a channel on validation strings, and what the step adds to it (dR). It is
described, and not shown to cause anything.

## Keep in mind

- The right letters are given. Who looks up what followed the last two of them in the string has
  0.93 beyond, with the last one 0.31: fsn is no better than that, and softmax far below.
- One task, one size; 1,000 steps but for four single runs. Of position codes made for extrapolation
  none was run.
- The start of fsn was looked for on this task, by accuracy up to 32 letters on seed 0, where four
  starts gave 0.77 to 1.00 ([registered]({registered})). Other arms were tuned by two learning
  rates alone, of which 3e-3 is the higher.
- Intervals are over seeds; all seeds share the validation strings.
- The layer is built from an abstract (arXiv 2606.18694). It is no reproduction of the paper's.

## Again

```bash
{command}
```

Records: `arms/runs`, `top/runs`, `long/runs`, and the leaderboard's.
"""


if __name__ == "__main__":
    guarded(main)
