"""Batches with padding, and their decode cache: no row feels its padding, whatever the mechanism.

Tokens that an attention_mask leaves out are not computed at all. Rows whose masks are alike form
a group that runs as a batch of its own with a Cache of its own, so that positions, prefix sums and
phases of a row are those of the row alone; a batch without padding is one group.

Shapes: B batch, T new time, L time so far (with padding), V words, R rows of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from phasegpt.attention._cache import Cache
from phasegpt.core.errors import ConfigError
from phasegpt.model.gpt import GPT


class _Group(NamedTuple):
    rows_R: Tensor  # which rows of the batch
    cache: Cache


class PaddedCache:
    """Decode cache of a batch under Hugging Face's names; one Cache per group of rows."""

    #: Hugging Face asks: not for torch.compile with static shapes.
    is_compileable = False

    def __init__(self, model: GPT) -> None:
        """Start empty; ConfigError for a model that sees the future."""
        self._new = model.new_cache
        self._new()  # refuses such a model
        self.mask_BL: Tensor | None = None
        self._groups: list[_Group] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far, with padding."""
        return 0 if self.mask_BL is None else self.mask_BL.shape[1]

    def activate_past_recording(self) -> None:
        """Nothing: what can be cropped can be at any time."""

    def extended(self, mask_BL: Tensor) -> list[_Group]:
        """The groups of rows under a mask that is longer than the one before; `keep` keeps them."""
        before, cached = self.get_seq_length(), self._groups
        past = self.mask_BL
        if past is not None and not torch.equal(mask_BL[:, :before], past.to(mask_BL.device)):
            raise ConfigError(
                f"attention_mask says another thing of the {before} tokens that past_key_values "
                f"holds than when they came; give the same mask with ones behind it"
            )
        groups = []
        for rows_R in _alike(mask_BL):
            if not cached:
                groups.append(_Group(rows_R, self._new()))
            for old in cached:
                mine = rows_R[torch.isin(rows_R, old.rows_R)]
                if torch.equal(mine, old.rows_R):
                    groups.append(old)
                elif len(mine):
                    places = torch.searchsorted(old.rows_R, mine)
                    groups.append(_Group(mine, old.cache.select(places)))
        return groups

    def keep(self, mask_BL: Tensor, groups: list[_Group]) -> None:
        """What the model has read: these groups, under this mask."""
        self.mask_BL, self._groups = mask_BL, groups

    def crop(self, length: int) -> None:
        """Forget all but the first `length` columns, or the last -length; 0 leaves all.

        As Hugging Face's caches do. ConfigError for running sums.
        """
        if self.mask_BL is None or not length:
            return
        mask_BL = self.mask_BL[:, :length]
        for group in self._groups:  # of one model: all can be cropped, or the first says no
            group.cache.crop(int(mask_BL[group.rows_R[0]].sum()))
        self.mask_BL = mask_BL

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row i becomes what row indices[i] was."""
        if self.mask_BL is None:
            return
        self.mask_BL = self.mask_BL[indices]
        groups = []
        for old in self._groups:
            rows_R = torch.isin(indices, old.rows_R).nonzero().flatten()
            if len(rows_R):
                places = torch.searchsorted(old.rows_R, indices[rows_R])
                groups.append(_Group(rows_R, old.cache.select(places)))
        self._groups = groups

    #: What beam search calls it.
    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one after the other."""
        if self.mask_BL is not None:
            rows = torch.arange(len(self.mask_BL), device=self.mask_BL.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))


def padded_logits(
    model: GPT,
    idx_BT: Tensor,
    mask: Tensor | None = None,
    cache: PaddedCache | None = None,
) -> Tensor:
    """Logits[B,T,V] of new tokens under an attention_mask; those of padding are 0 or mean nothing.

    mask: 1 for a token and 0 for padding anywhere in a row, [B,T], or [B,L+T] where `cache`, which
    is extended, holds L before. None: all are tokens. Raises ConfigError.
    """
    (B, T), device = idx_BT.shape, idx_BT.device
    before = 0 if cache is None else cache.get_seq_length()
    past = None if cache is None else cache.mask_BL
    if past is not None and len(past) != B:
        raise ConfigError(f"past_key_values holds {len(past)} rows, input_ids {B}; give as many")
    if mask is None or tuple(mask.shape) == (B, T):
        new = torch.ones(B, T, dtype=torch.bool, device=device) if mask is None else mask.bool()
        mask_BL = new if past is None else torch.cat((past.to(device), new), dim=1)
    elif tuple(mask.shape) == (B, before + T):
        mask_BL = mask.bool()
    else:
        raise ConfigError(
            f"attention_mask has the shape {list(mask.shape)}; give [rows, tokens], here "
            f"{[B, before + T]}: 1 for a token, 0 for padding"
        )
    if cache is None and not bool(mask_BL.any()):
        raise ConfigError("attention_mask is 0 everywhere; a batch needs a token")
    groups: list[tuple[Tensor, Cache | None]]
    kept: list[_Group] = []
    if cache is None:
        if not model.leaky:  # what stands behind a row's tokens changes nothing of theirs
            behind_BL = mask_BL.flip(1).cumsum(1).flip(1) == 0
            used = int((~behind_BL).any(0).sum())  # columns behind all rows are not computed
            room = mask_BL.sum(1, keepdim=True) + behind_BL.cumsum(1) <= model.config.block_size
            behind_BL[:, used:] = False
            mask_BL = mask_BL | (behind_BL & room)
        groups = [(rows_R, None) for rows_R in _alike(mask_BL)]
    else:
        kept = cache.extended(mask_BL)
        groups = [*kept]
    mask_BT = mask_BL[:, before:]
    for rows_R, own in groups:  # before any of them is extended
        size = int(mask_BT[rows_R[0]].sum()) + (0 if own is None else own.length)
        if size > model.config.block_size:
            raise ConfigError(
                f"cannot attend to {size} tokens: model.block_size is {model.config.block_size}"
            )
    if len(groups) == 1 and bool(mask_BT.all()):
        logits = model(idx_BT, cache=groups[0][1]).logits
        if cache is not None:
            cache.keep(mask_BL, kept)
        return logits
    logits_BTV = None
    for rows_R, own in groups:
        columns = mask_BT[rows_R[0]].nonzero().flatten()
        if not len(columns):
            continue
        logits = model(idx_BT[rows_R][:, columns], cache=own).logits
        if logits_BTV is None:
            logits_BTV = logits.new_zeros(B, T, logits.shape[-1])
        logits_BTV = logits_BTV.index_put((rows_R[:, None], columns[None]), logits)
    if logits_BTV is None:
        if not bool(mask_BL.any()):
            raise ConfigError("attention_mask is 0 everywhere; a batch needs a token")
        logits_BTV = model.lm_head.weight.new_zeros(B, T, model.config.vocab_size)
    if cache is not None:
        cache.keep(mask_BL, kept)
    return logits_BTV


def _alike(mask_BL: Tensor) -> list[Tensor]:
    """The rows of each distinct mask, in rising order."""
    if bool((mask_BL == mask_BL[:1]).all()):
        return [torch.arange(len(mask_BL), device=mask_BL.device)]
    kinds, kind_B = torch.unique(mask_BL, dim=0, return_inverse=True)
    return [(kind_B == kind).nonzero().flatten() for kind in range(len(kinds))]
