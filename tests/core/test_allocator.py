"""Freed memory is kept for the next step, where glibc is asked to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import phasegpt
from phasegpt.core.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")

#: Pages taken anew by each of ten tensors of 100 MB, each freed before the next. Until the heap has
#: found room for them, their places differ.
FAULTS = """
import resource, sys, torch
from phasegpt.core.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
def use(): torch.full((25_000_000,), 1.0)
for _ in range(30): use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): use()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def told(word: str, **env: str) -> list[str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word], env=mine | env, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_a_kept_block_takes_no_page_twice():
    asked, kept = told("keep")
    (taken,) = told("leave")
    assert asked == "True" and float(taken) > 100 and float(kept) < 0.02 * float(taken)


def test_what_the_environment_says_of_allocation_stays():
    assert told("keep", MALLOC_ARENA_MAX="1")[0] == "False"


def test_training_asks(tmp_path: Path):
    keep_freed_memory.cache_clear()
    words = ["model=nano", "attention=softmax", "data=synthetic", "trainer=cpu", "compile=false"]
    phasegpt.fit(phasegpt.compose([*words, "trainer.max_steps=1"]), tmp_path)
    assert keep_freed_memory.cache_info().currsize == 1
