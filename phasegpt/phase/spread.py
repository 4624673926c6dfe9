"""How phases are spread: over the circle, over tokens, and with the loss.

Shapes: B batch, T time, H heads, N oscillators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phasegpt.phase.checks import checked


@checked
def participation_ratio(theta_BTHN: Tensor) -> Tensor:
    """Number of directions in which the features [cos theta, sin theta] differ over tokens, [H].

    (sum of eigenvalues)^2 / sum of their squares of the features' covariance over B T tokens: at
    most 2N. It falls to 0 as the phases cease to tell tokens apart, at differences of
    sqrt(eps) = 3e-4 rad in float32. Constant offsets of the phases leave it as it is. Null:
    2N / (1 + 2N / BT) for independent uniform phases.
    """
    features = torch.cat((theta_BTHN.cos(), theta_BTHN.sin()), -1).flatten(0, 1)
    features = features - features.mean(0)
    covariance = torch.einsum("thf,thg->hfg", features, features) / len(features)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(-1)
    square = covariance.square().sum((1, 2))
    return trace.square() / square.clamp_min(torch.finfo(square.dtype).eps ** 2)


@checked
def offset_spread(theta0_BTHN: Tensor) -> Tensor:
    """Standard deviation over oscillators of the mean of theta0 over B T tokens, radians, [H].

    theta0 are the unwrapped phases before the integration. What grows here lowers R for free.
    Null, for independent theta0 of variance s^2 and no offset: s / sqrt(B T).
    """
    return theta0_BTHN.mean((0, 1)).std(-1, correction=0)


@checked
def loss_correlation(loss_BT: Tensor, coherence: Tensor) -> Tensor:
    """Pearson's correlation over B T tokens of the loss with coherence[B,T,...], [...].

    Negative: tokens in coherence are predicted better. Null: 0 with sd 1 / sqrt(BT - 1); tokens
    of one text are not independent, so permute the loss or compare texts.
    """
    x, y = loss_BT.flatten().to(coherence.dtype), coherence.flatten(0, 1)
    x, y = x - x.mean(), y - y.mean(0)
    return torch.tensordot(x, y, 1) / (x.norm() * y.norm(dim=0))
