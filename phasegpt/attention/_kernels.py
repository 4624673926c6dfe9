"""Attention by a kernel that is no exponential of a dot product, as a dense table.

Any positive kernel with rows that sum to 1 is a softmax of its logarithm,

    A_tu = kappa_tu / sum_u kappa_tu = softmax_u(log kappa_tu),

so 0 is a logarithm of -inf, and nothing overflows. The table of B H T U numbers is held whole, and
in training six to nine such tables for every layer. FlexAttention could spare them on a GPU; it
has no backward on CPUs, where no test would see it: there is one form for all devices.

Shapes: B batch, H heads, T queries, U keys, E width of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from phasegpt.core.errors import ConfigError

#: Bytes of one table on a CPU.
LARGEST_TABLE = 2**30


def causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """Which key a query sees, its own and those before: bool [T,U]; queries are the last T of U."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def normalized(log_kernel_BHTU: Tensor, seen: Tensor | None = None) -> Tensor:
    """A[B,H,T,U] from log kappa; `seen`, broadcastable to it, says what counts (None: all)."""
    if seen is not None:
        log_kernel_BHTU = log_kernel_BHTU.masked_fill(~seen, -torch.inf)
    return log_kernel_BHTU.softmax(-1)


def mixed(A_BHTU: Tensor, v_BHUE: Tensor, dropout: float = 0.0) -> Tensor:
    """sum_u A_tu v_u in the type of v, [B,H,T,E]; `dropout` leaves out weights, as softmax's."""
    return F.dropout(A_BHTU, dropout).to(v_BHUE.dtype) @ v_BHUE


def check_table(name: str, batch: int, heads: int, queries: int, keys: int, on: Tensor) -> None:
    """ConfigError where a table [B,H,T,U] on the CPU would have more than LARGEST_TABLE bytes."""
    if torch.compiler.is_compiling() or on.device.type != "cpu":
        return
    size = batch * heads * queries * keys * max(on.element_size(), 4)
    if size > LARGEST_TABLE:
        raise ConfigError(
            f"attention={name} holds tables of batch x heads x tokens^2, here {batch} x {heads} x "
            f"{queries} x {keys} or {size:,} bytes each, and on a CPU {LARGEST_TABLE:,} are "
            f"allowed; lower model.block_size or data.batch_size, or use a GPU"
        )
