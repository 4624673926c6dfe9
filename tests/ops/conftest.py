"""Fixtures of the kernels' tests."""

from collections.abc import Iterator

import pytest
import torch
from helpers import need_compiler

BACKENDS = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend with kernels."""
    if request.param == "cpu":
        need_compiler()
    return request.param


@pytest.fixture
def kernels() -> None:
    """The CPU kernels can be built."""
    need_compiler()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that an operator allocates is full of NaN until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
