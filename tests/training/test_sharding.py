"""FSDP trains what one process trains, and its checkpoints are those of one process."""

import runpy

import pytest
import torch
from helpers import ROOT
from launched import (
    TINY,
    TWO,
    asked_to_end_at_step_3,
    run,
    same_losses,
)

import phasegpt
from phasegpt.core.errors import Collapsed, ConfigError, Interrupted
from phasegpt.model import checkpoint
from phasegpt.training.config import run_config
from phasegpt.training.run_folder import read_record

FSDP = [*TWO, "callbacks.phase_monitor.every_n_steps=null", "trainer.strategy=fsdp"]


def test_sharded_processes_train_and_save_what_one_does(tmp_path, text, one):
    run(tmp_path, text, *FSDP)
    same_losses(one, tmp_path, monitored=False)
    a, b = (checkpoint.read(f / "checkpoints" / "last.ckpt") for f in (one, tmp_path))
    assert a.keys() == b.keys()
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(b["state_dict"][name], value, rtol=0, atol=1e-6)
    left, right = (c["optimizer_states"][0] for c in (a, b))
    groups = ([group["params"] for group in c["param_groups"]] for c in (left, right))
    assert next(groups) == next(groups)
    for number, state in left["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(right["state"][number][name], value, rtol=0, atol=1e-6)
    model = phasegpt.load(tmp_path)
    assert model.lm_head.weight is model.transformer["wte"].weight


@pytest.mark.slow
def test_sharded_accumulation_with_checkpointing_is_that_of_one(tmp_path, text):
    three = ["trainer.accumulate_grad_batches=3", "trainer.max_steps=3"]
    run(tmp_path / "one", text, *three)
    run(tmp_path / "two", text, *three, *FSDP, "model.activation_checkpointing=true")
    same_losses(tmp_path / "one", tmp_path / "two", 3, monitored=False)


def test_sharded_processes_that_are_stopped_are_resumed_by_one(tmp_path, text, begun, one):
    begun(asked_to_end_at_step_3)
    with pytest.raises(Interrupted):
        run(tmp_path, text, *FSDP)
    assert run(tmp_path, text, "resume=true")["status"] == "ok"
    same_losses(one, tmp_path, monitored=False)


def test_ddp_is_resumed_by_more_sharded_processes(tmp_path, text, begun, one):
    begun(asked_to_end_at_step_3)
    with pytest.raises(Interrupted):
        run(tmp_path, text, *TWO)
    begun()
    three = ["trainer.devices=3", "data.batch_size=2"]
    assert run(tmp_path, text, *FSDP, *three, "resume=true")["status"] == "ok"
    same_losses(one, tmp_path, monitored=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_four_processes_train_and_resume_what_one_does(tmp_path, text, begun, strategy):
    words = ["callbacks.phase_monitor.every_n_steps=null"]
    run(tmp_path / "one", text, *words, "data.batch_size=12")
    words.append(f"trainer.strategy={strategy}")
    four = [*words, "trainer.devices=4", "data.batch_size=3"]
    run(tmp_path / "four", text, *four)
    same_losses(tmp_path / "one", tmp_path / "four")
    begun(asked_to_end_at_step_3)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", text, *words, "trainer.devices=2", "data.batch_size=6")
    begun()
    run(tmp_path / "cut", text, *four, "resume=true")
    same_losses(tmp_path / "one", tmp_path / "cut")


@pytest.mark.slow
def test_a_collapse_of_sharded_processes_is_diagnosed(tmp_path, text):
    diverges = ["optimizer.lr=1000", "optimizer.weight_decay=1000", "trainer.precision=32-true"]
    with pytest.raises(Collapsed, match="is not finite, first in"):
        run(tmp_path, text, *FSDP, *diverges, "trainer.max_steps=50")
    assert read_record(tmp_path)["status"] == "collapsed"


@pytest.mark.parametrize(
    "word",
    [
        "compile=true",
        "data.documents=true",
        "optimizer=muon",
        "callbacks.phase_monitor.every_n_steps=5",
        "callbacks.collapse_guard.action=rollback",
    ],
)
def test_what_needs_a_whole_model_is_refused_by_name(text, word):
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=f"fsdp cannot have {key}"):
        run_config(phasegpt.compose([*TINY, *text, *FSDP, word]))


def test_a_strategy_for_one_process_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"trainer.strategy=ddp is for several processes"):
        run(tmp_path, text, "trainer.strategy=ddp")


def test_the_table_of_scaling_is_what_its_formulas_give():
    script = runpy.run_path(str(ROOT / "scripts" / "scaling_table.py"))
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert page == script["written"](page)
    words = ["attention=softmax", "model.n_layer=3", "model.n_embd=64", "model.block_size=32"]
    model = phasegpt.build(phasegpt.compose([*words, "model.vocab_size=100"]))
    size = script["Size"]("tiny", 3, 64, 100, 32)
    assert model.num_parameters(non_embedding=False) == size.P
    assert size.block == sum(p.numel() for p in model.blocks[0].parameters())
