"""Caches: shared by processes and by users, and never a way to run another user's code."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phasegpt.core import diskcache
from phasegpt.core.errors import ConfigError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users")


def build(folder: Path) -> None:
    (folder / "a").write_bytes(b"built")


def as_user(uid: int, act: Any) -> bool:
    """Whether act() returns true for another user, in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            os.setgid(uid)
            os.setuid(uid)
            os._exit(0 if act() else 3)
        except BaseException:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in which everybody may write, as /tmp is; those of pytest are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


@needs_root
def test_what_one_user_built_another_can_read(shared: Path) -> None:
    target = shared / "x"
    assert as_user(1234, lambda: diskcache.build_once(target, build) is None)
    assert target.stat().st_uid == 1234
    assert as_user(1235, lambda: diskcache.build_once(target, build) is None)
    assert as_user(1235, lambda: (target / "a").read_bytes() == b"built")


@needs_root
def test_a_lock_that_another_user_left_can_be_taken(shared: Path) -> None:
    def fails(folder: Path) -> None:
        raise RuntimeError

    def first() -> bool:
        with pytest.raises(RuntimeError):
            diskcache.build_once(shared / "x", fails)
        return True

    assert as_user(1234, first)
    assert (shared / "x.lock").exists()
    assert as_user(1235, lambda: diskcache.build_once(shared / "x", build) is None)


@needs_root
def test_two_users_build_in_one_cache(shared: Path) -> None:
    for uid, name in ((1234, "a"), (1235, "b")):
        folder = shared / "tokens" / name
        assert as_user(uid, lambda f=folder: diskcache.build_once(f, build) is None)
    assert (shared / "tokens" / "b").stat().st_uid == 1235


def test_what_killed_builders_left_is_swept_and_what_is_built_is_not(tmp_path: Path) -> None:
    for name in ("x.tmp-dead", "other.tmp-dead", "held.tmp-alive"):
        (tmp_path / name).mkdir()
    with diskcache._lock(tmp_path / "held"):
        diskcache.build_once(tmp_path / "x", build)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"x", "held.tmp-alive"}


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_what_was_built_only_its_owner_can_write(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        diskcache.build_once(tmp_path / "x", build)
    finally:
        os.umask(before)
    for path in (tmp_path / "x", tmp_path / "x" / "a"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "phasegpt" / "kernels" / "key" / "a"
    diskcache.build_once(file.parent, build)
    diskcache.check_owner(file)
    return file


@needs_root
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_planted_file_is_not_run(kept: Path, level: int) -> None:
    os.chown([kept, *kept.parents][level], 1234, 1234)
    with pytest.raises(PermissionError, match="belongs to another user"):
        diskcache.check_owner(kept)


@pytest.mark.parametrize(("level", "bits"), [(0, 0o020), (0, 0o002), (1, 0o020), (2, 0o002)])
def test_a_file_that_others_could_change_is_not_run(kept: Path, level: int, bits: int) -> None:
    place = [kept, *kept.parents][level]
    place.chmod(place.stat().st_mode | bits)
    with pytest.raises(PermissionError, match="can be changed by other users"):
        diskcache.check_owner(kept)


def test_a_cache_of_our_group_may_be_used(kept: Path) -> None:
    kept.parents[1].chmod(0o775)  # umask 002, where every user has a group of his own
    kept.parents[2].chmod(0o1777)
    diskcache.check_owner(kept)


@pytest.mark.parametrize("home", ["", "relative"])
def test_without_a_home_the_remedy_is_named(monkeypatch: Any, home: str) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path).replace("~", home))
    with pytest.raises(ConfigError, match=r"set HOME, XDG_CACHE_HOME or data\.cache_dir"):
        diskcache.cache_dir()
    assert diskcache.cache_dir("/there") == Path("/there")
    with pytest.raises(ConfigError, match="NUL"):
        diskcache.cache_dir("a\0b")
