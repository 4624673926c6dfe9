"""The integrations that the laws are tried on."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers import need_compiler
from laws import Integration

from phasegpt import ops

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def integration(backend: str) -> Integration:
    """The reference in float64, a fused backend in float32."""
    if backend == "cpu":
        need_compiler()
    exact = backend == "reference"
    return Integration(
        rows=functools.partial(ops.kuramoto_rows, backend=backend),
        scan=functools.partial(ops.kuramoto_scan, backend=backend),
        dtype=torch.float64 if exact else torch.float32,
        device=torch.device("cuda" if backend == "cuda" else "cpu"),
        atol=1e-12 if exact else 1e-5,
    )


@pytest.fixture
def reference() -> Integration:
    """The ground truth: float64, any size, Euler, Heun and RK4."""
    return integration("reference")


@pytest.fixture(params=["cpu", CUDA])
def fused_backend(request: pytest.FixtureRequest) -> Integration:
    """A fused kernel: float32, Euler, at most 256 oscillators."""
    return integration(request.param)


@pytest.fixture(params=["reference", "cpu", CUDA])
def any_backend(request: pytest.FixtureRequest) -> Integration:
    """The reference and every fused backend."""
    return integration(request.param)
