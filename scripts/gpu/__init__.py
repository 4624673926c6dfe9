"""The checks of scripts/gpu_check.py, a function each: it takes a Run and returns what it found.

What a check finds is a dict for JSON; `failures` in it are the claims that did not hold, a line
each. Whatever else goes wrong is raised, and the check that raises is recorded as an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """Where the checks run, and at which size: `dry` is a small one that says nothing of speed."""

    device: str
    dry: bool
    out: Path

    def size(self, full: Any, small: Any) -> Any:
        """`full`, or of a dry run `small`."""
        return small if self.dry else full


@dataclass(frozen=True)
class Check:
    """A check, the seconds that it may take, and what it answers."""

    name: str
    function: Callable[[Run], dict[str, Any]]
    limit: float
    question: str
