"""Numbers and tables as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def number(value: float | None, form: str = "{:.3f}") -> str:
    """A number, without a minus before zeros alone; "" for None."""
    return "" if value is None else re.sub(r"^-(0\.?0*)$", r"\1", form.format(value))


def span(low: float | None, high: float | None, form: str) -> str:
    """The ends of an interval; "" for None."""
    return "" if low is None else f"{number(low, form)} to {number(high, form)}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    rule = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
