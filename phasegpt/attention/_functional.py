"""What attention layers share: head splitting, rotary positions, one causal SDPA call.

Shapes: B batch, T time (Tq queries, Tk keys), D model width, H heads, E head width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """[B,T,D] -> [B,H,T,E]."""
    B, T, D = x_BTD.shape
    return x_BTD.view(B, T, heads, D // heads).transpose(1, 2)


def join_heads(x_BHTE: Tensor) -> Tensor:
    """[B,H,T,E] -> [B,T,D]."""
    return x_BHTE.transpose(1, 2).flatten(2)


def rotary_angles(
    start: int, time: int, pairs: int, device: torch.device, base: float = 10_000.0
) -> Tensor:
    """Angles t base^(-k/pairs) for t in [start, start+time), radians in [0, 2 pi), [T,pairs].

    Computed in float64 and reduced, so that far positions keep their precision in float32.
    Every layer of a model asks for the same: what was asked last is kept, so leave it as it is.
    Source: Su et al., RoFormer, arXiv 2104.09864.
    """
    if _not_to_keep():
        return _angles(start, time, pairs, device, base)
    return _kept_angles(start, time, pairs, device, base)


def rotary(
    start: int,
    time: int,
    pairs: int,
    like: Tensor,
    base: float = 10_000.0,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary_angles, [T,pairs], for `turn`; in float32 at least, as `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if _not_to_keep():
        angles = _angles(start, time, pairs, like.device, base)
        return angles.cos().to(dtype), angles.sin().to(dtype)
    return _kept_turn(start, time, pairs, like.device, base, dtype)


def _not_to_keep() -> bool:
    """Whether tensors are of a graph, which computes what is the same once by itself, or fake."""
    return torch.compiler.is_compiling() or type(torch.empty(0)) is not Tensor


def random_state(like: Tensor) -> Tensor:
    """That of the generator which dropout takes from on the device of a tensor."""
    return torch.cuda.get_rng_state(like.device) if like.is_cuda else torch.get_rng_state()


@contextmanager
def random_numbers_again(state: Tensor | None, like: Tensor) -> Iterator[None]:
    """Draw the numbers that followed a `random_state` once more; the generator goes on after.

    None: nothing is drawn, and nothing done.
    """
    if state is None:
        yield
        return
    with torch.random.fork_rng([like.device] if like.is_cuda else []):
        if like.is_cuda:
            torch.cuda.set_rng_state(state, like.device)
        else:
            torch.set_rng_state(state)
        yield


def unit(x: Tensor) -> Tensor:
    """x divided by its length along the last dimension; of nearly none the first axis.

    Without that a zero vector would be no point of the sphere, and its gradient 1e12.
    """
    none = torch.linalg.vector_norm(x, dim=-1, keepdim=True) < 1e-6
    axis = torch.zeros(x.shape[-1], dtype=x.dtype, device=x.device)
    axis[0] = 1.0
    return F.normalize(torch.where(none, axis, x), dim=-1)


def _angles(start: int, time: int, pairs: int, device: torch.device, base: float) -> Tensor:
    frequency = base ** (-torch.arange(pairs, device=device, dtype=torch.float64) / pairs)
    position = torch.arange(start, start + time, device=device, dtype=torch.float64)
    return torch.outer(position, frequency).remainder(2 * torch.pi)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept serves a training too
def _kept_angles(start: int, time: int, pairs: int, device: torch.device, base: float) -> Tensor:
    return _angles(start, time, pairs, device, base)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _kept_turn(
    start: int, time: int, pairs: int, device: torch.device, base: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    angles = _angles(start, time, pairs, device, base)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BHTE: Tensor, angles_TP: Tensor) -> Tensor:
    """Rotate the pairs (x_k, x_{k+E/2}) by angles; computed in float32 at least."""
    return turn(x_BHTE, angles_TP.cos(), angles_TP.sin())


def turn(x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same by the angles' cosines and sines, [T,P] or [B,H,T,P]."""
    dtype = torch.promote_types(x_BHTE.dtype, torch.float32)
    cos, sin = cos.to(dtype), sin.to(dtype)
    a, b = x_BHTE.to(dtype).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x_BHTE.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float) -> Tensor:
    """softmax(scale q k^T) v with each query seeing its own key and those before: one SDPA call.

    q[B,H,Tq,E], k[B,H,Tk,E], v[B,H,Tk,Ev]; the queries are the last Tq positions. The narrower
    are padded when whole sequences are mixed: unequal widths would leave the fused kernels for one
    that holds [T,T]. Returns [B,H,Tq,Ev].
    """
    width, past = v.shape[-1], k.shape[2] - q.shape[2]
    wider = width - q.shape[-1]
    # A program of torch.export holds any length, so it may not ask for it.
    if wider and (torch.compiler.is_exporting() or q.shape[2] > 1):
        q, k = (F.pad(z, (0, max(0, wider))) for z in (q, k))
        v = F.pad(v, (0, max(0, -wider)))
    mask = None
    if past and q.shape[2] > 1:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(past)
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=not past, scale=scale
    )
    return y[..., :width]


def preceding_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float) -> Tensor:
    """The same with each query seeing the keys before its own alone: one SDPA call.

    The key and the value of the newest token count nowhere. The first token sees none and gets 0.
    """
    if torch.compiler.is_exporting():  # any length, where a slice would ask for two tokens
        t = torch.arange(q.shape[2], device=q.device)
        mask = t < t.clamp(min=1).unsqueeze(-1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return y * (t > 0).unsqueeze(-1)
    first = q.shape[2] == k.shape[2]  # is among the queries
    k, v = k[:, :, :-1], v[:, :, :-1]
    y = causal_attention(q[:, :, 1:] if first else q, k, v, scale=scale, dropout=dropout)
    return F.pad(y, (0, 0, 1, 0)) if first else y
