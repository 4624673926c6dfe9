"""A run that was copied by any means is found whole: the links lost, made files, or made text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import TEXT, make_run, text_data

from phasegpt.core.errors import CheckpointError
from phasegpt.model import checkpoint, loading


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    """A run folder, best at step 10 and last at step 20, that no test writes to."""
    folder = tmp_path_factory.mktemp("copied")
    run = make_run(folder / "run", *text_data(folder, TEXT))
    (run / "run.json").write_text(json.dumps({"best": {"step": 10, "val/ppl": 2.0}}))
    return run


def kept(run: Path) -> None:
    """As cp -a, rsync -a."""


def files(run: Path) -> None:
    """As scp -r, cp -rL: files in place of the links, without a .sha256 of their own."""
    for name, step in (("best.ckpt", 10), ("last.ckpt", 20)):
        link = run / "checkpoints" / name
        link.unlink()
        shutil.copy(run / "checkpoints" / f"step-{step:08d}.ckpt", link)


def gone(run: Path) -> None:
    """As most buckets."""
    for name in ("best.ckpt", "last.ckpt"):
        (run / "checkpoints" / name).unlink()


def text(run: Path) -> None:
    """As zip without links, git on Windows."""
    for name, target in (("best.ckpt", "step-00000010.ckpt"), ("last.ckpt", "step-00000020.ckpt")):
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).write_text(target)


def absolute(run: Path) -> None:
    """Links to where the run was on another machine."""
    for name, target in (("best.ckpt", "step-00000010.ckpt"), ("last.ckpt", "step-00000020.ckpt")):
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).symlink_to(f"/elsewhere/run/checkpoints/{target}")


@pytest.mark.parametrize("lose", [kept, files, gone, text, absolute])
def test_best_and_last_are_found_in_a_copy(
    whole: Path, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    run = shutil.copytree(whole, tmp_path / "copy", symlinks=True)
    lose(run)
    for path in (run, run / "checkpoints"):
        path.chmod(0o555)  # finding writes nothing
    directory = run / "checkpoints"
    try:
        assert checkpoint.find(run, "best") == directory / "step-00000010.ckpt"
        assert checkpoint.find(run, "last") == directory / "step-00000020.ckpt"
        assert checkpoint.last(directory) == directory / "step-00000020.ckpt"
        if lose is not gone:
            assert loading.load_run(directory / "best.ckpt").path.name == "step-00000010.ckpt"
    finally:
        for path in (run, run / "checkpoints"):
            path.chmod(0o755)


def test_without_links_the_newest_file_is_the_last_and_no_other_stands_in(
    whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "copy", symlinks=True)
    gone(run)
    newest = run / "checkpoints" / "step-00000020.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])  # the copy was cut
    with pytest.raises(CheckpointError, match=r"00020.*is damaged.*is whole: .*step-00000010"):
        loading.load_run(run, "last")
    newest.with_name("step-00000020.ckpt.sha256").unlink()
    with pytest.raises(CheckpointError, match=r"has no step-00000020\.ckpt\.sha256 beside it"):
        loading.load_run(run, "last")


def test_a_copy_without_its_step_file_is_used_by_the_hash_beside_it(
    whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "copy", symlinks=True)
    files(run)
    for path in (run / "checkpoints").glob("step-*.ckpt"):
        path.unlink()
    assert loading.load_run(run, "best").path.name == "best.ckpt"
    assert loading.load_run(run, "last").path.name == "last.ckpt"


def test_a_best_checkpoint_that_is_missing_is_not_replaced_in_silence(
    whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "copy", symlinks=True)
    gone(run)
    (run / "checkpoints" / "step-00000010.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000010.*is missing.*which=last"):
        checkpoint.find(run, "best")
    assert checkpoint.find(run, "last").name == "step-00000020.ckpt"
