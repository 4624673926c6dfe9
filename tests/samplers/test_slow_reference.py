"""The slipped logits equal a slow reference: one row at a time, no shared layers, other formulas.

Rotations are made here by loops and sums for geodesic, the exponential of a
generator for plane, the angles of the eigenplanes for cayley, angles and complex numbers for
phases. Only the noise is the same.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from phasegpt.core.randomness import keyed_generator
from phasegpt.samplers import PhaseSlip, decode

ANGLE, WINDOW, PROMPT = 0.9, 12, 5
HEADS = [(1, 0), (2, 0), (2, 1)]


def geodesic(v_WE: Tensor, noise: Tensor) -> Tensor:
    turned = []
    for back, x in enumerate(reversed(v_WE.double())):
        w = noise[-1 - back].double()
        w = w - x * (w @ x) / (x @ x)
        turned.append(x * math.cos(ANGLE) + w * x.norm() / w.norm() * math.sin(ANGLE))
    return torch.stack(turned[::-1])


def plane(v_WE: Tensor, noise: Tensor) -> Tensor:
    x, y = torch.linalg.qr(noise)[0].double().unbind(-1)
    generator = torch.outer(y, x) - torch.outer(x, y)
    return v_WE.double() @ torch.linalg.matrix_exp(ANGLE * generator).T


def cayley(v_WE: Tensor, noise: Tensor) -> Tensor:
    E = v_WE.shape[-1]
    skew = (noise - noise.T).double() / math.sqrt(2 * (E - 1))
    frequencies, basis = torch.linalg.eigh(-1j * skew.to(torch.complex128))  # real, in pairs
    turns = torch.exp(2j * torch.atan(math.tan(ANGLE / 2) * frequencies))
    return v_WE.double() @ (basis @ torch.diag(turns) @ basis.mH).real.T


ROTATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[int], tuple[int, ...]]]]
ROTATIONS = {
    "geodesic": (geodesic, lambda E: (WINDOW, E)),
    "plane": (plane, lambda E: (E, 2)),
    "cayley": (cayley, lambda E: (E, E)),
}


def turned_values(model: Any, ids_T: Tensor, seed: int, rotation: str) -> Tensor:
    """Logits[T - PROMPT, V] of the slipped path of a Hugging Face model."""
    from transformers import DynamicCache

    turn, shape = ROTATIONS[rotation]

    class Turned(DynamicCache):
        def update(self, k: Tensor, v: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(k, v, layer, *rest)
            heads = [h for at, h in HEADS if at == layer]
            if not heads:
                return keys, values
            given = torch.randn(len(heads), *shape(v.shape[-1]), generator=generator)
            values = values.clone()
            for h, noise in zip(heads, given, strict=True):
                values[0, h, -WINDOW:] = turn(values[0, h, -WINDOW:], noise).float()
            return keys, values

    generator, found = keyed_generator("slip", seed), []
    clean = DynamicCache()
    model(ids_T[None, :PROMPT], past_key_values=clean)
    for t in range(PROMPT, len(ids_T)):
        other = Turned()
        for i, layer in enumerate(copy.deepcopy(clean).layers):
            DynamicCache.update(other, layer.keys, layer.values, i)
        found.append(model(ids_T[None, t : t + 1], past_key_values=other).logits[0, -1])
        model(ids_T[None, t : t + 1], past_key_values=clean)
    return torch.stack(found)


def slipped_phases(model: Any, ids_T: Tensor, seed: int, heads: list) -> Tensor:
    """The same for phases of a model of ours, whose memory is copied before every token."""

    def slip_keys(part: Any, heads: list[int]) -> None:
        N = part.oscillators
        given = torch.randn(len(heads), WINDOW, N, generator=generator)
        end = part.keys.shape[2]
        for h, noise in zip(heads, given, strict=True):
            for j in range(max(0, end - WINDOW), end):
                cos, sin = part.keys[0, h, j, -2 * N : -N], part.keys[0, h, j, -N:]
                theta = torch.atan2(sin, cos) + ANGLE * noise[j - end].sign()
                part.keys[0, h, j, -2 * N :] = torch.cat((theta.cos(), theta.sin()))

    def slip_sums(part: Any, heads: list[int]) -> None:
        N = part.oscillators
        z = torch.complex(part.state.cos_SBC, part.state.sin_SBC)
        given = torch.randn(len(heads), N, generator=generator)
        for h, noise in zip(heads, given, strict=True):
            z[:, :, h * N : (h + 1) * N] *= torch.exp(1j * ANGLE * noise.sign())
        part.state = part.state._replace(cos_SBC=z.real.clone(), sin_SBC=z.imag.clone())

    generator, found = keyed_generator("slip", seed), []
    cache = model.new_cache()
    model(ids_T[None, :PROMPT], cache=cache)
    for t in range(PROMPT, len(ids_T)):
        other = copy.deepcopy(cache)
        for layer in sorted({at for at, _ in heads}):
            chosen = [h for at, h in heads if at == layer]
            for part in other.parts(layer):
                if part.phases is not None:
                    part.edit = lambda part, chosen=chosen: slip_keys(part, chosen)
                elif part.state is not None:
                    slip_sums(part, chosen)
        found.append(model(ids_T[None, t : t + 1], cache=other).logits[0, -1])
        model(ids_T[None, t : t + 1], cache=cache)
    return torch.stack(found)


def compare(model: Any, prompt_BT: Tensor, slip: PhaseSlip, slow: Callable) -> None:
    logits: list[Tensor] = []

    def keep(ids: Tensor | None, x: Tensor) -> Tensor:
        logits.append(x.clone())
        return x

    seeds = [7, 8]
    out = decode(model, prompt_BT, max_new_tokens=30, seeds=seeds, chain=[keep], intervention=slip)
    for row, seed in enumerate(seeds):
        with torch.no_grad():
            expected = slow(model, out[row, :-1], seed)
        found = torch.stack([x[row] for x in logits[1:]])
        assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(found.abs().max()))
        assert torch.stack([s.kl[row] for s in slip.trace]).mean() > 1e-6  # there is a slip to see


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_rotated_values(kind: str, rotation: str, hf: Callable, ids: Callable) -> None:
    slip = PhaseSlip(HEADS, angle=ANGLE, anchor=0.0, gate=None, rotation=rotation)
    compare(hf(kind), ids(2, PROMPT), slip, lambda *given: turned_values(*given, rotation))


@pytest.mark.parametrize("mechanism", ["kuramoto", "phase_sync"])
def test_slipped_phases(mechanism: str, make_model: Any, roughen: Any, text_ids: Any) -> None:
    model, heads = roughen(make_model(mechanism, n_layer=3)), [(1, 0), (2, 0), (2, 1)]
    slip = PhaseSlip(heads, target="phases", angle=ANGLE, anchor=0.0, gate=None)
    compare(model, text_ids(2, PROMPT), slip, lambda *given: slipped_phases(*given, heads))
