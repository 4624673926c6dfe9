"""Files are replaced whole or not at all; what is no file is written into; errors name the path."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from phasegpt.core import files
from phasegpt.core.errors import ConfigError, DataError, OutputError, UserError
from phasegpt.core.files import (
    check_name,
    check_output,
    read_arrays,
    read_json,
    read_text,
    write_atomic,
    write_output,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_device_is_written_into_and_stays_a_device(tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        null.open("wb").close()
    except OSError:
        null = Path("/dev/null")
    check_output(null)
    write_output(null, b"gone")
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_pipe_is_written_into_where_somebody_reads(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_output(pipe)
    with pytest.raises(OutputError, match=r"pipe.*other end"):
        write_output(pipe, b"nobody reads")
    got: list[bytes] = []
    content = b"x" * 200_000  # more than a pipe holds
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)

    def read() -> None:
        with open(reader, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=read)
    writer = os.open(pipe, os.O_WRONLY)  # keeps the reader from an early end
    thread.start()
    write_output(pipe, content)
    os.close(writer)
    thread.join(10)
    assert got == [content]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_or_a_socket_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "socket"
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
        for target in (tmp_path, path):
            for write in (check_output, lambda p: write_output(p, b"x")):
                with pytest.raises(UserError, match="cannot write"):
                    write(target)
        assert path.is_socket()


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("there/real.json")
    for content in (b"first", b"second"):  # a link to nothing, then to a file
        write_atomic(link, content)
        assert link.is_symlink()
        assert (tmp_path / "there/real.json").read_bytes() == content
    assert os.listdir(tmp_path / "there") == ["real.json"]


def test_the_mode_is_kept_and_a_new_file_obeys_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "new", b"x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o640
    (tmp_path / "new").chmod(0o604)
    write_atomic(tmp_path / "new", b"y")
    assert mode(tmp_path / "new") == 0o604


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_leaves_a_file_to_its_owner(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"x")
    os.chown(tmp_path / "a", 1234, 1234)
    write_atomic(tmp_path / "a", b"y")
    assert (tmp_path / "a").stat().st_uid == 1234


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_or_broken_disk_is_one_line_with_the_path(
    tmp_path: Path, monkeypatch: Any, number: int, call: str
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(OutputError) as error:
            write_atomic(path, b"new")
    assert str(path) in str(error.value) and os.strerror(number) in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_writer_left_is_swept_away_at_the_next_write(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    stale = tmp_path / f".a.json.{dead.pid}-{dead.pid}.tmp"
    alive = tmp_path / f".a.json.{os.getppid()}-1.tmp"
    other = tmp_path / ".b.json.1.tmp"
    for path in (stale, alive, other):
        path.write_bytes(b"half")
    write_atomic(tmp_path / "a.json", b"whole")
    assert not stale.exists()
    assert alive.exists() and other.exists()


def test_a_check_of_an_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    check_output(tmp_path / "old")
    check_output(tmp_path / "deep" / "er" / "new.json")
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize(
    "path",
    ["/proc/x.json", "/dev/null/x.json", "T/file/x.json", "T/" + "n" * 300, "T/a/" + "n" * 300],
)
def test_an_output_that_cannot_be_written_is_told_before(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    target = Path(path.replace("T", str(tmp_path)))
    with pytest.raises(ConfigError, match="cannot write"):
        check_output(target)
    with pytest.raises(OutputError, match="cannot write"):
        write_output(target, b"x")
    assert set(os.listdir(tmp_path)) <= {"file", "a"}


def test_a_nul_in_a_path_is_an_error_of_ours() -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        check_output(Path("a\0b"))
    with pytest.raises(OutputError, match="cannot write"):
        write_output(Path("a\0b"), b"")
    with pytest.raises(DataError, match="cannot read"):
        read_text("a\0b")


@pytest.mark.parametrize(
    "name",
    ["../../evil", "a/b", "a\\b", "a\0b", "n" * 300, ".hidden", "..", "", " a", "a\nb", "\u202ea"],
)
def test_a_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name=.* up to 120"):
        check_name(name, "name")
    assert check_name("k0.5-seed 1 \u00e9", "name") == "k0.5-seed 1 \u00e9"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text".encode("utf-16"), "UTF-16.*iconv -f utf-16"),
        ("text".encode("utf-32"), "UTF-32.*iconv -f utf-32"),
        (b"\x1f\x8b\x08text", "gzip.*gunzip -k"),
        (b"BZh9", "bzip2.*bunzip2"),
        (b"PK\x03\x04", "zip archive.*unzip"),
        (b"(\xb5/\xfd", "zstd.*unzstd"),
        (b"caf\xe9", "not UTF-8: byte 0xe9 at offset 3"),
    ],
)
def test_what_is_no_text_is_named_with_the_remedy(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_text(tmp_path / "a")


def test_reading_a_pipe_or_a_folder_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "pipe", "pipe"), (tmp_path, "a folder")):
        for read in (read_text, read_json, read_arrays):
            with pytest.raises(DataError, match=says):
                read(path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"", b'{"a": ', b"3", b"null"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_temporary_names_fit_beside_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("\u00e9" * 127)  # 254 bytes
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"
    assert files.expand("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
