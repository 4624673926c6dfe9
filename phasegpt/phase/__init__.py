"""Circular statistics and diagnostics of synchrony: pure functions of phases in radians.

The axis is always named by an argument, and the docstring gives the null: what independent
uniform phases (or no coupling) would show. R alone proves nothing, since constant offsets per
oscillator move it without changing a logit. Beside it belong

- its gain by coupling, order_parameter(theta) - order_parameter(uncoupled_phases(theta0, ...));
- ppc, free of the bias by the number of phases;
- participation_ratio, whether the phases still tell tokens apart;
- offset_spread, the constant offsets themselves.

Shapes: B batch, T time, H heads, N oscillators.
"""

from phasegpt.phase.dynamics import (
    Band,
    band_statistics,
    chimera_index,
    cluster_count,
    coupling_budget,
    effective_frequency,
    locked_fraction,
    locking_clusters,
    metastability,
    phase_locking_values,
    susceptibility,
)
from phasegpt.phase.field import (
    attention_coherence,
    attention_energy,
    attention_force,
    attention_order_parameter,
    effective_keys,
    mean_field_force,
    permute_within_prefix,
    prefix_force,
    uncoupled_phases,
)
from phasegpt.phase.order import (
    SHORTEST_PREFIX,
    daido_harmonics,
    debias,
    first_prefix,
    mean_phase,
    null_band_fraction,
    null_order_parameter,
    null_order_parameter_quantile,
    null_order_parameter_variance,
    order_parameter,
    ppc,
    prefix_order_parameter,
    prefix_ppc,
    resultant_length,
)
from phasegpt.phase.spread import (
    loss_correlation,
    offset_spread,
    participation_ratio,
)

__all__ = [
    "SHORTEST_PREFIX",
    "Band",
    "attention_coherence",
    "attention_energy",
    "attention_force",
    "attention_order_parameter",
    "band_statistics",
    "chimera_index",
    "cluster_count",
    "coupling_budget",
    "daido_harmonics",
    "debias",
    "effective_frequency",
    "effective_keys",
    "first_prefix",
    "locked_fraction",
    "locking_clusters",
    "loss_correlation",
    "mean_field_force",
    "mean_phase",
    "metastability",
    "null_band_fraction",
    "null_order_parameter",
    "null_order_parameter_quantile",
    "null_order_parameter_variance",
    "offset_spread",
    "order_parameter",
    "participation_ratio",
    "permute_within_prefix",
    "phase_locking_values",
    "ppc",
    "prefix_force",
    "prefix_order_parameter",
    "prefix_ppc",
    "resultant_length",
    "susceptibility",
    "uncoupled_phases",
]
