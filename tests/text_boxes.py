"""What is wrong with the texts of a figure, measured with the renderer."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from phasegpt.core import figures

_TOUCH = 1.0  # pixels that two boxes may share: letters do not fill theirs


def faults(figure: Figure) -> list[str]:
    """Pairs of texts that overlap, texts that leave the figure, panels of too many lines."""
    drawn: dict[int, Text] = {}
    draw = Text.draw

    def watched(text: Text, *args: Any, **kwargs: Any) -> None:
        drawn[id(text)] = text
        draw(text, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", watched)
        FigureCanvasAgg(figure).draw()
    named = [t for t in drawn.values() if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), Text.get_window_extent(t).padded(-_TOUCH / 2)) for t in named]
    whole = figure.bbox.padded(_TOUCH)
    found = [
        f"{text!r} leaves the figure"
        for text, box in boxes
        if not (whole.contains(*box.min) and whole.contains(*box.max))
    ]
    found += [
        f"{a!r} is upon {b!r}" for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)
    ]
    for axes in figure.axes:
        lines = [x for x in axes.lines if not str(x.get_label()).startswith("_")]
        moving = [x for x in lines if len(set(x.get_ydata())) > 1]
        if len(moving) > 7:
            found.append(f"{axes.get_title(loc='left')!r} has {len(moving)} lines")
    return found


@contextmanager
def measured() -> Iterator[dict[str, list[str]]]:
    """The faults of every figure that is made within, by the file's name; no file is written."""
    found: dict[str, list[str]] = {}
    made: list[Figure] = []

    def new(*args: Any, **kwargs: Any) -> Figure:
        made.append(make(*args, **kwargs))
        return made[-1]

    def save(figure: Figure, *paths: Any) -> Any:
        made.remove(figure)
        found[paths[0].name] = faults(figure)
        return list(paths)

    make = figures.new
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "new", new)
        patch.setattr(figures, "save", save)
        patch.setattr(figures, "content", lambda *_: b"")
        yield found
        with figures.house():
            found.update({f"figure {i}": faults(figure) for i, figure in enumerate(made)})
