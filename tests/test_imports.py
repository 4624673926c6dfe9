"""Imports run downward only, heavy or optional packages stay where they belong.

LAYERS is the map of the package. A new module gets its number there.
"""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT
from hydra import initialize_config_dir
from hydra._internal.utils import get_args, get_args_parser
from hydra.core.global_hydra import GlobalHydra

import phasegpt
from phasegpt.core.composition import CONF_DIR, help_page

PACKAGE = ROOT / "phasegpt"

#: Every folder and module of phasegpt by layer: a file imports its own folder and lower layers.
LAYERS = {
    0: "core",
    1: "phase",
    2: "ops",
    3: "attention data",
    4: "model",
    5: "samplers",
    6: "training",
    7: "analysis",
    8: "interpretation",
    9: "cli",
    10: "train evaluate generate interpret export",
    11: "check",
}
LAYER = {name: number for number, names in LAYERS.items() for name in names.split()}


class Import(NamedTuple):
    """One import statement in `source`, resolved to the module it reaches."""

    source: str
    target: str
    line: int
    top_level: bool  # runs when the module is imported
    typing: bool  # under TYPE_CHECKING: never runs


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
#: What `from phasegpt import NAME` reaches when NAME is no module (phasegpt/__init__.py).
LAZY = {**phasegpt._HOMES, "__version__": "phasegpt"}


def walk(node: ast.AST, top: bool, typing: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield child, top and not function, typing or guarded
        yield from walk(child, top and not function, typing or guarded)


def imports_of(name: str, tree: ast.Module) -> Iterator[Import]:
    for node, top, typing in walk(tree, True, False):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                lazy = LAZY.get(alias.name, base) if base == "phasegpt" else base
                targets.append(full if full in FILES else lazy)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                targets = [node.args[0].value]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "phasegpt":
            # `import phasegpt; phasegpt.build(...)` reaches as far as `from phasegpt import build`.
            targets = [LAZY.get(node.attr, f"phasegpt.{node.attr}")]
        for target in targets:
            yield Import(name, target, getattr(node, "lineno", 0), top and not typing, typing)


IMPORTS = [found for name, tree in TREES.items() for found in imports_of(name, tree)]


def layer(module: str) -> int | None:
    """The layer of a module of ours; None for the root, which imports nothing by itself."""
    parts = module.split(".")
    return None if len(parts) == 1 else LAYER[parts[1]]


def where(found: Import) -> str:
    return f"{found.source}:{found.line} imports {found.target}"


def test_the_reading_of_imports_sees_every_form() -> None:
    tree = ast.parse(
        "import phasegpt\n"
        "from phasegpt import ops, build\n"
        "if TYPE_CHECKING:\n    from phasegpt.model.gpt import GPT\n"
        "def f():\n    import hydra.core\n    phasegpt.load()\n"
        "class A:\n    import wandb\n"
        "try:\n    import datasets\nexcept ImportError:\n    pass\n"
        "importlib.import_module('phasegpt.train')\n"
    )
    found = {(i.target, i.top_level, i.typing) for i in imports_of("phasegpt.phase", tree)}
    assert found == {
        ("phasegpt", True, False),
        ("phasegpt.ops", True, False),
        ("phasegpt.training.config", True, False),
        ("phasegpt.model.gpt", False, True),
        ("hydra.core", False, False),
        ("phasegpt.model.loading", False, False),
        ("wandb", True, False),
        ("datasets", True, False),
        ("phasegpt.train", True, False),
    }
    assert len(FILES) > 20
    assert len(IMPORTS) > 100


def test_every_module_has_a_layer() -> None:
    names = {name.split(".")[1] for name in FILES if name != "phasegpt"}
    assert names == set(LAYER), f"LAYERS and the tree differ in {sorted(names ^ set(LAYER))}"


def test_a_module_imports_no_higher_layer() -> None:
    upward = [
        where(found)
        for found in IMPORTS
        if found.source != "phasegpt"
        and found.target.split(".")[0] == "phasegpt"
        and (layer(found.target) or 0) > (layer(found.source) or 0)
    ]
    assert upward == []


def test_no_imports_go_in_a_circle() -> None:
    edges: dict[str, set[str]] = {name: set() for name in FILES}
    for found in IMPORTS:
        if not found.typing and found.target in FILES and found.source != "phasegpt":
            edges[found.source].add(found.target)
    for module in FILES:  # its package's __init__ runs first
        edges[module].discard(module)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for target in edges[module]:
            visit(target, (*path, module))
        done.add(module)

    for module in FILES:
        visit(module, ())


def test_subpackages_of_one_layer_do_not_know_each_other() -> None:
    packages = {path.parent.name for path in FILES.values()} - {"phasegpt"}
    crossing = []
    for found in IMPORTS:
        a, b = (name.split(".")[1:2] for name in (found.source, found.target))
        ours = found.target.startswith("phasegpt.") and a and a != b
        if ours and a[0] in packages and b[0] in packages and LAYER[a[0]] == LAYER[b[0]]:
            crossing.append(where(found))
    assert crossing == []


def users(*packages: str, top_level: bool = False) -> set[str]:
    return {
        found.source
        for found in IMPORTS
        if found.target.split(".")[0] in packages and (found.top_level or not top_level)
    }


def test_only_commands_sweeps_and_composition_know_hydra() -> None:
    commands = {f"phasegpt.{name}" for name in ("cli", *LAYERS[10].split())}
    assert users("hydra", "omegaconf") == commands | {
        "phasegpt.core.composition",
        *(f"phasegpt.training.{name}" for name in ("sweeps", "planning", "leaderboard")),
        "phasegpt.training.sweep_resources",
    }


def test_composition_imports_hydra_inside_functions_alone() -> None:
    assert "phasegpt.core.composition" not in users("hydra", "omegaconf", top_level=True)


def test_oscillators_are_integrated_through_one_door() -> None:
    inside = [
        where(found)
        for found in IMPORTS
        if found.target.startswith("phasegpt.ops.") and not found.source.startswith("phasegpt.ops")
    ]
    assert inside == []
    assert {i.source for i in IMPORTS if i.target == "phasegpt.ops"} >= {
        "phasegpt.attention.kuramoto",
        "phasegpt.attention.phase_sync",
    }


def test_one_module_imports_transformers_and_is_imported_where_it_is_used() -> None:
    # Its classes are transformers' own, so it imports them as it is imported itself.
    home = "phasegpt.model.huggingface"
    assert users("transformers") == users("transformers", top_level=True) == {home}
    assert [where(found) for found in IMPORTS if found.target == home and found.top_level] == []


@pytest.mark.parametrize(
    "package",
    ["wandb", "wandb_workspaces", "tensorboard", "datasets", "tiktoken", "matplotlib", "plotly",
     "scipy", "statsmodels", "pandas", "tokenizers", "huggingface_hub", "pyarrow"],
)  # fmt: skip
def test_an_optional_or_slow_package_is_imported_where_it_is_used(package: str) -> None:
    assert users(package, top_level=True) == set()


def after(code: str) -> tuple[set[str], str]:
    """Top-level packages in sys.modules after `code`, in a fresh interpreter; what it printed."""
    show = f"{code}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *printed, modules = done.stdout.splitlines()
    return set(modules.split()), "\n".join(printed)


HEAVY = {"torch", "numpy", "pytorch_lightning", "transformers", "wandb", "datasets", "matplotlib"}


def test_import_phasegpt_loads_neither_torch_nor_hydra() -> None:
    loaded, _ = after("import phasegpt; phasegpt.__version__; dir(phasegpt)")
    assert "phasegpt" in loaded
    assert not loaded & (HEAVY | {"hydra", "omegaconf"})


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("train", "+experiment=quickstart"),
        ("evaluate", "checkpoint=RUN"),
        ("generate", "checkpoint=RUN"),
        ("interpret", "checkpoint=RUN"),
        ("export", "checkpoint=RUN"),
        ("check", "my_package.my_module"),
    ],
)
def test_a_command_answers_help_with_a_page_before_torch_is_loaded(
    command: str, usage: str
) -> None:
    run = f"runpy.run_module('phasegpt.{command}', run_name='__main__')"
    loaded, page = after(
        f"import runpy, sys\nsys.argv = ['{command}.py', '--help']\n"
        f"try:\n    {run}\nexcept SystemExit as end:\n    assert not end.code\n"
    )
    assert command == "check" or "hydra" in loaded
    assert not loaded & HEAVY
    assert f"python -m phasegpt.{command} {usage}" in page
    assert "== Configuration groups ==" not in page
    assert len(page.splitlines()) < 50
    groups = [line for line in page.splitlines() if re.match(r"[\w/]+: ", line)]  # of any length
    assert all(len(line) <= 110 for line in page.splitlines() if line not in groups)


