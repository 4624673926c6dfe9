"""Using a model without training it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every module has its own mode again."""
    with evaluating(model), torch.inference_mode():
        yield
