"""Draw the picture of docs/mechanisms: phases of fresh layers before and after coupling.

    python scripts/picture_mechanisms.py

Each panel is one layer with seed 0 on the same 48 inputs. Where tokens couple, the points are the
tokens of one channel; in kuramoto the oscillators of one token. Open: before; filled: after.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from phasegpt.attention import Trajectory
from phasegpt.cli import guarded
from phasegpt.core import figures
from phasegpt.core.files import check_output
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT

ROOT = Path(__file__).resolve().parents[1]
TOKENS, WIDTH, HEADS = 48, 64, 4
#: Options beside the defaults; kope's own step of 0.05 is too short to see.
PANELS: dict[str, dict[str, Any]] = {
    "kuramoto": {},
    "phase_sync": {},
    "torus": {},
    "fsn": {},
    "kope": {"coupling": 0.5},
    "lohe": {"group": 2},
}


def coupled(name: str, options: dict[str, Any], x_BTD: Tensor) -> Trajectory:
    """The path of the phases of a fresh layer, or for kope of the second one."""
    config = GPTConfig(
        n_layer=2, n_head=HEADS, n_embd=WIDTH, block_size=TOKENS, vocab_size=8, dropout=0.0,
        attention=name, attention_layers=(0, 1), attention_options=options,  # type: ignore[arg-type]
    )  # fmt: skip
    model = GPT(config, seed=0).eval()
    layers: list[Any] = [block.attn for block in model.blocks]
    if model.link is not None:  # the second layer takes the step
        carry = model.link(x_BTD, layers[0](x_BTD).carry)
        found = layers[1].trajectory(x_BTD, carry=carry)
    else:
        found = layers[0].trajectory(x_BTD)
    assert found is not None  # every one of PANELS has phases
    return found


def picture() -> Figure:
    draw = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(1, TOKENS, WIDTH, generator=draw)
    x_BTD += torch.randn(1, 1, WIDTH, generator=draw)  # tokens have something in common
    x_BTD = torch.nn.functional.layer_norm(x_BTD, (WIDTH,))
    figure = figures.new(height=5.2)
    for axes, (name, options) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        with torch.no_grad():
            path = coupled(name, options, x_BTD)
        one = (0, slice(None), 0, 0) if path.over_prefix else (0, -1, 0, slice(None))
        for theta, radius, style in (
            (path.theta0[one], 1.0, {"color": "none", "edgecolors": figures.SOFT}),
            (path.theta[one], 0.8, {"color": figures.colour(name)}),
        ):
            axes.scatter(radius * theta.cos(), radius * theta.sin(), s=14, **style)
        R = [torch.exp(1j * theta[one]).mean().abs().item() for theta in (path.theta0, path.theta)]
        title = ", ".join([name, *(f"{key} = {value}" for key, value in options.items())])
        axes.set_title(title, loc="center")
        points = "tokens" if path.over_prefix else "oscillators"
        axes.text(0, 0, f"{points}\nR {R[0]:.2f} to {R[1]:.2f}", ha="center", va="center")
        axes.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), aspect="equal")
        axes.axis("off")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/mechanisms/phases.png")
    args = parser.parse_args()
    check_output(args.out, "--out")
    with figures.house():
        figures.save(picture(), args.out)
    print(args.out)


if __name__ == "__main__":
    guarded(main)
