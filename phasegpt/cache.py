"""Decode cache: what each layer must remember of the tokens before.

A layer stores keys and values through `update(k, v) -> (K, V)` (Hugging Face's layer contract),
or a fixed-size `state` (running sums), or both; a layer made of layers uses `child`.

Shapes: B batch, T time, H heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LayerCache:
    """Memory of one attention layer. `length` counts the tokens it has seen."""

    def __init__(self) -> None:
        """Start empty."""
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.state: Any = None
        self.length = 0
        self._children: dict[str, LayerCache] = {}

    def update(self, k_BHTE: Tensor, v_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values along time; return all of them."""
        if self.keys is None or self.values is None:
            self.keys, self.values = k_BHTE, v_BHTE
        else:
            self.keys = torch.cat((self.keys, k_BHTE), dim=2)
            self.values = torch.cat((self.values, v_BHTE), dim=2)
        self.length = self.keys.shape[2]
        return self.keys, self.values

    def child(self, name: str) -> LayerCache:
        """The memory of a part of this layer, made on first use."""
        return self._children.setdefault(name, LayerCache())


class Cache:
    """Memory of a whole model: one LayerCache per block, and the number of tokens seen."""

    def __init__(self, n_layer: int) -> None:
        """Start empty for a model of `n_layer` blocks."""
        self.layers = [LayerCache() for _ in range(n_layer)]
        self.length = 0
