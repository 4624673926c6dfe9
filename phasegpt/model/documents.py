"""Packed batches: rows of several documents, of which each gives what it gives alone.

A document is computed as a row of its own, by any mechanism as it stands: positions, attention,
prefix sums and phases begin with it. Documents of about one length run together; behind a shorter
one stand tokens that no causal layer lets it see, and their results are left out. For a model that
sees the future the lengths are the same.

Shapes: B batch, T time, R rows of a group, L their length, M documents, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from phasegpt.attention import Attention, Phase, ReturnPhase
from phasegpt.model.gpt import GPT
from phasegpt.phase import SHORTEST_PREFIX, prefix_order_parameter
from phasegpt.phase.steering import Perturbation, coherence

_SHORTEST = 16  # shorter documents are computed at this length


class Group(NamedTuple):
    """Documents that run together: where their tokens are in the packed batch, and what they gave.

    `length_R` is on the CPU: with a packing that is there too, nothing waits for a GPU.
    """

    place_RL: Tensor  # flat in [B T]
    length_R: Tensor
    phases: Mapping[int, Phase]  # by layer, [R,L,...]

    def chosen(self, first_R: Tensor | int = 0) -> Tensor:
        """The tokens of the documents from number `first_R` on, flat in [R L]."""
        number_L = torch.arange(self.place_RL.shape[1])
        first = torch.as_tensor(first_R).expand_as(self.length_R)[:, None]
        return ((first <= number_L) & (number_L < self.length_R[:, None])).flatten().nonzero()[:, 0]


class Packed(NamedTuple):
    """What GPT.forward returns, in the places of the packed batch, and the groups that ran."""

    logits: Tensor  # [B,T,V]
    phase: dict[int, Phase]  # [B,T,...]
    groups: list[Group]


def forward(
    model: GPT,
    idx_BT: Tensor,
    begins_BT: Tensor,
    *,
    perturbations: Mapping[int, Perturbation] | None = None,
    return_phase: ReturnPhase = False,
) -> Packed:
    """Predict the next token of every document of a packed batch.

    begins_BT: whether a token is the first of a document, bool; a row begins one in any case.
    For the others see GPT.forward; the noise of a document is that of its places in the row.
    """
    (B, T), device = idx_BT.shape, idx_BT.device
    exact = model.leaky or return_phase == "coupling"  # which looks at all tokens of a row
    groups, logits, places = [], [], []
    for place_RL, length_R in _grouped(begins_BT.cpu(), exact):
        here_RL = place_RL.to(device)
        out = model(
            idx_BT.flatten()[here_RL],
            perturbations=_of_rows(perturbations, here_RL, T),
            return_phase=return_phase,
        )
        groups.append(Group(here_RL, length_R, out.phase))
        places.append(place_RL.flatten()[groups[-1].chosen()])
        logits.append(out.logits)
    order = torch.cat(places).argsort().to(device)

    def packed(parts: list[Tensor]) -> Tensor:
        chosen = (
            part.flatten(0, 1)[group.chosen().to(device)]
            for group, part in zip(groups, parts, strict=True)
        )
        return torch.cat([*chosen])[order].unflatten(0, (B, T))

    phase = {
        layer: Phase(*(packed([group.phases[layer][i] for group in groups]) for i in range(2)))
        for layer in groups[0].phases
    }
    return Packed(packed(logits), phase, groups)


def order(attn: Attention, groups: Sequence[Group], layer: int, axis: str) -> Tensor:
    """R of a layer over `axis` (see coherence; coupled: what the layer couples), [M,...].

    At every token of every document, M of them; over a prefix where it is long enough to count.
    """
    found = []
    for group in groups:
        theta, first_R = group.phases[layer].theta, torch.tensor(0)
        if axis == "prefix" or (axis == "coupled" and attn.coupled_axis == "prefix"):
            first_R = group.length_R.clamp(max=SHORTEST_PREFIX) - 1
        if axis == "coupled":
            R = attn.order_parameter(theta)
        else:
            R = prefix_order_parameter(theta) if axis == "prefix" else coherence(theta, axis)
        found.append(R.flatten(0, 1)[group.chosen(first_R).to(theta.device)])
    return torch.cat(found)


def longest(idx_BT: Tensor, begins_BT: Tensor, rows: int) -> Tensor:
    """The longest documents of a packed batch, `rows` at most, cut to the shortest of them."""
    first_M, length_M = spans(begins_BT.to(idx_BT.device))
    length_R, chosen_R = length_M.topk(min(rows, len(length_M)))
    return idx_BT.flatten()[
        first_M[chosen_R][:, None] + torch.arange(int(length_R[-1]), device=idx_BT.device)
    ]


def spans(begins_BT: Tensor) -> tuple[Tensor, Tensor]:
    """First place, flat in [B T], and length of every document of a packed batch, [M]."""
    begins = begins_BT.clone()
    begins[:, 0] = True
    first_M = begins.flatten().nonzero().flatten()
    return first_M, first_M.diff(append=first_M.new_tensor([begins.numel()]))


def _grouped(begins_BT: Tensor, exact: bool) -> list[tuple[Tensor, Tensor]]:
    """Places [R,L] and lengths [R] of the documents that run together."""
    first_M, length_M = spans(begins_BT)
    T = begins_BT.shape[1]
    rounded_M = length_M
    if not exact:  # up to a power of two, so that there are few groups and little beside them
        powers = torch.exp2(torch.arange(32)).long()
        rounded_M = powers[torch.searchsorted(powers, length_M)].clamp(min(_SHORTEST, T), T)
    found = []
    for length in rounded_M.unique().tolist():
        mine = rounded_M == length
        place_RL = first_M[mine][:, None] + torch.arange(length)
        found.append((place_RL.clamp(max=begins_BT.numel() - 1), length_M[mine]))
    return found


def _of_rows(
    perturbations: Mapping[int, Perturbation] | None, place_RL: Tensor, T: int
) -> dict[int, Perturbation] | None:
    """The noise of a packed batch at the places of a group's rows."""
    if perturbations is None:
        return None
    chosen = {}
    for layer, (noise, jitter) in perturbations.items():
        if noise is not None:
            noise = noise.flatten(1, 2)[:, place_RL]
        if jitter is not None:
            jitter = jitter[place_RL[:, 0] // T]
        chosen[layer] = Perturbation(noise, jitter)
    return chosen
