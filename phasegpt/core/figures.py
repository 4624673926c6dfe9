"""The house style of every figure: fonts, sizes, colours of mechanisms, names at the ends of lines.

    with figures.house():
        figure = figures.new(height=3.2)
        axes = figure.subplots()
        axes.plot(steps, loss, color=figures.colour("kuramoto"), label="kuramoto, K 1")
        figures.level(axes, 1.47, "entropy floor")
        figures.label_ends(axes)
        figures.save(figure, path)

A panel has at most MOST lines; more go into further panels. A line is named at its end, never in a
legend. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phasegpt.core.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2  # inches; a page shows it about 900 pixels wide
MOST = 7  # lines of a panel

#: A family's colour, and its mechanisms. Any two are at least 20 apart in CIELAB for readers who
#: see no red, no green or no blue too (tests/core/test_figures.py).
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "control": ("#717171", ("softmax", "uniform", "no_mixing", "token_shift")),
    "kuramoto": ("#046ad4", ("kuramoto", "hybrid")),
    "phase_sync": ("#c04100", ("phase_sync", "hybrid_phase_sync", "as_coded")),
    "torus": ("#00a35e", ("torus", "fsn")),
    "kope": ("#ff94bf", ("kope",)),
    "lohe": ("#d6af15", ("lohe",)),
    "fixed_query": ("#33bdff", ("fixed_query",)),
    "ssa": ("#341c85", ("ssa", "ssa_as_published")),
    "selective_rope": ("#5a2144", ("selective_rope",)),
}
#: Colours of what is no mechanism, in this order.
PLAIN = tuple(shade for name, (shade, _) in FAMILIES.items() if name != "control")
OTHER = "#000000"  # a mechanism of another package
INK, SOFT, FAINT, BAND = "#1d2433", "#5b6577", "#d5d9e0", "#e3efe7"
MAP, DIFFERENCE = "Blues", "RdBu"  # colour maps of shares, and of what is above and below 0

_RC: dict[str, Any] = {
    **{"font.family": "DejaVu Sans", "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 9.5},
    **{"xtick.labelsize": 8, "ytick.labelsize": 8, "axes.titlelocation": "left"},
    **{"text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.edgecolor": SOFT},
    **{"xtick.color": SOFT, "ytick.color": SOFT, "axes.spines.top": False},
    **{"axes.spines.right": False, "axes.xmargin": 0.02, "axes.titlepad": 7},
    **{"lines.linewidth": 1.5, "lines.markersize": 4},
    **{"svg.hashsalt": "phasegpt", "figure.dpi": 128, "savefig.dpi": 128},
}


def family(mechanism: str) -> str | None:
    """The family of a mechanism (`attention.name`); None for one of another package."""
    return next((name for name, (_, its) in FAMILIES.items() if mechanism in its), None)


def colour(mechanism: str) -> str:
    """The colour of a mechanism's family."""
    found = family(mechanism)
    return OTHER if found is None else FAMILIES[found][0]


def shades(base: str, n: int) -> list[str]:
    """n shades of a colour from dark to light, for lines of one family in one panel."""
    return [_mixed(base, 0.45 - 0.9 * (i + 0.5) / n if n > 1 else 0.0) for i in range(n)]


def ink(base: str) -> str:
    """A colour as dark as text on white must be, a contrast of 4.5."""
    found = base
    for i in range(1, 20):
        if _contrast(found) >= 4.5:
            break
        found = _mixed(base, i / 20)
    return found


def _mixed(base: str, dark: float) -> str:
    """A colour with a share of black, or where `dark` is negative of white."""
    from matplotlib.colors import to_hex, to_rgb

    other = 0.0 if dark > 0 else 1.0
    red, green, blue = ((1 - abs(dark)) * c + abs(dark) * other for c in to_rgb(base))
    return to_hex((red, green, blue))


def _contrast(colour: str) -> float:
    """Contrast with white after WCAG 2, 1 to 21."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 1.05 / (0.05 + sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


@contextmanager
def house() -> Iterator[None]:
    """The style, within: what matplotlib's own settings say does not count."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(_RC, **{"axes.prop_cycle": f"cycler('color', {list(PLAIN)})"})
        yield


