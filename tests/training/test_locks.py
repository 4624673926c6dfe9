"""The lock of a run belongs to the process that writes it, and to no reader or worker."""

import fcntl
import os
import threading
import time

import pytest

from phasegpt.core.errors import CheckpointError
from phasegpt.training.run_folder import RunFolder, held


def test_a_reader_that_polls_refuses_no_start(tmp_path):
    folder = RunFolder(tmp_path)
    folder.update(status="running")
    folder.close()
    ended = threading.Event()

    def poll():
        while not ended.is_set():
            held(tmp_path)

    readers = [threading.Thread(target=poll) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(200):
            RunFolder(tmp_path).close()
    finally:
        ended.set()
        for reader in readers:
            reader.join()


def test_a_start_waits_for_a_reader_that_holds_the_lock_for_an_instant(tmp_path):
    with open(tmp_path / ".lock", "w") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        release = threading.Timer(0.1, fcntl.flock, (reader, fcntl.LOCK_UN))
        release.start()
        RunFolder(tmp_path).close()
        release.join()


def test_a_run_that_is_written_is_held_and_refused_to_a_second_writer(tmp_path):
    folder = RunFolder(tmp_path)
    assert held(tmp_path)
    with pytest.raises(CheckpointError, match="another process"):
        RunFolder(tmp_path)
    folder.update(status="running")
    folder.close()
    assert not held(tmp_path)


def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(tmp_path, monkeypatch):
    # Two started at once; the first ends with nothing recorded, and so removes the file.
    take = fcntl.flock

    def removed_first(lock, how):
        (tmp_path / ".lock").unlink()
        take(lock, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with pytest.raises(CheckpointError, match="another process"):
        RunFolder(tmp_path)


def test_a_forked_worker_does_not_hold_the_lock_of_a_run_that_ended(tmp_path):
    folder = RunFolder(tmp_path)
    folder.update(status="running")
    worker = os.fork()
    if not worker:  # a loader's worker, which outlives the run by a while
        time.sleep(60)
        os._exit(0)
    try:
        folder.close()
        RunFolder(tmp_path).close()
    finally:
        os.kill(worker, 9)
        os.waitpid(worker, 0)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write into .*file.*choose another folder"):
        RunFolder(tmp_path / "file")
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot write into"):
        RunFolder(tmp_path / "run")
