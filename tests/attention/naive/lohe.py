"""`lohe` a second time, in loops over numbers, from the equations; with and without causality.

Not fast, and sharing no line with the layer. The form without causality is what public code of
AKOrN does, so that numbers computed with it can be compared.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray


def on_spheres(x_C: Array, group: int) -> Array:
    """Every `group` numbers in a row, divided by their length."""
    out = np.empty_like(x_C)
    for start in range(0, len(x_C), group):
        part = x_C[start : start + group]
        out[start : start + group] = part / math.sqrt(sum(v * v for v in part))
    return out


def turned(x_E: Array, position: int, base: float) -> Array:
    """Rotary positions: numbers k and k + E/2 turn by position base^(-2k/E)."""
    out, half = x_E.copy(), len(x_E) // 2
    for k in range(half):
        angle = position * base ** (-k / half)
        a, b = x_E[k], x_E[k + half]
        out[k] = a * math.cos(angle) - b * math.sin(angle)
        out[k + half] = a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(
    x_TC: Array,
    qkv: Callable[[Array], Array],
    head_rows: Sequence[Sequence[int]],
    *,
    causal: bool,
    rope: float | None,
) -> Array:
    """Heads of softmax attention, token by token; `head_rows` are the channels of each head."""
    T, C = x_TC.shape
    mixed = np.zeros((T, C))
    parts = [qkv(x_TC[t]) for t in range(T)]
    for rows in head_rows:
        at = np.array(rows)
        for t in range(T):
            q, weights = parts[t][at], []
            keys = range(t + 1 if causal else T)
            for u in keys:
                k = parts[u][C + at]
                score = q @ k if rope is None else turned(q, t, rope) @ turned(k, u, rope)
                weights.append(math.exp(score / math.sqrt(len(rows))))
            for u, weight in zip(keys, weights, strict=True):
                mixed[t, at] += weight / sum(weights) * parts[u][2 * C + at]
    return mixed


def states(
    x_TC: Array,
    drive_TC: Array,
    couple: Callable[[Array], Array],
    omega_P: Array | None,
    *,
    group: int,
    gamma: float,
    steps: int,
) -> list[Array]:
    """x after every step; `couple` is W_j MHA, omega_P turns each pair (a, b) to w (-b, a)."""
    T, C = x_TC.shape
    x = np.stack([on_spheres(row, group) for row in x_TC])
    found = []
    for _ in range(steps):
        y, new = couple(x) + drive_TC, np.empty_like(x)
        for t in range(T):
            change = np.zeros(C)
            for i in range(0, C, group):
                here, pull = x[t, i : i + group], y[t, i : i + group]
                change[i : i + group] = pull - (here @ pull) * here
            if omega_P is not None:
                for p in range(C // 2):
                    a, b = x[t, 2 * p], x[t, 2 * p + 1]
                    change[2 * p] -= omega_P[p] * b
                    change[2 * p + 1] += omega_P[p] * a
            new[t] = on_spheres(x[t] + gamma * change, group)
        x = new
        found.append(x)
    return found


def readout(x_TC: Array, weight: Array, bias: Array) -> Array:
    """The length of every two numbers of W x + b."""
    read = x_TC @ weight.T + bias
    return np.sqrt(read[:, 0::2] ** 2 + read[:, 1::2] ** 2)