def new(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches, whose panels make room for their texts."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, *paths: Path) -> list[Path]:
    """Write a figure as PNG or SVG, by the paths' suffixes; the paths."""
    for path in paths:
        write_atomic(path, content(figure, path.suffix[1:]))
    return list(paths)


def content(figure: Figure, kind: str) -> bytes:
    """A figure as a file of the kind png or svg."""
    dates = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    buffer = io.BytesIO()
    with house():
        figure.savefig(buffer, format=kind, metadata=dates[kind])
    figure.set_layout_engine("none")  # a second file needs no second layout
    return buffer.getvalue()


def level(axes: Axes, value: float | None, name: str, style: str = ":") -> None:
    """A null, chance, floor or ceiling: a thin line across that `label_ends` names."""
    if value is not None and math.isfinite(value):
        axes.axhline(value, color=SOFT, linestyle=style, linewidth=1, label=name)


def band(axes: Axes, low: float, high: float, name: str) -> None:
    """A band of values across, that `label_ends` names."""
    axes.axhspan(low, high, color=BAND, linewidth=0, zorder=0, label=name)


def label_ends(*axes: Axes) -> None:
    """Name every labelled line, level and band of the panels right of it, none upon another.

    All else must have been drawn, since the places follow from the layout.
    """
    named = [(one, _named(one)) for one in axes]
    for _, notes in named:
        x = max((note.xy[0] for note in notes), default=1.0)
        for note in notes:
            note.xyann = (x + 0.03, note.xy[1])
    if not any(notes for _, notes in named):
        return
    root = axes[0].get_figure(root=True)
    assert root is not None
    root.draw_without_rendering()
    root.set_layout_engine("none")  # it stays as it is now
    for one, notes in named:
        _spread(one, notes)


def _named(axes: Any) -> list[Any]:
    """A text for every label of the panel; `xy` is the place it names, as a share of the panel."""
    from matplotlib.colors import to_hex

    axes.autoscale_view()
    found: list[tuple[str, Any, str]] = []
    for line in axes.lines:
        x, y = (list(values) for values in line.get_data())
        while x and not (math.isfinite(x[-1]) and math.isfinite(y[-1])):
            x, y = x[:-1], y[:-1]
        if x and not str(line.get_label()).startswith("_"):
            end = line.get_transform().transform((x[-1], y[-1]))
            found.append((str(line.get_label()), end, to_hex(line.get_color())))
    for patch in axes.patches:
        if not str(patch.get_label()).startswith("_"):
            box = patch.get_window_extent()
            found.append((str(patch.get_label()), (box.x1, (box.y0 + box.y1) / 2), SOFT))
    notes = []
    for text, end, shade in found:
        x, y = axes.transAxes.inverted().transform(end)
        place = (min(float(x), 1.0), min(max(float(y), 0.0), 1.0))
        notes.append(
            axes.annotate(
                text, place, place, "axes fraction", "axes fraction", va="center",
                color=ink(shade), annotation_clip=False, fontsize=8,
                arrowprops={"arrowstyle": "-", "lw": 0.6, "color": shade, "shrinkA": 0,
                            "shrinkB": 0, "relpos": (0, 0.5)},
            )
        )  # fmt: skip
    return notes


def _spread(axes: Axes, notes: Sequence[Any]) -> None:
    """Move the texts up and down by as little as keeps them apart and in the panel."""
    panel = axes.get_window_extent()
    notes = sorted(notes, key=lambda note: note.xy[1])
    heights = [1.05 * note.get_window_extent().height / panel.height for note in notes]
    # A text's place less the room below it must not fall from one to the next.
    below = [sum(heights[:i]) + heights[i] / 2 for i in range(len(notes))]
    blocks: list[tuple[float, int]] = []  # means of what touches, and how many
    for note, room in zip(notes, below, strict=True):
        blocks.append((note.xy[1] - room, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    places = [place for place, n in blocks for _ in range(n)]
    top = max(1 - sum(heights), 0.0)
    for note, place, room in zip(notes, places, below, strict=True):
        y = min(max(place, 0.0), top) + room
        note.xyann = (note.xyann[0], y)
        near = abs(y - note.xy[1]) * panel.height < 3 and note.xyann[0] - note.xy[0] < 0.05
        note.arrow_patch.set_visible(not near)
