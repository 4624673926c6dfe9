"""Draw the picture of docs/house.md from the imports: which folder of phasegpt knows which.

    python scripts/picture_house.py

A folder stands above all that it imports, and says what the first line of its __init__.py says.
Arrows that follow from others are left out. The commands are one box.
"""

import argparse
import ast
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from phasegpt.cli import guarded
from phasegpt.core import figures
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import check_output

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = "commands"

Graph = dict[str, set[str]]


def imports(package: Path) -> Graph:
    """Of each folder, and of the modules beside them as one, the folders that it imports."""
    found: Graph = {}
    for path in sorted(package.rglob("*.py")):
        folder = COMMANDS if path.parent == package else path.relative_to(package).parts[0]
        if path == package / "__init__.py":
            continue
        names = found.setdefault(folder, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "phasegpt":
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= set(node.module.split(".")[1:2] * node.module.startswith("phasegpt."))
            elif isinstance(node, ast.Import):
                names |= {
                    a.name.split(".")[1] for a in node.names if a.name.startswith("phasegpt.")
                }
    return {folder: (names & set(found)) - {folder} for folder, names in found.items()}


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each folder: one above the highest that it imports."""
    found: dict[str, int] = {}
    while len(found) < len(graph):
        ready = {f for f, below in graph.items() if f not in found and below <= set(found)}
        if not ready:
            raise ConfigError(f"imports go in a circle among {sorted(set(graph) - set(found))}")
        found |= {f: 1 + max((found[b] for b in graph[f]), default=-1) for f in ready}
    return found


def reaches(graph: Graph, folder: str) -> set[str]:
    return graph[folder].union(*(reaches(graph, below) for below in graph[folder]))


def direct(graph: Graph) -> Graph:
    """Without the arrows that follow from others."""
    return {
        f: below - set().union(*(reaches(graph, b) for b in below)) for f, below in graph.items()
    }


def says(folder: str, package: Path) -> str:
    """A folder and the first line of its docstring; of the commands their names."""
    if folder == COMMANDS:
        return ", ".join(sorted(path.stem for path in package.glob("[!_]*.py")))
    text = ast.get_docstring(ast.parse((package / folder / "__init__.py").read_text()))
    return (text or "").splitlines()[0].rstrip(".").replace("`", "")


def shown(graph: Graph) -> str:
    """The arrows as text, which the picture holds too: a test sees when it is out of date."""
    return "; ".join(f"{folder}: {' '.join(sorted(graph[folder]))}" for folder in sorted(graph))


def picture(package: Path) -> Figure:
    graph = direct(imports(package))
    floor = floors(graph)
    # A box reaches up to the lowest of those that import it; one of many floors stands aside.
    top = {f: min((floor[g] for g in graph if f in graph[g]), default=floor[f] + 1) for f in graph}
    aside = {f for f in graph if top[f] - floor[f] > 1}
    beside = {n for f in aside for n in range(floor[f], top[f])}

    figure = figures.new(0.62 * len(set(floor.values())), width=6.5)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(-0.05, max(top.values())))
    axes.axis("off")
    for folder, y in floor.items():
        left = 0.66 if folder in aside else 0.02
        width = 0.32 if folder in aside else 0.61 if y in beside else 0.96
        axes.add_patch(
            Rectangle(
                (left, y + 0.1),
                width,
                top[folder] - y - 0.3,
                fc=figures.BAND,
                ec=figures.INK,
                lw=0.8,
            )
        )
        room = width - (0.04 if folder in aside else 0.21)
        text = textwrap.fill(says(folder, package), int(112 * room))
        middle = {"y": (y + top[folder] - 0.1) / 2, "va": "center"}
        if folder in aside:
            axes.text(0.82, s=f"{folder}\n\n\n\n\n", weight="bold", ha="center", **middle)
            axes.text(0.82, s=text, fontsize=8, ha="center", **middle)
        else:
            axes.text(left + 0.02, s=folder, weight="bold", **middle)
            axes.text(left + 0.19, s=text, fontsize=8, **middle)
        for below in graph[folder]:
            x = 0.82 if below in aside or folder in aside else 0.3
            ends = {"xy": (x, top[below] - 0.2), "xytext": (x, y + 0.1)}
            axes.annotate(
                "", **ends, arrowprops={"arrowstyle": "-|>", "color": figures.INK, "lw": 0.8}
            )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/house.png")
    args = parser.parse_args()
    check_output(args.out, "--out")
    package = ROOT / "phasegpt"
    said = {"Software": None, "Description": shown(direct(imports(package)))}
    with figures.house():
        picture(package).savefig(args.out, dpi=144, metadata=said)
    print(args.out)


if __name__ == "__main__":
    guarded(main)
