"""Several processes train what one process trains; the first one alone writes, and all resume.

torchrun runs in this process, and forks what it would start, see processes.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launched import (
    HALF,
    TINY,
    TWO,
    all_asked_to_end_at_step_3,
    asked_to_end_at_step_3,
    dies_at_step_3,
    has_a_bad_gradient_at_step_3,
    run,
    same_losses,
    same_weights,
    stops_at_step_3,
    torchrun,
)
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

import phasegpt
from phasegpt.core.composition import compose
from phasegpt.core.errors import Collapsed, ConfigError, Interrupted, ProcessFailed
from phasegpt.data.corpus import prepare
from phasegpt.model import checkpoint
from phasegpt.training import ranks
from phasegpt.training.assemble import _strategy, assemble
from phasegpt.training.config import RunConfig, plain, run_config
from phasegpt.training.lit import LitGPT
from phasegpt.training.run import fit
from phasegpt.training.run_folder import RunFolder, read_metrics, read_phases, read_record

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def two(tmp_path_factory, text, forked) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run(folder, text, *TWO)
    return folder


def test_two_processes_log_what_one_logs_at_the_same_global_batch(one, two):
    same_losses(one, two)
    names = set(read_metrics(two / "metrics.csv")[3])
    assert {"train/loss", "val/loss", "reg/coherence", "reg/lambda", "phase/dR/layer1"} <= names


def test_run_json_and_phases_are_those_of_one_process(one, two):
    a, b = read_record(one), read_record(two)
    assert b["status"] == "ok" and b["step"] == 5 and a["tokens"] == b["tokens"]
    assert a["best"] == pytest.approx(b["best"], abs=1e-6)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    left, right = read_phases(one), read_phases(two)
    assert left["step"].tolist() == right["step"].tolist() == [2, 4, 5]


def test_two_processes_train_a_coupling_that_all_layers_share(tmp_path, text):
    """Its weights are used twice in a step, and computed again in the backward pass."""
    own = ("attention.layers", "attention.num", "attention.noise", "attention.freq")
    words = [word for word in TINY if not word.startswith((*own, "regularizer."))]
    words += ["attention=kope", "attention.layers=all", "model.n_layer=3", "trainer.max_steps=2"]
    words += ["model.activation_checkpointing=true", "attention.learn_coupling=true"]
    for name, more in (("one", []), ("two", TWO)):
        fit(phasegpt.compose([*words, *text, *more]), tmp_path / name)
    a, b = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert [row["train/loss"] for row in b] == pytest.approx([row["train/loss"] for row in a])
    a, b = (checkpoint.read(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("one", "two"))
    assert any("link" in name for name in a["state_dict"])
    torch.testing.assert_close(b["state_dict"], a["state_dict"])


def test_the_largest_seed_has_one_for_every_process(tmp_path, text, monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning makes it 1, for all that follow
    config = run_config(phasegpt.compose([*TINY, *TWO, *text, f"seed={2**32 - 1}"]))
    assemble(config, RunFolder(tmp_path), prepare(config.data), rank=ranks.Rank(1, 2, 1, 2))
    assert torch.initial_seed() == 0


def test_accumulation_over_two_processes_is_that_of_one(tmp_path, text):
    three = ["trainer.accumulate_grad_batches=3", "trainer.max_steps=3"]
    run(tmp_path / "one", text, *three)
    run(tmp_path / "two", text, *three, *TWO)
    same_losses(tmp_path / "one", tmp_path / "two", 3)


@pytest.mark.slow
def test_all_processes_leave_out_a_step_where_one_has_a_bad_gradient(
    tmp_path, text, begun, monkeypatch
):
    words = ["trainer.skip_nonfinite=1", "trainer.accumulate_grad_batches=2"]
    begun(has_a_bad_gradient_at_step_3)
    assert run(tmp_path / "two", text, *words, *TWO)["skipped_steps"] == 1
    monkeypatch.setattr(LitGPT, "training_step", LitGPT.training_step)
    has_a_bad_gradient_at_step_3()
    assert run(tmp_path / "one", text, *words)["skipped_steps"] == 1
    same_losses(tmp_path / "one", tmp_path / "two")


def test_torchrun_trains_the_same_and_only_its_first_process_speaks(
    tmp_path, text, two, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    place = f"hydra.run.dir={tmp_path / 'run'}"
    told = torchrun(tmp_path, *TINY, *text, HALF, place)
    same_weights(tmp_path / "run", two)
    assert {path.name for path in two.iterdir()} == {p.name for p in (tmp_path / "run").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "logs"}
    record = read_record(tmp_path / "run")
    assert record["config"]["trainer"]["devices"] == 2
    assert "validation perplexity" in told[0, "stdout"] and "step 5/5" in told[0, "stderr"]
    assert told[1, "stdout"] == told[1, "stderr"] == ""
    again = torchrun(tmp_path, *TINY, *text, HALF, place, "resume=true")
    assert "is finished; nothing to do" in again[0, "stderr"]
    assert read_record(tmp_path / "run") == record


def test_a_process_that_is_killed_ends_the_run_with_one_error(tmp_path, text, begun):
    found = begun(dies_at_step_3)
    before = time.monotonic()
    with pytest.raises(ProcessFailed, match="rank 1 was ended by SIGKILL; run the same command"):
        run(tmp_path, text, *TWO)
    assert all(process.returncode is not None for process in found)
    record = read_record(tmp_path)
    assert record["status"] == "failed" and "another process of the run" in record["error"]
    assert record["step"] == 2 and time.monotonic() - before < 600


def test_max_restarts_goes_on_from_the_last_checkpoint(tmp_path, text, begun, two, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = begun(dies_at_step_3)
    options = ("--standalone", "--max-restarts=1")
    told = torchrun(tmp_path, *TINY, *text, HALF, "name=again", options=options)
    assert len(found) == 4
    (folder,) = (tmp_path / "runs" / "again").iterdir()
    same_weights(folder, two)
    same_losses(folder, two)
    assert "going on with" in told[0, "stderr"] and not told[1, "stderr"]


@pytest.mark.slow  # the launcher leaves a stopped process 30 s
def test_a_process_that_stands_still_ends_the_run(tmp_path, text, begun):
    begun(stops_at_step_3)
    with pytest.raises(ProcessFailed):
        run(tmp_path, text, *TWO, "trainer.timeout_s=5")
    assert "not answered for trainer.timeout_s" in read_record(tmp_path)["error"]


@pytest.mark.parametrize("asked", [asked_to_end_at_step_3, all_asked_to_end_at_step_3])
def test_two_processes_that_are_stopped_are_resumed_by_one(tmp_path, text, begun, one, asked):
    begun(asked)  # in that step; all know it at the end of the next
    with pytest.raises(Interrupted, match="after step 5; checkpoint saved"):
        run(tmp_path, text, *TWO)
    assert read_record(tmp_path)["status"] == "interrupted"
    assert run(tmp_path, text, "resume=true")["status"] == "ok"
    same_losses(one, tmp_path)


def test_one_process_that_is_stopped_is_resumed_by_two(tmp_path, text, one, monkeypatch):
    def ends(self, batch, batch_idx):
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(LitGPT, "on_train_batch_start", ends)
        with pytest.raises(Interrupted):
            run(tmp_path, text)
    assert run(tmp_path, text, *TWO, "resume=true")["status"] == "ok"
    same_losses(one, tmp_path)


def test_two_processes_resume_with_dropout_to_the_same_bytes(tmp_path, text, begun):
    words = [*TWO, "model.dropout=0.2", "trainer.precision=32-true"]
    run(tmp_path / "whole", text, *words)
    begun(asked_to_end_at_step_3)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", text, *words)
    begun()
    run(tmp_path / "cut", text, *words, "resume=true")
    same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_collapse_ends_all_processes_and_leaves_none_behind(tmp_path, text, begun):
    found = begun()
    with pytest.raises(Collapsed, match="is not finite"):
        diverges = ["optimizer.lr=1000", "optimizer.weight_decay=1000", "trainer.precision=32-true"]
        run(tmp_path, text, *TWO, *diverges, "trainer.max_steps=50")
    assert read_record(tmp_path)["status"] == "collapsed"
    assert [process.returncode for process in found] == [Collapsed.exit_code, 0]
    assert not torch.distributed.is_initialized()


def has_another_text() -> None:
    """The second process meets a text that changed."""
    from phasegpt.data.corpus import Corpus

    if os.environ["RANK"] == "1":
        Corpus.fingerprint = property(lambda self: "another")


def test_what_one_process_alone_meets_is_said_with_its_rank(tmp_path, text, begun):
    begun(has_another_text)
    with pytest.raises(ProcessFailed, match="rank 1: DataError: the text here is not that of"):
        run(tmp_path, text, *TWO)


def test_what_all_processes_meet_is_said_once(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ChildFailedError, match="exitcode  : 2"):
        torchrun(tmp_path, *TINY, *text, "trainer.devices=3")
    said = {file.parent.name: file.read_text() for file in tmp_path.rglob("stderr.log")}
    assert said["0"].startswith("ConfigError: trainer.devices=3 trainer.num_nodes=1, but the")
    assert said["1"] == ""


def test_a_multirun_under_torchrun_is_refused_with_the_way_to_do_it(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ChildFailedError):
        torchrun(tmp_path, "-m", *TINY, *text, "seed=1,2")
    said = {file.parent.name: file.read_text() for file in tmp_path.rglob("stderr.log")}
    assert said["0"].startswith("ConfigError: a multirun in 2 processes: each of them would")
    assert "+launcher=joblib" in said["0"] and said["1"] == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_agents_on_two_ports_train_what_one_process_trains(tmp_path, text, one, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    words = [*TINY, *text, "data.batch_size=3", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=two"]
    command += ["--local-addr=localhost", "-m", "phasegpt.train", *words]
    agents = [subprocess.Popen(command) for _ in range(2)]
    assert [agent.wait(600) for agent in agents] == [0, 0]
    same_losses(one, tmp_path / "run")


def test_srun_is_read_as_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5"}
    step |= {"SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-08,11],b"}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    assert ranks.rank() == ranks.Rank(5, 8, 1, 4) and ranks.rank().nodes == 2
    assert os.environ["MASTER_ADDR"] == "gpu07"
    placed = ranks.placed(RunConfig.parse(plain(phasegpt.compose())))
    assert (placed.trainer.devices, placed.trainer.num_nodes) == (4, 2)


def test_several_machines_need_a_launcher_on_each():
    with pytest.raises(ConfigError, match="torchrun on each machine, torchrun --nnodes 2"):
        fit(phasegpt.compose(["trainer.num_nodes=2"]), "nowhere")


def test_a_single_process_keeps_the_hash_it_had_before_there_was_a_choice():
    cfg = plain(phasegpt.compose())
    assert cfg["trainer"].pop("devices") == 1
    parsed = RunConfig.parse(cfg)
    assert "devices" in parsed.to_dict()["trainer"]
    with pytest.raises(ConfigError, match=r"trainer.devices=0"):
        RunConfig.parse({**cfg, "trainer": {**cfg["trainer"], "devices": 0}})


@pytest.mark.parametrize(("words", "same"), [((), True), (("model.dropout=0.1",), False)])
def test_processes_count_in_the_hash_where_they_change_results(words, same):
    single, double = (
        RunConfig.parse(plain(phasegpt.compose([*more, "model.dropout=0.0", *words])))
        for more in (["data.batch_size=8"], ["data.batch_size=4", "trainer.devices=2"])
    )
    assert (single.hash == double.hash) is same


@pytest.mark.parametrize(("steps", "idle"), [(0, True), (1, False)])
def test_ddp_is_told_of_parameters_without_a_gradient(make_model, steps, idle):
    model = make_model("lohe", steps=steps)
    model(torch.zeros(1, 4).long()).logits.sum().backward()
    assert any(p.grad is None for p in model.parameters()) == idle
    words = ["attention=lohe", f"attention.steps={steps}", "trainer.devices=2", "trainer=cpu"]
    strategy = _strategy(run_config(compose(words)))
    assert strategy._ddp_kwargs["find_unused_parameters"] == idle
