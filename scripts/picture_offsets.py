"""Draw the picture of docs/synchronization.md: R can be moved for free.

    python scripts/picture_offsets.py

Phases of 256 tokens with 32 oscillators, drawn once, get a constant offset for each oscillator. R
is of a token's oscillators; the agreement of two tokens is what the logits of kuramoto see.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from phasegpt.cli import guarded
from phasegpt.core import figures
from phasegpt.core.files import check_output
from phasegpt.phase import null_order_parameter, order_parameter

ROOT = Path(__file__).resolve().parents[1]
TOKENS, N = 256, 32


def picture() -> Figure:
    draw = torch.Generator().manual_seed(0)
    theta_TN = 0.5 * torch.randn(TOKENS, N, generator=draw)
    offset_N = torch.randn(N, generator=draw)
    spread_P = torch.linspace(0, 3, 61)
    theta_PTN = theta_TN + spread_P[:, None, None] * offset_N
    R_P = order_parameter(theta_PTN, dim=-1).mean(-1)
    agreement_P = (theta_PTN[:, 1:] - theta_PTN[:, :-1]).cos().mean((1, 2))

    figure = figures.new(height=3.0)
    axes = figure.subplots()
    axes.plot(spread_P, R_P, color=figures.PLAIN[0], lw=2, label="R of a token")
    agreement = "agreement of two tokens:\nwhat a logit sees"
    axes.plot(spread_P, agreement_P, color=figures.PLAIN[1], lw=2, label=agreement)
    figures.level(axes, float(null_order_parameter(N)), "R of random phases")
    axes.set(xlabel="spread of the constant offsets, radians", ylim=(0, 1))
    figures.label_ends(axes)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/offsets.png")
    args = parser.parse_args()
    check_output(args.out, "--out")
    with figures.house():
        figures.save(picture(), args.out)
    print(args.out)


if __name__ == "__main__":
    guarded(main)
