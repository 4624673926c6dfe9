"""Gradients that are not finite: found one step late, without a wait for the device."""

import copy
import math
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
from phasegpt.training.diagnosis import diagnosis
from phasegpt.training.finite import Failed, FiniteWatch, skips_on_device
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
    assert 1 not in lists


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


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.SGD, {"fused": True, "momentum": 0.9}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
)
@pytest.mark.parametrize("bad_at", [0, 2])
def test_a_bad_gradient_changes_no_bit_of_weights_and_state(kind, words, bad_at) -> None:
    def steps(gradients: list[float]) -> list[torch.Tensor]:
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer, watch = kind([weight], lr=0.1, **words), FiniteWatch(1)
        for step, gradient in enumerate(gradients):
            failed = watch.read()
            assert failed is None or failed == Failed(bad_at, {})
            weight.grad = torch.full((3,), gradient)
            if watch.see(weight.grad.norm(), step, {}, optimizer) and watch.read():
                optimizer.zero_grad()
            optimizer.step()
        state = optimizer.state[weight].values()
        assert watch.skipped == sum(not math.isfinite(g) for g in gradients)
        return [weight.detach(), *(x for x in state if isinstance(x, torch.Tensor))]

    good = [1.0, 0.5, 0.25, 0.125]
    found = steps([*good[:bad_at], float("inf"), *good[bad_at:]])
    for one, other in zip(found, steps(good), strict=True):
        assert torch.equal(one, other)


def test_an_optimizer_that_cannot_skip_is_told_before_it_steps() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    for optimizer, late in ((torch.optim.SGD([weight]), False),
                            (torch.optim.AdamW([weight], fused=True), True)):  # fmt: skip
        watch = FiniteWatch(0)
        assert watch.see(torch.tensor(1.0), 0, {}, optimizer)  # the first makes the state
        assert watch.read() is None
        assert watch.see(torch.tensor(1.0), 1, {}, optimizer) is not late


def bad_at(*steps: int) -> Any:
    """LitGPT.training_step with a loss whose gradient is NaN in the first batch of some steps."""
    real = LitGPT.training_step

    def poisons(self: LitGPT, batch: Any, batch_idx: int) -> Any:
        out = real(self, batch, batch_idx)
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        bad = first and self.global_step in steps
        return {**out, "loss": out["loss"] * float("nan")} if bad else out

    return poisons


class States(pl.Callback):
    """Weights, optimizer state and learning rate before every step."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, lit: Any, optimizer: Any) -> None:
        lit.settle()
        state = {**optimizer.state_dict(), "weights": lit.model.state_dict()}
        self.found.append(copy.deepcopy(state))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


SKIPS = [*TWO_STEPS, "trainer.log_every_n_steps=1", "trainer.max_steps=6",
         "trainer.val_check_interval=6", "trainer.skip_nonfinite=1",
         "optimizer.warmup_steps=3"]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_bad_step_is_left_out_counted_and_the_run_goes_on(tmp_path, text, optimizer):
    words = ["trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=4",
             "regularizer=ceiling", "regularizer.schedule=adaptive"]  # fmt: skip
    states = States()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "training_step", bad_at(0, 2, 4))
        run = phasegpt.compose([*SKIPS, *words, f"optimizer={optimizer}", *text])
        record = phasegpt.fit(run, tmp_path, callbacks=[states])
    before = states.found
    assert record["skipped_steps"] == 3 and record["step"] == 6
    for step in (0, 2, 4):
        assert equal(before[step], before[step + 1])
        assert step == 4 or not equal(before[step + 1], before[step + 2])
    assert record["final"]["train/skipped_steps"] == 2  # at step 4, the last one logged


def test_how_often_is_logged_changes_no_adaptive_lambda(tmp_path, text):
    words = ["regularizer=center", "regularizer.schedule=adaptive", "regularizer.weight=0.5"]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "training_step", bad_at(2))
        for every in (1, 100):
            run = [*SKIPS, *words, f"trainer.log_every_n_steps={every}", *text]
            phasegpt.fit(phasegpt.compose(run), tmp_path / str(every))
            found.append(checkpoint.read(tmp_path / str(every) / "checkpoints" / "last.ckpt"))
    for part in ("state_dict", "optimizer_states", "regularizer"):
        assert equal(found[0][part], found[1][part]), part


def test_more_bad_steps_in_a_row_than_may_be_end_the_run(tmp_path, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "training_step", bad_at(1, 3, 4))
        with pytest.raises(Collapsed, match=r"^step 4: "):
            phasegpt.fit(phasegpt.compose([*SKIPS, *text]), tmp_path)


@pytest.mark.parametrize("stop", [3, 4])  # after the bad step, and after it was read
def test_a_run_resumes_exactly_around_a_step_that_was_left_out(tmp_path, text, stop):
    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "cut" / "checkpoints" / f"step-{stop:08d}.ckpt")
                raise KeyError("killed")

    words = ["trainer.log_every_n_steps=100", *text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "training_step", bad_at(2))
        phasegpt.fit(phasegpt.compose([*SKIPS, *words]), tmp_path / "whole")
        run = phasegpt.compose([*SKIPS, *words])
        with pytest.raises(KeyError):
            phasegpt.fit(run, tmp_path / "cut", callbacks=[Kill()])
        cut = checkpoint.read(tmp_path / "cut" / "checkpoints" / "last.ckpt")
        assert cut["global_step"] == stop and cut["skipped"] == [1, int(stop == 3)]
        resumed = phasegpt.compose([*SKIPS, *words, "resume=true"])
        assert phasegpt.fit(resumed, tmp_path / "cut")["skipped_steps"] == 1
    one, other = (
        checkpoint.read(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut")
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "skipped"):
        assert equal(one[part], other[part])


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
    assert "first in layer 1" in diagnosis(lit.model, 5, torch.zeros(2, 4, dtype=torch.long))


def test_a_group_that_lost_fused_in_a_checkpoint_is_told_before_it_steps() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    assert skips_on_device(optimizer)
    optimizer.load_state_dict(torch.optim.SGD([weight], lr=0.1).state_dict())
    assert not skips_on_device(optimizer)
