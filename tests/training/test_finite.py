"""Gradients that are not finite: found late, without a wait for the device at every step."""

from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from helpers import TWO_STEPS
from torch.utils._python_dispatch import TorchDispatchMode

import phasegpt
from phasegpt.core.errors import Collapsed
from phasegpt.model import checkpoint
from phasegpt.training.finite import MOST_STEPS, Failed, FiniteWatch
from phasegpt.training.lit import LitGPT
from phasegpt.training.run_folder import read_record

LATE = [*TWO_STEPS, "trainer.log_every_n_steps=100", "trainer.max_steps=6",
        "trainer.val_check_interval=6"]  # fmt: skip


class Reads(TorchDispatchMode):
    """Counts what waits for a GPU: item(), float(), bool()."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = function._schema.name
        self.count += name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
        return function(*args, **(kwargs or {}))


class Watch(pl.Callback):
    """What is read from the device in every step, by step."""

    def __init__(self) -> None:
        self.reads: dict[int, int] = {}

    def on_train_batch_start(self, *_: Any) -> None:
        self.mode = Reads()
        self.mode.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.mode.__exit__(None, None, None)
        self.reads[trainer.global_step] = self.mode.count


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the tensors of real numbers that became lists, a read that no dispatch shows."""
    found: list[int] = []
    real = torch.Tensor.tolist

    def tolist(self: torch.Tensor) -> Any:
        if self.is_floating_point():
            found.append(self.numel())
        return real(self)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    yield found


def test_a_step_between_logs_reads_nothing_from_the_device(tmp_path, text, lists):
    watch = Watch()
    words = ["regularizer=ceiling", "attention.noise_sigma=0.1", "model.dropout=0.1"]
    phasegpt.fit(phasegpt.compose([*LATE, *words, *text]), tmp_path / "run", callbacks=[watch])
    assert watch.reads.pop(1) > 0  # that is logged
    assert watch.reads == {2: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    assert lists.count(1) == 1 and lists.count(5) == 1  # the flags of step 1, then of 2 to 6


@pytest.mark.parametrize(
    ("poison", "says"),
    [
        (lambda weight: weight.data.fill_(float("nan")), "layer 1 in the forward pass; R is layer"),
        (lambda weight: weight.register_hook(lambda g: g * float("nan")),
         "the gradient of transformer.h.1.mlp.c_fc.weight"),
    ],
)  # fmt: skip
def test_a_collapse_that_is_read_late_is_told_of_its_own_step(tmp_path, text, poison, says):
    real = LitGPT.training_step

    def poisons(self: LitGPT, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            poison(self.model.blocks[1].mlp.c_fc.weight)
        return real(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "training_step", poisons)
        with pytest.raises(Collapsed, match=f"^step 3: .* {says}"):
            phasegpt.fit(phasegpt.compose([*LATE, *text]), tmp_path)
    assert read_record(tmp_path)["status"] == "collapsed"
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))  # nothing after it is kept


def test_nothing_is_saved_after_a_gradient_that_is_not_finite(tmp_path, text):
    real = LitGPT.training_step

    def poisons(self: LitGPT, batch: Any, batch_idx: int) -> Any:
        out = real(self, batch, batch_idx)
        return {**out, "loss": out["loss"] * float("nan")} if batch_idx == 3 else out

    words = ["callbacks.checkpoint.every_n_train_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "training_step", poisons)
        with pytest.raises(Collapsed, match=r"^step 3: .* the gradient norm"):
            phasegpt.fit(phasegpt.compose([*LATE, *words, *text]), tmp_path)
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_from_the_first_bad_gradient_on_the_weights_stay() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    watch, seen = FiniteWatch(100), []
    for step, gradient in enumerate((1.0, 1.0, float("nan"), 1.0)):
        weight.grad = torch.full((3,), gradient)
        batch = {"idx": torch.tensor(step)}
        assert watch.see(weight.grad.norm(), step, batch, optimizer) is None
        optimizer.step()
        seen.append(weight.detach().clone())
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2]) and torch.equal(seen[2], seen[3])
    assert watch.read() == Failed(2, {"idx": torch.tensor(2)})
    assert watch.read() is None


def test_flags_are_read_at_once_where_an_optimizer_steps_all_the_same() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    for optimizer, late in ((torch.optim.SGD([weight]), False),
                            (torch.optim.AdamW([weight], fused=True), True)):  # fmt: skip
        watch = FiniteWatch(10**6)
        found = [watch.see(torch.tensor(float("inf")), step, {}, optimizer) for step in (1, 2)]
        assert (found[0] is None) == late
    watch, steps = FiniteWatch(10**6), range(1, MOST_STEPS + 1)
    found = [watch.see(torch.tensor(float("inf")), step, {}, optimizer) for step in steps]
    assert found == [None] * (MOST_STEPS - 1) + [Failed(1, {})]  # kept batches are few


def test_a_compiled_model_is_diagnosed_by_the_plain_one(tmp_path, text):
    run = phasegpt.compose([*LATE, *text])
    from phasegpt.data.corpus import prepare
    from phasegpt.training.config import run_config

    config = run_config(run)
    tokenizer = prepare(config.data).tokenizer
    lit = LitGPT(config.to_dict(), tokenizer.state(), tokenizer.vocab_size)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the compiled model was called")

    lit.model._compiled_call_impl = refuse
    lit.model.blocks[1].mlp.c_fc.weight.data.fill_(float("nan"))
    assert "first in layer 1" in lit._diagnosis(5, torch.zeros(2, 4, dtype=torch.long))
