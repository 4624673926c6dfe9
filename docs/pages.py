"""What the site has beyond the pages that GitHub shows.

- The navigation: the sections and links of docs/README.md. Below a README.md: the pages beside it.
- A page for every script of examples/.
- A page for every folder of phasegpt/, from its docstrings.
- The interactive page of every study, from its records.

Without Sphinx this module can be imported too: tests read the navigation.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: The pages, as paths from the root.
PATTERNS = [
    *("*.md", "docs/**.md", "docs/tutorials/*.ipynb", "results/**.md", "checkpoints/**.md"),
    *("examples/*.py", "examples/**.md", "phasegpt/__init__.py", "phasegpt/*/__init__.py"),
]
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s#:]+)\)")


def navigation() -> dict[str, dict[str, str]]:
    """The sections of docs/README.md: path from the root and title of each page."""
    sections = {}
    for part in (ROOT / "docs/README.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        caption, text = part.split("\n", 1)
        links = [((ROOT / "docs" / to).resolve(), title) for title, to in LINK.findall(text)]
        sections[caption] = {p.relative_to(ROOT).as_posix(): title for p, title in links}
    return sections


def below(page: str) -> Iterator[str]:
    """Pages that the navigation does not name: beside a README.md, and of the API its folders."""
    named = {page, "README.md", *(path for pages in navigation().values() for path in pages)}
    globs = {"README.md": "*.md *.ipynb */*.md", "api.md": "../phasegpt/**/__init__.py"}
    folder = (ROOT / page).parent
    if folder.name == "examples":
        globs["README.md"] += " *.py"
    if page in ("README.md", "docs/README.md"):
        return
    for pattern in globs.get(Path(page).name, "").split():
        for path in sorted(path.resolve() for path in folder.glob(pattern)):
            elsewhere = path.name != "README.md" and (path.parent / "README.md").is_file()
            found = path.relative_to(ROOT).as_posix()
            if found not in named and not (elsewhere and path.parent != folder):
                yield found


def studies() -> list[Path]:
    """The pages of studies whose runs are committed."""
    return [
        page for page in ROOT.glob("results/*/README.md") if any(page.parent.glob("runs/*.json"))
    ]


def toctree(pages: dict[str, str], caption: str = "") -> str:
    """One section of the navigation, by path and title, as Sphinx takes it."""
    names = {"/" + page.rsplit(".", 1)[0]: title for page, title in pages.items()}
    lines = [f"{title} <{name}>" if title else name for name, title in names.items()]
    options = [":hidden:", *[f":caption: {caption}"] * bool(caption)]
    return "\n".join(["", "```{toctree}", *options, *lines, "```", ""])


def script(path: Path) -> str:
    """A page of a script: what its docstring says, then all of it."""
    text = path.read_text(encoding="utf-8")
    return f"# {path.name}\n\n{ast.get_docstring(ast.parse(text))}\n\n```python\n{text}```\n"


def api(init: Path) -> str:
    """A page of a folder: the names of `__all__`, and the public ones of the modules that it takes
    none from; of phasegpt itself those of `__all__` alone: the rest are commands."""
    package = ".".join(init.parent.relative_to(ROOT).parts)
    paths, text = [init], init.read_text(encoding="utf-8")
    if package != "phasegpt":
        modules = sorted(init.parent.glob("[!_]*.py"))
        paths += [path for path in modules if f"from {package}.{path.stem} import" not in text]
    page = f"# {package}\n"
    options = ":members:\n" + "   :no-index:\n" * (package == "phasegpt")  # defined elsewhere
    for path in paths:
        module = package if path == init else f"{package}.{path.stem}"
        heading = "" if path == init else f"\n## {path.stem}\n"
        page += f"{heading}\n```{{eval-rst}}\n.. automodule:: {module}\n   {options}```\n"
    return page


def docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Plain text as reStructuredText: what is indented is shown as it stands."""
    shown = []
    for block in re.split(r"\n *\n", "\n".join(lines).strip("\n")):
        depths = {len(row) - len(row.lstrip()) for row in block.split("\n")}
        if not depths <= ({0, 2} if block.startswith("- ") else {0}):
            shown.append("::\n\n" + re.sub("^", "    ", block, flags=re.M))
            continue
        parts = re.split(r"(`[^`\n]+`)", re.sub(r"\n(?=- )", "\n\n", block))
        parts[::2] = [re.sub(r"([\\*_|`<>])", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"`{part}`" for part in parts[1::2]]
        shown.append("".join(parts))
    lines[:] = [*"\n\n".join(shown).split("\n"), ""]


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what Python itself says of the fields of a NamedTuple."""
    return True if str(thing.__doc__).startswith("Alias for field number") else None


def read(app: Any, docname: str, content: list[str]) -> None:
    """What a page gets when it is read: its navigation; a title, where it has none."""
    path = Path(app.env.doc2path(docname)).resolve()
    page = path.relative_to(ROOT).as_posix()
    if path.suffix == ".py":
        content[0] = (api if path.name == "__init__.py" else script)(path)
    if path.suffix == ".ipynb":  # kept without metadata
        language = {"language_info": {"name": "python"}}
        content[0] = json.dumps({**json.loads(content[0]), "metadata": language})
    if path.suffix != ".md":
        return
    if not re.search("^# ", content[0], re.M):
        content[0] = f"# {path.parent.name}: {path.stem}\n\n{content[0]}"
    content[0] = LINK.sub(lambda link: folder_link(path.parent, *link.groups()), content[0])
    if page == "README.md":
        content[0] += toctree({"docs/README.md": "All pages"})
        content[0] += "".join(toctree(pages, name) for name, pages in navigation().items())
    elif found := dict.fromkeys(below(page), ""):
        content[0] += toctree(found)
    if path in studies():
        to = '<p><a href="report.html">Tables and figures of all runs, interactive</a></p>'
        content[0] = content[0].replace("\n## ", f"\n{to}\n\n## ", 1)


def folder_link(here: Path, title: str, to: str) -> str:
    """A link, of a folder to its README.md; one without has no page, and is named."""
    if not (here / to).is_dir():
        return f"[{title}]({to})"
    if (here / to / "README.md").exists():
        return f"[{title}]({to}/README.md)"
    return f"{title} (`{(here / to).resolve().relative_to(ROOT).as_posix()}`)"


def finish(app: Any, exception: Exception | None) -> None:
    """The interactive page of every study, and an index that leads to the first page."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(ROOT / "results", Path(temporary) / "results")
        command = [sys.executable, "scripts/analyze_results.py", str(copy)]
        given = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
        if found := [] if exception else studies():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **given)
        for page in (path.relative_to(ROOT).with_name("report.html") for path in found):
            shutil.copy(Path(temporary) / page, app.outdir / page)
    redirect = '<!doctype html><meta http-equiv="refresh" content="0; url=README.html">'
    (app.outdir / "index.html").write_text(redirect)