@pytest.mark.parametrize("name", ["config", "generate"])
def test_the_help_page_is_the_one_that_hydra_prints(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = help_page(name)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if name != "config":  # that page alone has the groups, and listing them takes a second
            monkeypatch.setattr(hydra, "format_config_groups", lambda *_: "")
        hydra.app_help(name, get_args_parser(), get_args([]))
    assert capsys.readouterr().out == page + "\n"


def test_composing_a_configuration_loads_no_torch() -> None:
    loaded, _ = after("import phasegpt; phasegpt.compose(['+experiment=quickstart'])")
    assert not loaded & HEAVY


def test_reading_runs_and_judging_texts_load_no_torch() -> None:
    loaded, printed = after(
        "from phasegpt.analysis import study, tables, texts, verdicts\n"
        "from phasegpt.data import ngram\n"
        "from phasegpt.training import jobs, run_folder\n"
        "print(run_folder.read_phases('.'))\n"
        "print(texts.NGramJudge('abababab').nats_per_char('aba') < 1)\n"
    )
    assert printed.split() == ["{}", "True"]
    assert not loaded & (HEAVY - {"numpy"} | {"hydra", "scipy", "pandas"})


def test_what_the_package_offers_is_there() -> None:
    for name in phasegpt.__all__:
        assert getattr(phasegpt, name) is not None
    assert set(phasegpt.__all__) == set(LAZY) | {"ops"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = phasegpt.nothing


@pytest.mark.parametrize("first", [name for name in phasegpt.__all__ if name != "__version__"])
def test_a_name_of_the_package_is_the_same_after_any_other_and_any_module(first: str) -> None:
    wanted = getattr(phasegpt, first)
    for name in (*phasegpt.__all__, first):
        getattr(phasegpt, name)
        assert getattr(phasegpt, first) is wanted
    for module in FILES:
        if module not in ("phasegpt.ops.__main__",):
            importlib.import_module(module)
        assert getattr(phasegpt, first) is wanted, module
    modules = {m.split(".")[1] for m in FILES if m != "phasegpt"}
    assert not modules & (set(phasegpt.__all__) - {"ops"})  # such a module would take its place
