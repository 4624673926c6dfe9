"""The tests themselves: short names that are claims, and programs in strings that are programs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mutations
import pytest
from helpers import ROOT

TREES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
LONGEST = 69


def test_the_name_of_a_test_has_under_70_characters():
    named = [
        f"{path.name}: {node.name} has {len(node.name)}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        if node.name.startswith("test_") and len(node.name) > LONGEST
    ]
    assert not named, "\n".join(named)


def test_every_deliberate_mistake_has_one_place_and_its_tests():
    for mistake in mutations.MISTAKES.values():
        mutations.place_of(mistake.text, ROOT)
        assert all((ROOT / path).exists() for path in mistake.tests)


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string; a name stands for what an f-string puts in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "x" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        else:
            yield from strings(node)


#: Python in strings: several statements, the first of which imports something.
PROGRAM = re.compile(r"\s*(import|from) \w[\w., ]*( import |[;\n])")
PROGRAMS = [(path, s) for path, tree in TREES.items() for s in strings(tree) if PROGRAM.match(s)]


@pytest.mark.parametrize(("path", "text"), PROGRAMS, ids=lambda x: getattr(x, "name", ""))
def test_a_program_in_a_string_compiles(path: Path, text: str):
    compile(text, str(path), "exec")


def test_programs_in_strings_are_found():
    assert {"test_public_api.py", "test_cpu_build.py"} <= {path.name for path, _ in PROGRAMS}
