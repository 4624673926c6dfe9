"""Memory and communication of DDP and FSDP for GPT-2's sizes: the table of docs/scaling.md.

    python scripts/scaling_table.py            write it into the page
    python scripts/scaling_table.py --check    exit 1 if the page has another one

From formulas alone; nothing here was measured. P counts parameters, all of them in float32, and
bf16-mixed multiplies in copies of them. A GB is 10^9 bytes. Activations come on top.
"""

import sys
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- scripts/scaling_table.py writes from here -->\n", "<!-- to here -->\n"
PROCESSES = (1, 2, 4, 8, 16, 32, 64)


class Size(NamedTuple):
    """A GPT-2: L blocks of width D, a vocabulary of V, contexts of C tokens."""

    name: str
    L: int
    D: int
    V: int = 50_257
    C: int = 1024

    @property
    def block(self) -> int:
        """Parameters of a block: attention 4 D^2 + 4 D, MLP 8 D^2 + 5 D, two layer norms 4 D."""
        return 12 * self.D**2 + 13 * self.D

    @property
    def root(self) -> int:
        """Those outside of blocks: V D (tied to the head), C D, and the last layer norm."""
        return (self.V + self.C + 2) * self.D

    @property
    def P(self) -> int:
        """All of them."""
        return self.L * self.block + self.root


SIZES = (
    Size("small", 12, 768),
    Size("medium", 24, 1024),
    Size("large", 36, 1280),
    Size("XL", 48, 1600),
)


def ddp_bytes(size: Size, N: int) -> float:
    """Weights 4, gradients 4, AdamW 8, bf16 copies 2; from two processes on DDP's buckets 4."""
    return (18 if N == 1 else 22) * size.P


def fsdp_bytes(size: Size, N: int) -> float:
    """1/N of weights, gradients and AdamW, and what is whole for a while.

    That is the root with its gradient (8) and bf16 copy (2), two blocks (8), one of which is
    computed and one on its way, the gradient of one (4) and its bf16 copy (2). With
    activation_checkpointing; without it bf16 copies of all blocks stay for the backward pass.
    """
    return 16 * size.P / N + 10 * size.root + 14 * size.block


def ddp_sent(size: Size, N: int) -> float:
    """A process sends 2 (N - 1) / N of the gradients once per optimizer step (a ring)."""
    return 2 * (N - 1) / N * 4 * size.P


def fsdp_sent(size: Size, N: int, A: int = 1) -> float:
    """(N - 1) / N of the blocks twice and the root once per micro-batch, the gradients per step."""
    return (N - 1) / N * 4 * (A * (2 * size.L * size.block + size.root) + size.P)


def table() -> str:
    """In Markdown."""
    head = "P, millions | processes | ddp, GB each | fsdp, GB each | ddp, GB sent | fsdp, GB sent"
    lines = [f"| GPT-2 | {head} |", "|---|---|---|---|---|---|---|"]
    for size in SIZES:
        for N in PROCESSES:
            fsdp = (fsdp_bytes(size, N), fsdp_sent(size, N)) if N > 1 else (None, None)
            cells = [ddp_bytes(size, N), fsdp[0], ddp_sent(size, N), fsdp[1]]
            shown = ["" if x is None else f"{x / 1e9:.2f}" for x in cells]
            lines.append(f"| {size.name} | {size.P / 1e6:.1f} | {N} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The page with the table of today."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail


if __name__ == "__main__":
    before = PAGE.read_text()
    if "--check" in sys.argv:
        sys.exit(before != written(before))
    PAGE.write_text(written(before))
