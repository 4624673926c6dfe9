"""How the CPU kernels are built: once for each source, compiler and processor, or why not."""

import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import need_compiler

from phasegpt.ops import cpu


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu._attempt.cache_clear()
    yield
    cpu._attempt.cache_clear()


@pytest.fixture
def small(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A source that compiles at once; returns how often it was compiled."""
    need_compiler()
    real = " ".join(cpu._compiler().command)
    source, log, compiler = tmp_path / "small.cpp", tmp_path / "log", tmp_path / "compiler"
    source.write_text("\n".join(f'extern "C" void {name}() {{}}' for name in cpu._SIGNATURES))
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(cpu, "SOURCE", source)
    return lambda: sum(" -o " in line for line in log.read_text().splitlines())


def test_the_second_process_takes_the_library_from_the_cache(small: Callable[[], int]) -> None:
    for _ in range(2):
        cpu._attempt.cache_clear()
        assert cpu.unavailable() is None
    assert small() == 1


def test_another_source_and_other_options_are_built_again(
    small: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpu.unavailable() is None
    cpu.SOURCE.write_text(cpu.SOURCE.read_text() + "\n")
    cpu._attempt.cache_clear()
    assert cpu.unavailable() is None
    monkeypatch.setattr(cpu, "FLAGS", (*cpu.FLAGS, "-g"))
    cpu._attempt.cache_clear()
    assert cpu.unavailable() is None
    header = cpu.SOURCE.with_name("other.h")
    header.write_text("// a part of the source")
    monkeypatch.setattr(cpu, "HEADERS", [*cpu.HEADERS, header])
    cpu._attempt.cache_clear()
    assert cpu.unavailable() is None
    assert small() == 4


def test_every_header_of_the_kernels_is_part_of_their_identity() -> None:
    texts = [path.read_text() for path in (cpu.SOURCE, *cpu.HEADERS)]
    included = {name for text in texts for name in re.findall(r'#include "(.*)"', text)}
    assert included == {path.name for path in cpu.HEADERS}


def test_processes_and_threads_at_once_build_once(small: Callable[[], int]) -> None:
    code = (
        "from pathlib import Path; from phasegpt.ops import cpu; import sys\n"
        "cpu.SOURCE = Path(sys.argv[1]); sys.exit(cpu.unavailable())"
    )
    command = [sys.executable, "-c", code, str(cpu.SOURCE)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: cpu.unavailable(), range(8))) == [None] * 8
    assert small() == 1


def test_a_cache_that_cannot_be_written_is_done_without(
    small: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cpu.unavailable() is None
    assert "not cached" in cpu.describe()
    assert small() == 1


def test_a_library_that_does_not_load_is_built_again_for_this_process(
    small: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpu.unavailable() is None
    copy = shutil.copytree(tmp_path / "cache", tmp_path / "copy")  # a path not loaded before
    (library,) = copy.rglob(cpu.LIBRARY)
    library.write_bytes(b"damaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy))
    cpu._attempt.cache_clear()
    assert cpu.unavailable() is None
    assert "not cached" in cpu.describe()
    assert small() == 2


def test_without_a_compiler_the_reason_says_how_to_get_one(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    reason = cpu.unavailable()
    assert reason is not None
    assert "install g++" in reason
    assert "backend=reference" in reason
    with pytest.raises(RuntimeError, match="install g\\+\\+"):
        cpu.rows_forward(
            torch.zeros(1, 1, 1, 1), torch.zeros(1, 1), torch.zeros(1, 2), 1, 0.1, False
        )


def test_a_compiler_that_is_not_there_is_named(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "CXX (/nowhere/c++) does not run" in str(cpu.unavailable())


def test_a_compiler_that_fails_is_quoted_by_its_first_error(small: Callable[[], int]) -> None:
    cpu.SOURCE.write_text("int first = wrong;\nint second = wrong;\n")
    reason = str(cpu.unavailable())
    assert "cannot compile small.cpp" in reason
    assert "error" in reason
    assert "second" not in reason
    assert "\n" not in reason


def test_the_kernels_build_in_seconds(fresh: None) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    need_compiler()
    assert cpu.unavailable() is None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 30
    assert str(Path("phasegpt", "kernels")) in cpu.describe()
