"""The picture of a study of samplers: the judge against diversity, and every arm's gap."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from phasegpt.core import figures

Rows = list[dict[str, Any]]  # a table: one dict per arm

#: Kinds of arms, in the order of tables and picture.
ROLES = {
    "human": "Human text",
    "seed": "The three published arms",
    "control": "Controls at the temperature of Phase-Slip, and near it",
    "sweep": "Plain sampling: the frontier",
    "power": "Truncation: can this protocol see a gain?",
    "slip": "Phase-Slip: rotated Values",
    "phases": "Phase-Slip: rotated oscillators",
    "loop": "Loop breakers at a low temperature",
}


def by_role(rows: Rows) -> Iterable[tuple[str, Rows]]:
    """The title of every role that has rows, and these."""
    for role, title in ROLES.items():
        if members := [row for row in rows if row["role"] == role]:
            yield title, members


@figures.house()
def draw_frontier(study: Path, rows: Rows) -> Path:
    """study/frontier.png: the judge against diversity, and the gap of every arm to the sweep.

    The names of the roles at the right have the colours of both panels.
    """
    gaps = [row for row in rows if row["gap_low"] is not None and row["role"] != "human"]
    listed: list[tuple[str, dict[str, Any] | None]] = []
    for title, members in by_role(gaps):
        listed += [(title, None), *((row["arm"].replace("_", " "), row) for row in members)]
    figure = figures.new(max(4.6, 1 + 0.21 * len(listed)), width=10)
    left, right = figure.subplots(1, 2)
    _plane(left, rows)
    right.set_axis_off() if not listed else _gaps(right, listed)
    return figures.save(figure, study / "frontier.png")[0]


def _colour(role: str) -> str:
    if role == "sweep":
        return figures.colour("softmax")
    return figures.PLAIN[[name for name in ROLES if name != "sweep"].index(role)]


def _plane(axes: Any, rows: Rows) -> None:
    """Every arm by diversity and judge, and plain sampling's line."""
    sweep = sorted((r for r in rows if r["role"] == "sweep"), key=lambda r: r["diversity"])
    curve = [[row[axis] for row in sweep] for axis in ("diversity", "judge")]
    axes.plot(*curve, "o-", color=_colour("sweep"), zorder=1)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    for row in sweep:
        said, place = f"T {row['temperature']:g}", (row["diversity"], row["judge"])
        axes.annotate(said, place, (-6, 3), ha="right", color=figures.SOFT, **beside)
    for row in rows:
        if row["role"] == "sweep":
            continue
        human, shade = row["role"] == "human", _colour(row["role"])
        place = (row["diversity"], row["judge"])
        axes.plot(*place, "*" if human else "o", ms=11 if human else 4.5, color=shade)
        if human:
            axes.annotate("human text", place, (9, 0), color=figures.ink(shade), **beside)
    axes.margins(x=0.1)
    axes.set_title("grey: plain sampling at T")
    axes.set(xlabel="diversity: different words / words", ylabel="judge, nats per character")


def _gaps(axes: Any, listed: list[tuple[str, dict[str, Any] | None]]) -> None:
    """A line for every arm under its role, from above."""
    colour = figures.INK
    places = range(len(listed), 0, -1)
    for (title, row), y in zip(listed, places, strict=True):
        if row is None:
            colour = _colour(next(role for role, its in ROLES.items() if its == title))
            text = {"color": figures.ink(colour), "fontsize": 8, "va": "center", "weight": "bold"}
            axes.text(0.01, y, title, transform=axes.get_yaxis_transform(), **text)
            continue
        axes.plot([row["gap_low"], row["gap_high"]], [y, y], color=colour)
        axes.plot(row["gap"], y, "o", color=colour)
    named = [(y, title) for y, (title, row) in zip(places, listed, strict=True) if row]
    axes.set(yticks=[y for y, _ in named], yticklabels=[title for _, title in named])
    axes.axvline(0, color=figures.SOFT, lw=0.8, zorder=0)
    axes.set_ylim(0.3, len(listed) + 0.7)
    axes.set_xlabel(
        "judge minus plain sampling at equal diversity\nbelow 0 is better; 95% interval"
    )
