"""Draw the picture of docs/synchronization.md: R can be moved for free.

    python scripts/picture_offsets.py

Phases of 256 tokens with 32 oscillators, drawn once, get a constant offset for each oscillator. R
is of a token's oscillators; the agreement of two tokens is what the logits of kuramoto see.
"""

import argparse
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from phasegpt.cli import guarded
from phasegpt.core.files import check_output
from phasegpt.phase import null_order_parameter, order_parameter

ROOT = Path(__file__).resolve().parents[1]
TOKENS, N = 256, 32
R_COLOUR, AGREEMENT, NULL = "#0072b2", "#009e73", "#d55e00"  # apart for colour-blind readers too


def picture() -> Figure:
    draw = torch.Generator().manual_seed(0)
    theta_TN = 0.5 * torch.randn(TOKENS, N, generator=draw)
    offset_N = torch.randn(N, generator=draw)
    spread_P = torch.linspace(0, 3, 61)
    theta_PTN = theta_TN + spread_P[:, None, None] * offset_N
    R_P = order_parameter(theta_PTN, dim=-1).mean(-1)
    agreement_P = (theta_PTN[:, 1:] - theta_PTN[:, :-1]).cos().mean((1, 2))

    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(spread_P, R_P, color=R_COLOUR, lw=2)
    axes.plot(spread_P, agreement_P, color=AGREEMENT, lw=2)
    null = float(null_order_parameter(N))
    axes.axhline(null, color=NULL, lw=1, ls="--")
    axes.text(0.1, 0.93, "R of a token", color=R_COLOUR)
    right = {"x": 3, "ha": "right"}
    above = float(agreement_P[-1]) + 0.03
    axes.text(y=above, s="agreement of two tokens: what a logit sees", color=AGREEMENT, **right)
    axes.text(y=null - 0.07, s="R of random phases", color=NULL, **right)
    axes.set(xlabel="spread of the constant offsets, radians", ylim=(0, 1.05), xlim=(0, 3.02))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/offsets.png")
    args = parser.parse_args()
    check_output(args.out, "--out")
    with rc_context({"font.size": 9}):
        picture().savefig(args.out, dpi=110, metadata={"Software": None})
    print(args.out)


if __name__ == "__main__":
    guarded(main)
