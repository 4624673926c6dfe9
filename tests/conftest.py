"""What the tests share: small models, real text as ids, poisoned inputs, the `gpu` marker."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Threads that wait asleep: spinning ones make tiny models many times slower on a busy machine.
# It changes no number. OpenMP reads it once, so it is set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from helpers import TEXT, make_run, play, text_data
from torch import Tensor

from phasegpt.data.config import DataConfig
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT

VOCAB = 65  # Shakespeare's characters; TEXT has fewer


def pytest_collection_finish() -> None:
    # Half a million objects of imported packages are never garbage: no collection looks at them.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest files first, so that no worker is left alone with one of them.
    items.sort(key=lambda item: item.path.parent.name not in ("training", "tests"))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device and none is visible")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _short_trainings() -> Iterator[None]:
    """Trainings in the tests' process draw no picture and time one product: most of their cost.

    `picture` draws it after all; commands in processes of their own do all that a user's do.
    """
    if "phasegpt.training.run" not in sys.modules:  # no module of these tests trains
        yield
        return
    from phasegpt.training import run, summary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "_MEASURED_S", 0.0)
        patch.setattr(
            run, "draw_curves", lambda _, folder, __: (folder.path / "curves.png").touch()
        )
        yield


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """curves.png is drawn."""
    from phasegpt.training import run, run_figure

    monkeypatch.setattr(run, "draw_curves", run_figure.draw_curves)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for data=text with a synthetic play."""
    return play(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two checkpoints, of TEXT in characters."""
    folder = tmp_path_factory.mktemp("run")
    return make_run(folder / "run", *text_data(folder, TEXT))


@pytest.fixture
def text_ids() -> Callable[[int, int], Tensor]:
    """text_ids(B, T): character ids of real English, every row another stretch of it."""
    alphabet = sorted(set(TEXT))
    assert len(alphabet) <= VOCAB
    ids = torch.tensor([alphabet.index(c) for c in TEXT])

    def cut(batch: int, time: int) -> Tensor:
        starts = torch.linspace(0, len(ids) - time, batch).long()
        return torch.stack([ids[s : s + time] for s in starts])

    return cut


@pytest.fixture
def data_config(tmp_path: Path) -> Callable[..., DataConfig]:
    """data_config("text", path=...): a DataConfig whose cache is a folder of this test."""

    def make(corpus: str = "synthetic", **keys: Any) -> DataConfig:
        keys = {"batch_size": 4, "characters": 10_000, "cache_dir": str(tmp_path / "cache"), **keys}
        return DataConfig(corpus=corpus, **keys)

    return make


@pytest.fixture
def make_model() -> Callable[..., GPT]:
    """make_model("kuramoto", layers=(1,), n_embd=32, coupling=2.0): a small GPT in eval mode.

    Words of GPTConfig set the sizes, all others are options of the attention.
    """
    sizes = {
        **{"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 64, "vocab_size": VOCAB},
        "dropout": 0.0,
    }

    def make(
        attention: str = "softmax",
        *,
        layers: tuple[int, ...] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **words: Any,
    ) -> GPT:
        config = sizes | {k: v for k, v in words.items() if k in GPTConfig.__dataclass_fields__}
        options = {k: v for k, v in words.items() if k not in config}
        every = tuple(range(config["n_layer"]))
        config = GPTConfig(
            **config,
            attention=attention,
            attention_layers=every if layers is None else layers,
            attention_options=options,
        )
        return GPT(config, seed=seed).eval().to(dtype)

    return make


@pytest.fixture
def roughen() -> Callable[..., Any]:
    """roughen(module): move every parameter off its initial value, so that no bias is 0, no gain
    1 and no two heads agree; what equals another thing then does so for any weights."""

    from phasegpt.model import contract

    return contract.roughen


@pytest.fixture
def poison() -> Callable[[Tensor, int, int], Tensor]:
    """poison(x, dim, start): a copy with NaN from index `start` on along `dim`."""

    def spoil(x: Tensor, dim: int, start: int) -> Tensor:
        return x.index_fill(dim, torch.arange(start, x.shape[dim]), float("nan"))

    return spoil
