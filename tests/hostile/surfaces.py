"""Every place where something comes in, and how often it is tried."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator

import torch
from hostile.commands import entry, record, registration, setting, yaml
from hostile.damaged import checkpoint_content, export_file, hf_folder, run_file, token_cache
from hostile.inputs import argument, command_option, mapping, option
from hostile.judge import Case
from hostile.workshop import Workshop

#: Surfaces and how often each is tried.
SURFACES: tuple[tuple[Callable[[random.Random, Workshop], Case], int], ...] = (
    (option, 22),
    (command_option, 10),
    (mapping, 20),
    (argument, 20),
    (setting, 12),
    (entry, 4),
    (record, 8),
    (yaml, 4),
    (registration, 3),
    (run_file, 6),
    (checkpoint_content, 6),
    (export_file, 8),
    (token_cache, 6),
    (hf_folder, 6),
)


def cases(seed: int, numbers: Iterable[int], shop: Workshop) -> Iterator[tuple[int, Case]]:
    """The cases of these numbers; case i is a function of (seed, i) alone."""
    functions, weights = zip(*SURFACES, strict=True)
    for number in numbers:
        rng = random.Random(f"{seed}/{number}")
        torch.manual_seed(number)
        yield number, rng.choices(functions, weights)[0](rng, shop)
        shutil.rmtree(shop.folder / "rooms", ignore_errors=True)
