"""Decode cache: what each layer must remember of the tokens before, and how it is edited.

A layer stores keys and values through `update(k, v) -> (K, V)` (Hugging Face's layer contract),
or angles that stand for both through `append(theta) -> every theta`, or a fixed-size `state`
(running sums); a layer made of layers uses `child`. What is stored lives in buffers that double
when they are full; `keys`, `values` and `phases` are views, so writing to them edits the memory.
`Cache` answers Hugging Face's models as their own caches do.

Rows: `split` puts a copy of every row behind the B clean ones, [0:B] clean and [B:2B] copies;
both then see the same new tokens, the copies may be edited, and `commit` makes them clean again.

Shapes: R rows (B, or 2B when split), T time, H heads, E head width, N oscillators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.phase import resultant_length
from phasegpt.phase.polar import modulus

_MIN_ROOM = 64


class LayerCache:
    """Memory of one attention layer. `length` counts the tokens it has seen."""

    def __init__(self) -> None:
        """Start empty."""
        self._buffers: tuple[Tensor, ...] | None = None  # keys and values, or angles alone
        #: Running sums: a NamedTuple whose tensors of three axes hold the rows on the second.
        self.state: Any = None
        self.length = 0
        self._stored = 0  # tokens whose keys and values are held
        #: N where there are phases: cos and sin of a token's N phases are the last 2N entries of
        #: each of its keys, or the keys are the N phases, or the state's channels are H x N.
        self.oscillators = 0
        #: Whether stored phases are coupled over the prefix, so that R is over it.
        self.over_prefix = False
        #: Called by `update` and `append` when the new tokens are in and before they are read.
        self.edit: Callable[[LayerCache], None] | None = None
        self._children: dict[str, LayerCache] = {}

    @property
    def keys(self) -> Tensor | None:
        """Keys or angles of the tokens so far, [R,H,T,E], a view; None before the first update."""
        return None if self._buffers is None else self._buffers[0][:, :, : self._stored]

    @property
    def values(self) -> Tensor | None:
        """Values of the tokens so far, [R,H,T,E], a view; None without, and for angles."""
        if self._buffers is None or self.angles or not self._buffers[1].shape[-1]:
            return None
        return self._buffers[1][:, :, : self._stored]

    @property
    def angles(self) -> bool:
        """Whether `phases` are angles, [R,H,T,N], radians; else their cosines and sines."""
        return self._buffers is not None and len(self._buffers) == 1

    @property
    def phases(self) -> Tensor | None:
        """Of the tokens so far (cos theta, sin theta), [R,H,T,2N], or `angles`; a view.

        None without phases.
        """
        keys = self.keys
        if keys is None or self.angles:
            return keys
        if not self.oscillators or self.state is not None:
            return None
        return keys[..., -2 * self.oscillators :]

    def order_parameter(self) -> Tensor | None:
        """Attention.order_parameter at the newest token from what is stored of it, [R,H].

        Of prefixes the mean over a head's channels, and of the phases before the last step: what
        is stored are those that pull. None where no phases are stored.
        """
        if self.phases is not None:
            phases = self.phases if self.over_prefix else self.phases[:, :, -1:]
            cos, sin = (phases.cos(), phases.sin()) if self.angles else phases.chunk(2, dim=-1)
            if self.over_prefix:
                return modulus(cos.float().mean(2), sin.float().mean(2)).mean(-1)
            return resultant_length(cos[:, :, 0], sin[:, :, 0])
        if self.state is None or not self.oscillators or not len(self.state.cos_SBC):
            return None
        cos, sin = self.state.cos_SBC[-1], self.state.sin_SBC[-1]
        R_RC = modulus(cos, sin) / self.state.weight_C
        return R_RC.unflatten(-1, (-1, self.oscillators)).mean(dim=-1)

    def update(
        self, k_RHTE: Tensor, v_RHTE: Tensor | None = None, *_: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values along time, or keys alone; return all of them."""
        keys, values = self._append(k_RHTE, k_RHTE[..., :0] if v_RHTE is None else v_RHTE)
        return keys, values

    def append(self, theta_RHTN: Tensor) -> Tensor:
        """Append the phases of new tokens, which stand for keys and values; return all of them."""
        self.oscillators = theta_RHTN.shape[-1]
        (theta,) = self._append(theta_RHTN)
        return theta

    def _append(self, *new: Tensor) -> tuple[Tensor, ...]:
        start, end = self._stored, self._stored + new[0].shape[2]
        old: tuple[Tensor | None, ...] = self._buffers or (None,) * len(new)
        if len(old) != len(new) or not all(map(_fits, old, new)):
            assert old[0] is not None
            raise ConfigError(
                f"the cache holds {_what(old[0])}, and {_what(new[0])} came; go on with the rows "
                f"and the model that filled it, choose rows by select(), or take an empty cache"
            )
        grown = tuple(_with_room(b, x, start, end) for b, x in zip(old, new, strict=True))
        for buffer, x in zip(grown, new, strict=True):
            buffer[:, :, start:end] = x
        self._buffers, self._stored = grown, end
        self.length += end - start
        if self.edit is not None:
            self.edit(self)
        return tuple(buffer[:, :, :end] for buffer in grown)

    def child(self, name: str) -> LayerCache:
        """The memory of a part of this layer, made on first use."""
        return self._children.setdefault(name, LayerCache())

    def parts(self) -> Iterator[LayerCache]:
        """This memory and those of its parts."""
        yield self
        for child in self._children.values():
            yield from child.parts()

    @property
    def nbytes(self) -> int:
        """Bytes of what is remembered, with its parts; not the room that buffers keep for more."""
        mine = [b[:, :, : self._stored] for b in self._buffers or ()]
        mine += [x for x in self.state or () if isinstance(x, Tensor)]
        return sum(x.nbytes for x in mine) + sum(c.nbytes for c in self._children.values())

    def _split(self) -> None:
        if self._buffers is not None:
            self._buffers = tuple(torch.cat((b, b)) for b in self._buffers)
        self.state = _on_rows(self.state, lambda x: torch.cat((x, x), dim=1))

    def _commit(self, window: int) -> None:
        if self._buffers is not None:
            last = slice(max(0, self._stored - (window if self.edit else 1)), self._stored)
            for buffer in self._buffers:
                B = len(buffer) // 2
                buffer[B:, :, last] = buffer[:B, :, last]
        self.state = _on_rows(self.state, lambda x: x[:, : x.shape[1] // 2].repeat(1, 2, 1))

    def _select(self, rows_R: Tensor) -> LayerCache:
        chosen = LayerCache()
        if self._buffers is not None:
            chosen._buffers = tuple(b[rows_R] for b in self._buffers)
        chosen.state = _on_rows(self.state, lambda x: x[:, rows_R])
        chosen.length, chosen._stored = self.length, self._stored
        chosen.oscillators, chosen.over_prefix = self.oscillators, self.over_prefix
        chosen._children = {name: c._select(rows_R) for name, c in self._children.items()}
        return chosen

    def _check_crop(self, length: int) -> None:
        if self.state is not None and length < self.length:
            raise ConfigError(
                f"a memory of running sums cannot be cropped from {self.length} to {length} "
                f"tokens: what it has added cannot be taken out; start from an empty cache"
            )

    def _crop(self, length: int) -> None:
        self.length = min(self.length, length)
        self._stored = min(self._stored, length)


class Cache:
    """Memory of a whole model: one LayerCache per block."""

    #: Hugging Face asks: not for torch.compile with static shapes.
    is_compileable = False

    def __init__(self, n_layer: int) -> None:
        """Start empty for a model of `n_layer` blocks."""
        self.layers = [LayerCache() for _ in range(n_layer)]
        #: The first block that computes copies; None: not split.
        self.split_at: int | None = None

    @classmethod
    def holding(cls, layers: Iterable[tuple[Tensor, Tensor]]) -> Cache:
        """A cache with the given keys and values, [B,H,T,E] each, layer by layer."""
        pairs = list(layers)
        cache = cls(len(pairs))
        for layer, pair in zip(cache.layers, pairs, strict=True):
            layer.update(*pair)
        return cache

    @property
    def length(self) -> int:
        """Tokens seen."""
        return max(part.length for part in self.layers[0].parts())

    @property
    def nbytes(self) -> int:
        """Bytes of what is remembered of all rows, in all blocks."""
        return sum(layer.nbytes for layer in self.layers)

    def parts(self, layer: int) -> list[LayerCache]:
        """The memories of block `layer`: its own and those of its parts."""
        return list(self.layers[layer].parts())

    def split(self, at: int = 0) -> None:
        """Copy every row of block `at` and all later ones; the blocks below stay at B rows."""
        self.split_at = at
        for layer in range(at, len(self.layers)):
            for part in self.parts(layer):
                part._split()

    def expand(self, layer: int, x_BTD: Tensor) -> Tensor:
        """The input of block `layer`: [2B,T,D], rows and their copies, where the split begins."""
        return torch.cat((x_BTD, x_BTD)) if layer == self.split_at else x_BTD

    def commit(self, window: int = 1) -> None:
        """Make the copies clean again: the newest token, and `window` tokens of edited layers.

        So between steps a copy equals its clean row bit for bit, if no edit reached further back.
        """
        if self.split_at is not None:
            for layer in range(self.split_at, len(self.layers)):
                for part in self.parts(layer):
                    part._commit(window)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens, or the last -length of them.

        ConfigError for running sums; the cache is then as it was.
        """
        length = max(0, self.length + length) if length < 0 else length
        parts = [part for layer in self.layers for part in layer.parts()]
        for part in parts:
            part._check_crop(length)
        for part in parts:
            part._crop(length)

    def select(self, rows_R: Tensor) -> Cache:
        """A cache of its own whose row i is row rows_R[i] of this one; this one stays as it is."""
        if self.split_at is not None:
            raise ConfigError("rows of a split cache belong together; select them before the split")
        chosen = Cache(len(self.layers))
        chosen.layers = [layer._select(rows_R) for layer in self.layers]
        return chosen

    # Hugging Face's contract of a whole cache.

    def update(self, k_RHTE: Tensor, v_RHTE: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """See LayerCache.update."""
        return self.layers[layer].update(k_RHTE, v_RHTE)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that block `layer_idx` has seen."""
        return self.layers[layer_idx].length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the next token."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(keys that the next query_length tokens see, position of the first)."""
        return self.get_seq_length(layer_idx) + query_length, 0

    @property
    def is_sliding(self) -> list[bool]:
        """No layer forgets."""
        return [False] * len(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def _fits(buffer: Tensor | None, new_RHTE: Tensor) -> bool:
    """Whether new tokens belong behind those of a buffer: nothing is broadcast or rounded."""
    if buffer is None:
        return True
    same = buffer.shape[:2] == new_RHTE.shape[:2] and buffer.shape[3] == new_RHTE.shape[3]
    return same and buffer.dtype == new_RHTE.dtype and buffer.device == new_RHTE.device


def _what(x_RHTE: Tensor) -> str:
    R, H, _, E = x_RHTE.shape
    return f"keys of {R} rows, {H} heads and width {E} in {x_RHTE.dtype} on {x_RHTE.device}"


def _with_room(buffer: Tensor | None, new_RHTE: Tensor, used: int, needed: int) -> Tensor:
    """`buffer`, or one of twice the size with its first `used` tokens, so that `needed` fit."""
    if buffer is not None and needed <= buffer.shape[2]:
        return buffer
    R, H, _, E = new_RHTE.shape
    grown = new_RHTE.new_empty(R, H, max(_MIN_ROOM, 2 * needed), E)
    if buffer is not None:
        grown[:, :, :used] = buffer[:, :, :used]
    return grown


def _on_rows(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state with `change` applied to each of its tensors that has rows."""
    if state is None:
        return None
    return type(state)(*(change(x) if x.dim() == 3 else x for x in state))
