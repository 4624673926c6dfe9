"""`ssa_as_published`: selective synchronisation as its code has it, made causal. A DEAD control.

A head has as many frequencies as it is wide, their distance is not scaled, and weights begin at
0.02. Then typical distances are 0.02 sqrt(2 E C), 6.3 at GPT-2's width, and none above 0.7 locks:
every token locks to itself alone, 1/T of all pairs at C >= 256, and no gradient reaches
frequencies, phases, alpha or K. Below that width some pairs lock.

Shapes: B batch, T time, D model width, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from phasegpt.attention import AttentionConfig, LayerShape
from phasegpt.attention.ssa import Ssa, SsaConfig
from phasegpt.core.sections import option


@dataclass(frozen=True, kw_only=True)
class SsaAsPublishedConfig(AttentionConfig):
    """Options of `ssa_as_published` (Hays, arXiv 2602.14445)."""

    locking: bool = option(True, "false: the off control A ~ J, see ssa")


class SsaAsPublished(Ssa):
    """`ssa` with the published sizes and start: frequency_dim=null scale=null init=gpt2.

    Source: Hays, arXiv 2602.14445, its code. Made causal as ssa is, without dropout's place in it,
    top-k, and embeddings times sqrt(C).
    """

    Config = SsaAsPublishedConfig
    dead = ("frequency.weight", "bandwidth", "oscillators.phase.weight", "oscillators.coupling")

    def __init__(self, config: LayerShape, options: SsaAsPublishedConfig, layer: int) -> None:
        """See Ssa."""
        published = SsaConfig(frequency_dim=None, scale=None, init="gpt2", locking=options.locking)
        super().__init__(config, published, layer)
