"""Draw the picture of the README: one token's phases before and after coupling, and its worth.

    python -m phasegpt.train +experiment=quickstart hydra.run.dir=runs/quickstart/picture
    python scripts/picture_readme.py runs/quickstart/picture

The circles are of that run: of the token and head whose R is nearest to the layer's means, before
and after. The curves are of results/synchronization/table.csv.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import phasegpt
from phasegpt.cli import guarded
from phasegpt.core import figures
from phasegpt.core.files import check_output
from phasegpt.interpretation.tracing import Trace, trace
from phasegpt.phase import null_order_parameter

ROOT = Path(__file__).resolve().parents[1]
TEXT = "MARIN. The tide is high, and all the boats are home.\n"  # of the quickstart's characters
ARMS = ("K0", "K0.5", "K0.75", "K1", "K2", "K4", "S60")  # by budget, softmax and controls left out
COUPLED = figures.colour("kuramoto")


def typical(found: Trace) -> tuple[int, int]:
    """The token and head whose R is nearest to the means, before and after coupling."""
    R_STH = found.path_R_STH[[0, -1]]
    far_TH = (R_STH - R_STH.mean((1, 2), keepdim=True)).square().sum(0)
    token, head = divmod(int(far_TH.argmin()), far_TH.shape[1])
    return token, head


def draw_circle(axes: Any, theta_N: np.ndarray, R: float, title: str) -> None:
    """Phases on the unit circle, and their mean as an arrow."""
    turn = np.linspace(0, 2 * np.pi, 181)
    axes.plot(np.cos(turn), np.sin(turn), color=figures.FAINT, lw=1)
    axes.plot(np.cos(theta_N), np.sin(theta_N), "o", color=COUPLED, ms=6, mew=0, alpha=0.7)
    mean = np.exp(1j * theta_N).mean()
    arrow = {"arrowstyle": "-|>", "lw": 2, "color": figures.INK, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (mean.real, mean.imag), (0, 0), arrowprops=arrow)
    axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    axes.set_title(title, loc="center")
    axes.set_xlabel(f"R = {R:.2f}", fontsize=11)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_worth(upper: Any, lower: Any, rows: list[dict[str, str]]) -> None:
    """R, and perplexity minus that of K = 0 with its interval, against the coupling budget."""

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name] or 0) for row in rows])  # K0 is its own reference

    budget, R = column("budget"), column("R")
    upper.plot(budget, R, "o-", color=COUPLED, label="as trained")
    free = "without coupling,\nthe same weights"
    upper.plot(budget, R - column("dR"), "o--", color=COUPLED, mfc="white", label=free)
    figures.level(upper, float(null_order_parameter(32)), "random phases")
    upper.set(ylim=(0, 1.05), ylabel="R", title="R follows the coupling")
    middle, low, high = column("off"), column("off_low"), column("off_high")
    figures.level(lower, 0.0, "K = 0")
    lower.errorbar(budget, middle, (middle - low, high - middle), fmt="o", color=COUPLED)
    lower.set(xlabel="coupling budget K S dt", ylabel="minus K = 0", ylim=(-0.5, 0.5))
    lower.set_title("perplexity, about 9.6, shows no gain")
    upper.set_xticklabels([])
    figures.label_ends(upper, lower)


def picture(run: Path) -> Figure:
    model = phasegpt.load(run)
    ids_BT = torch.tensor(model.tokenizer.encode(TEXT).astype(int))[None]
    (found,) = trace(model, ids_BT)[1]
    token, head = typical(found)
    with open(ROOT / "results/synchronization/table.csv", newline="") as file:
        table = {row["arm"]: row for row in csv.DictReader(file)}
    figure = figures.new(height=3.4, width=10)
    panels = figure.subplot_mosaic("aabbcccc;aabbdddd")
    steps = found.layer.oscillators.options.steps
    for name, s, when in (
        ("a", 0, "one token, before coupling"),
        ("b", -1, f"after {steps} steps"),
    ):
        theta_N = found.path_STHN[s, token, head].numpy()
        draw_circle(panels[name], theta_N, float(found.path_R_STH[s, token, head]), when)
    draw_worth(panels["c"], panels["d"], [table[arm] for arm in ARMS])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a trained quickstart")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/picture.png")
    args = parser.parse_args()
    check_output(args.out, "--out")
    with figures.house():
        figures.save(picture(args.run), args.out)
    print(args.out)


if __name__ == "__main__":
    guarded(main)
