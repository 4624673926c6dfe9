"""The leaderboard's jobs: which arms there are, in which order, at which rate; their numbers."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from helpers import ROOT, composed, outcome
from test_sweeps import multirun

from phasegpt.attention import layer_class, names
from phasegpt.core.composition import CONF_DIR
from phasegpt.core.errors import ConfigError
from phasegpt.model.contract import Subject, switches
from phasegpt.model.gpt import GPT
from phasegpt.training.jobs import jobs
from phasegpt.training.leaderboard import Leaderboard, all_arms, mechanism_arms
from phasegpt.training.planning import _chosen
from phasegpt.training.run_folder import read_record

CONTROLS = {"softmax", "softmax_learned", "token_shift", "uniform", "no_mixing"}
SMALL = ("scale=small", "task=copying")
#: Four steps of a small model; the task is a leaderboard's.
FEW = [
    *("model.n_embd=16", "model.match_parameters=null", "data.batch_size=4", "data.val_examples=4"),
    *("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"),
    *("optimizer.warmup_steps=1", "data.length=4", "data.val_lengths=[4,8]"),
]


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    """All arms in three tasks."""
    return Leaderboard.of(["scale=small", "task=copying,mqar,text"])


@pytest.fixture(scope="module")
def few() -> Leaderboard:
    """Some of them, which are planned sooner."""
    arms = "arm=kope_off,softmax_learned,hybrid_off"
    return Leaderboard.of(["scale=small", "task=copying,mqar", arms])


# --- arms ------------------------------------------------------------------------------------


def test_every_mechanism_enters_but_those_that_see_the_future_or_are_dead(board):
    mechanisms = {name for name in names() if layer_class(name).off is not None}
    enter = mechanisms - {"as_coded", "ssa_as_published"}
    assert set(board.arms) == CONTROLS | enter | {f"{name}_off" for name in enter}
    assert {task for task, _ in board.pairs} == {"copying", "mqar", "text"}


def test_an_off_control_is_off_for_good():
    for arm, settings in all_arms({}).items():
        if arm.endswith("_off"):
            options = {k.partition(".")[2]: v for k, v in settings.items() if "." in k}
            subject = Subject(settings["attention"], positions="rope")
            on, off = subject.layer(), subject.layer(**options)
            assert not switches(on, off), f"{arm} learns what switches it off"
            subject.layer_class.Config.parse(options).check_idle()


def test_a_decisive_control_comes_before_the_exact_identity():
    assert mechanism_arms("kope")["kope_off"] == {
        **{"attention": "kope", "attention.coupling": 0.0, "attention.learn_coupling": False}
    }
    assert "attention.beta" not in mechanism_arms("kuramoto")["kuramoto_off"]
    assert mechanism_arms("torus")["torus_off"] == {
        "attention": "torus",
        "attention.readout": "mean",
    }
    assert mechanism_arms("hybrid")["hybrid_off"]["attention.coupling"] == 0.0


def test_parameters_are_within_one_percent_and_positions_rotary(board):
    sizes: dict[str, dict[str, int]] = {"copying": {}, "text": {}}  # mqar has no MLP to match
    for task, arm in board.pairs:
        run = board.run(task, arm, seed=1, rate=1e-3)
        assert run.attention.layers == "all"
        assert run.model.positions == ("learned" if arm == "softmax_learned" else "rope")
        if task in sizes and not arm.startswith("fixed_query"):  # its anchors beyond training
            with torch.device("meta"):
                sizes[task][arm] = GPT(run.gpt(), seed=0).num_parameters()
    for found in sizes.values():
        assert found == pytest.approx(dict.fromkeys(found, found["softmax"]), rel=0.01)


def test_an_mlp_does_not_pay_for_positions_beyond_training():
    board = Leaderboard.of(["scale=small", "task=copying,induction,mqar", "arm=fixed_query"])
    models = {t: board.run(t, "fixed_query", 0, 1e-3).model for t in ("copying", "induction")}
    assert (models["copying"].mlp_width, models["copying"].block_size) == (240, 258)  # 66 trained
    assert models["induction"].match_parameters == "softmax"  # all positions are trained
    assert board.run("mqar", "fixed_query", 0, 1e-3).model.mlp_width is None  # not matched


def test_a_mechanism_that_refuses_rotary_positions_has_learned_ones():
    board = Leaderboard.of([*SMALL, "arm=seeds", "+leaderboard.arms.seeds.attention=as_coded"])
    assert board.pairs["copying", "seeds"]["model.positions"] == "learned"


# --- jobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["kope_off", "softmax_learned", "hybrid_off"])
def test_the_words_of_a_job_compose_the_run_that_was_planned(few, arm):
    (job,) = [
        job
        for job in few.jobs("rates")
        if job.entry["name"] == f"leaderboard-copying-{arm}-lr0.003-seed0"
    ]
    run = composed(*job.words)
    assert run.hash == job.entry["config_hash"]
    assert (run.name, run.seed, run.optimizer.lr) == (f"leaderboard-copying-{arm}-lr0.003", 0, 3e-3)


def test_every_pass_over_the_seeds_leaves_a_complete_table(few, monkeypatch):
    monkeypatch.setattr(few, "_frozen", lambda: dict.fromkeys(few.pairs, 1e-3))
    found = [job.entry["name"] for job in few.jobs("screen")]
    width = len(few.pairs)
    assert len(found) == 3 * width
    for number, seed in enumerate((1, 2, 3)):
        one = found[number * width : (number + 1) * width]
        assert one == [f"leaderboard-{t}-{a}-seed{seed}" for t, a in few.pairs]


def test_shares_are_disjoint_and_are_all_together(few):
    def mine(part: int) -> set[str]:
        planned = _chosen(lambda: few.jobs("rates"), (part, 3), None)
        return {job.entry["name"] for job in planned if job.here}

    shares = [mine(part) for part in (1, 2, 3)]
    assert sum(map(len, shares)) == len(set().union(*shares)) == len(few.jobs("rates"))
    assert max(map(len, shares)) - min(map(len, shares)) <= 2
    rates = [{name.partition("-lr")[0] for name in share} for share in shares]
    assert sum(map(len, rates)) == len(few.pairs)  # every rate of an arm is in one share


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["arm=softmaks"], "arm=softmaks is unknown; did you mean arm=softmax?"),
        (["stage=rate"], "stage=rate is unknown; did you mean stage=rates?"),
        (["task=copyng,mqar"], "Could not find 'task/small/copyng'"),
        (["optimizer.lr=1,2"], r"varies stage, task, arm, attention, seed; give one value in"),
        (["seed=x"], "seed=x must be whole numbers"),
        (["stage=rates,screen", "seed=5"], "seed=5 with stage=rates, .* for seed 0 alone; leave"),
        (["attention.layers=[0]"], "sets the options of attention itself, and all layers have it"),
    ],
)
def test_a_wrong_word_is_one_error(words, told):
    with pytest.raises(ConfigError, match=told):
        Leaderboard.of([*SMALL, *words])


@pytest.mark.parametrize("share", ["0/3", "4/3", "1/0", "a", "0.5"])
def test_a_share_that_there_is_not_is_refused(tmp_path, monkeypatch, capfd, share):
    monkeypatch.chdir(tmp_path)
    assert multirun(monkeypatch, "seed=1,2", f"share={share}") == 2
    assert "must be K/N with 1 <= K <= N, such as share=1/3" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_foreign_mechanism_comes_with_what_it_is_compared_with(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "my_mechanism"))
    board = Leaderboard.of([*SMALL, "attention=my_mechanism.layer"])
    name = "my_mechanism.layer"
    assert list(board.arms) == ["softmax", "softmax_learned", name, f"{name}_off"]
    job = board.jobs("rates")[-1]
    assert job.entry["name"] == f"leaderboard-copying-{name}_off-lr0.003-seed0"
    run = composed(*job.words)
    assert run.hash == job.entry["config_hash"]
    assert (run.attention.options.coupling, run.attention.options.learn_coupling) == (0.0, False)


def test_a_foreign_off_control_that_is_learned_away_is_refused(tmp_path, monkeypatch):
    layer = (ROOT / "examples" / "my_mechanism" / "my_mechanism" / "layer.py").read_text()
    (tmp_path / "learned").mkdir()
    (tmp_path / "learned" / "layer.py").write_text(
        layer.replace("if options.learn_coupling", "if True").replace("learn_coupling", "other")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"learned\.layer.* learns coupling, which switches it"):
        Leaderboard.of([*SMALL, "attention=learned.layer"])


# --- rates -----------------------------------------------------------------------------------


def recorded(board: Leaderboard, folder: Path, rate: float, **record: Any) -> None:
    """A record of the stage rates, of softmax in copying."""
    (folder / "runs").mkdir(exist_ok=True)
    digest = board.run("copying", "softmax", 0, rate).hash
    text = json.dumps({"status": "ok", "seed": 0, "config_hash": digest, **record})
    (folder / "runs" / f"{rate}.json").write_text(text)


@pytest.fixture
def one_arm(tmp_path) -> Leaderboard:
    words = ["arm=softmax", f"records={tmp_path}", f"hydra.sweep.dir={tmp_path / 'none'}"]
    return Leaderboard.of([*SMALL, *words])


def test_a_rate_that_is_not_on_record_is_one_error_with_the_command(one_arm, tmp_path):
    with pytest.raises(ConfigError) as caught:
        one_arm.jobs("screen")
    told = str(caught.value)
    assert "no learning rate is on record for any arm in copying" in told
    words = (
        f"+sweep=leaderboard scale=small task=copying arm=softmax records={tmp_path} hydra.sweep"
    )
    assert f"-m {words}.dir={tmp_path / 'none'} stage=rates" in told  # the same words again
    recorded(one_arm, tmp_path, 1e-3, best={"val/accuracy": 0.9, "val/loss": 1.0})
    with pytest.raises(ConfigError, match="no learning rate"):  # one of two is no choice
        one_arm.jobs("screen")


@pytest.mark.parametrize(
    ("at_1", "at_3", "rate"),
    [
        ({"val/accuracy": 0.9, "val/loss": 2.0}, {"val/accuracy": 0.8, "val/loss": 1.0}, 1e-3),
        ({"val/accuracy": 1.0, "val/loss": 2.0}, {"val/accuracy": 1.0, "val/loss": 1.0}, 3e-3),
        ({"val/loss": 2.0}, {"val/loss": 1.0}, 3e-3),
        ({"val/loss": 1.0}, {"val/loss": 1.0}, 1e-3),
        ({"val/accuracy": 0.1, "val/loss": 2.0}, None, 1e-3),
    ],
)
def test_the_rate_is_that_of_the_best_record(one_arm, tmp_path, at_1, at_3, rate):
    for lr, best in ((1e-3, at_1), (3e-3, at_3)):
        recorded(one_arm, tmp_path, lr, best=best, status="ok" if best else "collapsed")
    found = [composed(*job.words).optimizer.lr for job in one_arm.jobs("verdict")[:1]]
    assert found == [rate]


def test_an_arm_that_collapsed_at_every_rate_stays_off(one_arm, tmp_path, capfd):
    for lr in (1e-3, 3e-3):
        recorded(one_arm, tmp_path, lr, best={"val/loss": 1.0}, status="collapsed")
    assert one_arm.jobs("screen") == []
    assert "softmax stays off copying: it collapsed at every" in capfd.readouterr().err


# --- runs ------------------------------------------------------------------------------------


def test_runs_of_one_process_have_the_numbers_of_runs_of_their_own(tmp_path, monkeypatch, capfd):
    """Rates and screen in one command, a third arm that fails; then one job alone by its words."""
    monkeypatch.chdir(tmp_path)
    words = ["+sweep=leaderboard", *SMALL, *FEW, "stage=rates,screen"]
    words += ["arm=kuramoto_off,noisy,broken", "model.dropout=0.1"]
    words += ["+leaderboard.arms.noisy={attention:kuramoto,attention.noise_sigma:0.05}"]
    words += ["leaderboard.rates.small=[1e-2]"]
    words += ["leaderboard.seeds.screen=[1]"]
    words += ["+leaderboard.arms.broken={attention:uniform,init_from:nowhere}"]
    assert multirun(monkeypatch, *words, "records=results") == 1
    sweep = tmp_path / "runs" / "leaderboard-small"
    states = {job.name: job.status for job in jobs(sweep)}
    names = [f"leaderboard-copying-{arm}" for arm in ("kuramoto_off", "noisy", "broken")]
    for name in names[:2]:
        assert states[f"{name}-lr0.01-seed0"] == states[f"{name}-seed1"] == "ok"
    assert states[f"{names[2]}-lr0.01-seed0"] == "failed"
    told = capfd.readouterr().err
    assert "no learning rate is on record for broken" in told
    assert "records=results " in told[told.index("find them first") :]  # where it looked

    planned = json.loads((sweep / "sweep.json").read_text())["jobs"]
    (job,) = [job for job in planned if job["name"] == f"{names[1]}-seed1"]
    alone = processes.run(
        processes.python("-m", "phasegpt.train", *job["overrides"], "hydra.run.dir=alone")
    )
    assert alone.returncode == 0, alone.stderr
    assert read_record(tmp_path / "alone")["config_hash"] == job["config_hash"]
    step, weights, optimizer, rows = outcome(sweep / job["name"])
    alone_step, alone_weights, alone_optimizer, alone_rows = outcome(tmp_path / "alone")
    assert step == alone_step == len(rows) == 4
    assert rows == alone_rows and repr(optimizer) == repr(alone_optimizer)
    assert all(torch.equal(weights[name], alone_weights[name]) for name in weights | alone_weights)


def test_jobs_on_record_are_not_started_again_on_a_fresh_clone(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["+sweep=phase_a_more", "scale=small", "seed=4", f"records={ROOT / 'results/phase_a'}"]
    assert multirun(monkeypatch, *words) == 0
    told = capfd.readouterr().err
    assert "4 jobs: 4 are on record, 0 are of other shares, 0 are to be done here" in told
    assert "4 jobs: 4 done" in told
    assert not list(tmp_path.rglob("run.json"))
    assert [job.status for job in jobs(tmp_path / "runs" / "phase_a_more-small")] == ["ok"] * 4


def test_a_signal_between_two_jobs_ends_the_process(tmp_path, monkeypatch, capfd):
    from phasegpt.training import sweeps

    monkeypatch.chdir(tmp_path)
    real, before = sweeps.train_job, signal.getsignal(signal.SIGTERM)

    def signalled(*args: Any, **more: Any) -> dict[str, Any]:
        record = real(*args, **more)
        os.kill(os.getpid(), signal.SIGTERM)
        return record

    monkeypatch.setattr(sweeps, "train_job", signalled)
    words = ["+sweep=leaderboard", *SMALL, *FEW, "stage=rates", "arm=softmax,uniform"]
    try:
        assert multirun(monkeypatch, *words, "records=results") == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "4 jobs: 1 done, 3 missing" in capfd.readouterr().err


def test_every_task_of_the_leaderboard_has_both_sizes():
    full = {path.stem for path in (CONF_DIR / "task").glob("*.yaml")}
    assert full == {path.stem for path in (CONF_DIR / "task" / "small").glob("*.yaml")}
    for size in ("", "small/"):
        for task in full:
            run = composed(f"+task={size}{task}")
            assert (run.model.positions, run.attention.layers) == ("rope", "all")
            assert "text" in task or run.loads
