"""What the documents, comments and docstrings name is there: modules, files, targets, options."""

import ast
import functools
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from PIL import Image

from phasegpt.core.composition import compose, plain
from phasegpt.training.config import run_config
from phasegpt.training.leaderboard import Leaderboard

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "REPRODUCIBILITY.md")),
    ROOT / "PREREGISTRATION.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")),
    *sorted((ROOT / "results").rglob("*.md")),
    *sorted((ROOT / "checkpoints").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
KINDS = {"phasegpt": "py cpp h cu js html", "conf": "yaml", "scripts": "py", "examples": "py"}
SOURCES = [
    path
    for folder, endings in KINDS.items()
    for ending in endings.split()
    for path in sorted((ROOT / folder).rglob(f"*.{ending}"))
]
#: Names that stand for something to be made by the reader.
PLACEHOLDERS = {
    "phasegpt/attention/foo.py",
    "conf/attention/foo.yaml",
    "docs/mechanisms/foo.md",
    "conf/GROUP/OPTION.yaml",
    "results/samplers/mine",
    "results/samplers/my_run",
    "results/samplers/gpt2",
    "results/phase_a_full",
    "results/phase_b_full",
    "results/gpu",
}

_DOTTED = re.compile(r"(?<![\w./@-])phasegpt(?:\.[A-Za-z_]\w*)+")
_FOLDERS = "phasegpt|conf|scripts|examples|tests|docs|results"
_PATH = re.compile(rf"(?<![\w./@-])(?:{_FOLDERS})/[\w./*-]*[\w*/]")
_BARE = re.compile(r"(?<![\w./*@<-])(?!llama\.)[a-z_]\w*\.(?:py|cpp|h|cu|js)\b")
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
_ANCHOR = re.compile(r"\]\(([^)\s#]*)#([^)\s]+)\)")
_COMMAND = re.compile(r"python -m phasegpt\.(train|generate|evaluate|interpret|export) ([^`\n|]+)")
_SCRIPT = re.compile(r"python (scripts/\w+\.py) ([^`\n|]+)")
_MAKE = re.compile(r"(?:^ *|`)make ([a-z][\w-]*)", re.MULTILINE)


@functools.cache
def bare_names() -> set[str]:
    """The bare names of the repository's source files."""
    folders = ("phasegpt", "scripts", "tests", "conf", "examples", "docs")
    return {path.name for folder in folders for path in (ROOT / folder).rglob("*.*")}


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or a value or a field in one."""
    first, *rest = dotted.split(".")
    thing: Any = importlib.import_module(first)
    at = first
    for name in rest:
        at = f"{at}.{name}"
        if hasattr(thing, name):
            thing = getattr(thing, name)
        elif name in getattr(thing, "__annotations__", {}):
            return True
        else:
            try:
                thing = importlib.import_module(at)
            except ImportError:
                return False
    return True


def there(path: str) -> bool:
    """Whether a path is in the repository, as a file, a folder or a pattern of them."""
    clean = path.rstrip("/.")
    if clean in PLACEHOLDERS or "/runs/" in f"{clean}/" or "NAME" in clean:
        return True
    return any(ROOT.glob(clean))


def prose(path: Path) -> str:
    """A page, or the docstrings and comments of a source file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    comments = re.findall(r"#.*", text)
    return "\n".join([*(ast.get_docstring(node, clean=False) or "" for node in nodes), *comments])


def page(path: Path) -> str:
    """A page, or the cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def blocks(path: Path) -> Iterator[str]:
    """The Python examples of a page."""
    yield from re.findall(r"^```python\n(.*?)^```", page(path), re.M | re.S)


def commands(pattern: re.Pattern[str], text: str) -> list[tuple[str, list[str]]]:
    """The commands of a page, which may go on in the next line, and their words."""
    whole = re.sub(r"\\\n\s*", " ", text)
    return [(name, shlex.split(rest, comments=True)) for name, rest in pattern.findall(whole)]


def known(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_reading_of_a_page_finds_what_it_names(tmp_path: Path) -> None:
    text = (
        "see phasegpt.model.gpt.GPT, `phasegpt.nowhere`, phasegpt.training.config.RunConfig.seed;\n"
        "phasegpt/model/gpt.py, conf/sweep/, tests/nothing.py, conf/*/softmax.yaml and nope.py.\n"
        "[a](docs/samplers.md#x) [b](https://x/y.md) `make test`\n"
    )
    assert [resolves(name) for name in _DOTTED.findall(text)] == [True, False, True]
    assert [there(path) for path in _PATH.findall(text)] == [True, True, False, True, True]
    assert _BARE.findall(text) == ["nope.py"]
    assert _LINK.findall(text) == ["docs/samplers.md", "https://x/y.md"]
    assert _MAKE.findall(text) == ["test"]
    text = (
        "    python -m phasegpt.train a=1 \\\n      'b=c d'  # e\n`python -m phasegpt.export f=2`"
    )
    assert commands(_COMMAND, text) == [("train", ["a=1", "b=c d"]), ("export", ["f=2"])]
    module = tmp_path / "m.py"
    module.write_text('"""a.b"""\nx = "no"\ndef f():\n    """c"""  # d\n')
    assert prose(module).split() == ["a.b", "c", "#", "d"]
    assert len(PAGES) > 10 and len(SOURCES) > 150


@pytest.mark.parametrize("path", PAGES, ids=known)
def test_a_page_names_what_is_there(path: Path) -> None:
    text = page(path)
    if path.name == "renamed.md":  # the first column of its tables is what is no longer there
        text = re.sub(r"^\|.*?\|", "|", text, flags=re.M)
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    assert [name for name in _DOTTED.findall(text) if not resolves(name)] == []
    assert [found for found in _PATH.findall(text) if not there(found)] == []
    assert set(_BARE.findall(text)) - bare_names() == set()
    assert set(_MAKE.findall(text)) <= targets
    links = [link for link in _LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    for block in blocks(path):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("phasegpt"):
                for alias in node.names:
                    assert resolves(f"{node.module}.{alias.name}")


#: Mechanisms that a reader is to make, and all but the first choice of a sweep.
_MINE = re.compile(r"(?<=^attention=)(?:foo|my_mechanism|my_package\.my_module)$")
_OTHERS = re.compile(r",(?![^[{]*[]}]).*")


@pytest.mark.parametrize("path", [p for p in PAGES if _COMMAND.search(page(p))], ids=known)
def test_the_commands_of_a_page_compose(path: Path) -> None:
    for name, words in commands(_COMMAND, page(path)):
        words = [
            _MINE.sub("kuramoto", w) for w in words if not w.startswith(("-", "hydra.", "..."))
        ]
        if "+sweep=leaderboard" in words:
            Leaderboard.of(["task=copying", *words[1:]])
            continue
        words = [_OTHERS.sub("", w.replace("glob(*)", "baseline")) for w in words]
        if name == "train":
            run_config(compose(words))
        else:
            section = getattr(importlib.import_module(f"phasegpt.{name}"), f"{name.title()}Config")
            section.parse(plain(compose(words, config_name=name)))


def test_the_options_of_a_script_in_a_page_are_its_options() -> None:
    unknown = [
        f"{known(path)}: {script} {word}"
        for path in PAGES
        for script, words in commands(_SCRIPT, page(path))
        for word in words
        if word.startswith("--")
        and not re.search(f'"(--)?{word[2:]}"', (ROOT / script).read_text())
    ]
    assert unknown == []


def test_the_readme_has_at_most_900_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    words = (re.sub(r"[^\w\- ]", "", h.lower()) for h in re.findall(r"^#+ +(.*?) *$", text, re.M))
    return {name.replace(" ", "-") for name in words}


def test_a_link_into_a_page_leads_to_a_heading_of_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`: (c)\n```bash\n# no heading\n```\n## D-e 1\n")
    assert anchors(page) == {"a-b-c", "d-e-1"}
    wrong = []
    for path in PAGES:
        for link, anchor in _ANCHOR.findall(path.read_text(encoding="utf-8")):
            target = path.parent / link if link else path
            if "://" not in link and target.suffix == ".md" and anchor not in anchors(target):
                wrong.append(f"{known(path)}: {link}#{anchor}")
    assert wrong == []


def module(path: str) -> Any:
    """A module that is in no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_navigation_of_the_site_reaches_every_page_once() -> None:
    pages = module("docs/pages.py")  # which needs no Sphinx
    reached = [page for section in pages.navigation().values() for page in section]
    for page in reached:  # grows as it is read
        reached += pages.below(page)
    scripts = [*ROOT.glob("examples/*.py"), *(ROOT / "phasegpt").rglob("__init__.py")]
    notebooks = ROOT.glob("docs/tutorials/*.ipynb")
    first = {"README.md", "docs/README.md"}
    assert set(reached) | first == {known(path) for path in (*PAGES, *scripts, *notebooks)} | {
        "CHANGELOG.md"
    }
    assert len(reached) == len(set(reached))


def test_the_picture_of_the_house_is_of_todays_imports() -> None:
    drawn = module("scripts/picture_house.py")
    graph = drawn.imports(ROOT / "phasegpt")
    floors = drawn.floors(graph)
    assert floors["core"] < floors["phase"] < floors["attention"] < floors["commands"]
    assert drawn.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()})["a"] == {"b"}
    with Image.open(ROOT / "docs/house.png") as picture:
        assert picture.info["Description"] == drawn.shown(drawn.direct(graph))


def test_a_page_shows_no_picture_of_another_server() -> None:
    shown = r"!\[[^\]]*\]\((?:https?:)?//|<(?:img|script|iframe|link)\b"
    assert [known(path) for path in PAGES if re.search(shown, path.read_text())] == []


def test_comments_and_docstrings_name_what_is_there() -> None:
    wrong = []
    for path in SOURCES:
        text = prose(path)
        names = [name for name in _DOTTED.findall(text) if not resolves(name)]
        paths = [found for found in _PATH.findall(text) if not there(found)]
        bare = sorted(set(_BARE.findall(text)) - bare_names())
        wrong += [f"{known(path)}: {found}" for found in (*names, *paths, *bare)]
    assert wrong == []


def test_the_map_of_contributing_has_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "phasegpt").glob("*/__init__.py")}
    assert {name for name in folders if f"`phasegpt/{name}/" not in text} == set()
