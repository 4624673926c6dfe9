"""The house style: colours apart for every reader, names at lines that are not upon each other."""

import itertools

import numpy as np
import pytest
from helpers import ROOT
from matplotlib.colors import to_rgb
from text_boxes import faults

from phasegpt.core import figures

#: Linear RGB as seen without red, green or blue cones. Source: Machado et al. (2009), severity 1.
SEEN = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                 [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
#: Linear RGB to XYZ (sRGB, D65), each over that of white.
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, seen: object) -> np.ndarray:
    """CIELAB of a colour for eyes like SEEN."""
    c = np.array(to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(seen) @ linear, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN.keys())
def test_two_families_are_apart_for_colour_blind_readers_too(seen):
    colours = [colour for colour, _ in figures.FAMILIES.values()]
    for a, b in itertools.combinations(colours, 2):
        assert np.linalg.norm(lab(a, seen) - lab(b, seen)) > 20, (a, b)


def test_every_mechanism_has_a_family_and_others_are_black():
    there = {path.stem for path in (ROOT / "conf" / "attention").glob("*.yaml")}
    named = [name for _, names in figures.FAMILIES.values() for name in names]
    assert set(named) == there and len(named) == len(there)
    assert figures.colour("fsn") == figures.colour("torus") != figures.colour("kope")
    assert figures.colour("my_package.my_module") == figures.OTHER


def test_text_is_dark_enough_to_read_and_shades_differ():
    for colour, _ in figures.FAMILIES.values():
        c = np.array(to_rgb(figures.ink(colour)))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (0.05 + XYZ[1] @ linear) >= 4.5
        assert len(set(figures.shades(colour, figures.MOST))) == figures.MOST
    assert figures.shades("#046ad4", 1) == ["#046ad4"]


def crowded(lines: int = figures.MOST) -> object:
    """Lines that end at one place, the fourth early, with a band and two levels."""
    figure = figures.new(height=2.6)
    axes = figure.subplots()
    for i in range(lines):
        steps = np.arange(1, 50 if i == 3 else 100)
        axes.plot(steps, 0.3 + 0.2 / steps + 1e-3 * i, label=f"arm {i}")
    axes.plot([50, 99], [0.8, np.nan], label="ends in the middle")
    figures.level(axes, 0.3, "floor")
    figures.level(axes, None, "not there")
    figures.band(axes, 0.35, 0.55, "band")
    axes.set(ylim=(0, 1), title="R", xlabel="step")
    figures.label_ends(axes)
    return figure


def test_labels_of_lines_that_end_together_are_moved_apart():
    with figures.house():
        figure = crowded()
        assert faults(figure) == ["'R' has 8 lines"]
        texts = {note.get_text(): note for note in figure.axes[0].texts}
    assert set(texts) == {*(f"arm {i}" for i in range(7)), "ends in the middle", "floor", "band"}
    places = [texts[f"arm {i}"].xyann[1] for i in (0, 1, 2, 4, 5, 6)]
    assert places == sorted(places)  # in the order of their ends
    assert all(0 < note.xyann[1] < 1 for note in texts.values())
    assert texts["arm 3"].xy[0] < 0.6 and texts["arm 3"].arrow_patch.get_visible()


def test_overlapping_and_clipped_texts_are_found():
    with figures.house():
        figure = figures.new(height=2)
        axes = figure.subplots()
        axes.text(0.5, 0.5, "one")
        axes.text(0.52, 0.5, "two")
        figure.text(0.99, 0.5, "outside")
        found = faults(figure)
    assert "'one' is upon 'two'" in found and "'outside' leaves the figure" in found


def test_a_figure_has_the_same_bytes_whatever_the_users_settings(tmp_path):
    import matplotlib as mpl

    written = []
    for size in (9, 30):
        with mpl.rc_context({"font.size": size, "lines.linewidth": size}):
            for kind in ("png", "svg"):
                with figures.house():
                    (path,) = figures.save(crowded(1), tmp_path / f"{size}.{kind}")
                written.append(path.read_bytes())
    assert written[:2] == written[2:]
