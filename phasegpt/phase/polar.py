"""The modulus of a complex number given by its parts, for R = |Z| everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def modulus(real: Tensor, imaginary: Tensor) -> Tensor:
    """|real + i imaginary|, elementwise, with gradient 0 where it is 0."""
    square = real.square() + imaginary.square()
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
