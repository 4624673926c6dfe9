"""Multiruns: what they compose, that no job stops another, that they go on, what they say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from helpers import ROOT, TWO_STEPS

from phasegpt.core.composition import CONF_DIR
from phasegpt.core.errors import ConfigError, UserError
from phasegpt.train import main
from phasegpt.training.jobs import Job, counted, jobs
from phasegpt.training.run_folder import RunFolder, read_record
from phasegpt.training.sweeps import Plan, report

SWEEPS = {
    **{"phase_a": 24, "phase_a_controls": 21, "phase_a_phase_sync": 21, "phase_a_as_coded": 21},
    **{"phase_a_more": 8, "phase_a_long": 30},
    **{"phase_b": 20, "phase_b_controls": 10, "phase_b_secondary": 15},
    **{"phase_a_late": 15, "phase_a_late_k2": 3, "phase_a_late_phase_sync": 4},
    **{"phase_a_late_as_coded": 2, "phase_a_late_learned": 1},
    **{"coupling_grid": 24, "seeds": 5},
}


#: Jobs by the words that list them: composing takes seconds and is a function of the words.
PLANS: dict[tuple[str, ...], list[dict]] = {}


def multirun(monkeypatch, *words: str) -> int:
    """The command line with -m in this process; its exit code."""
    return launched(monkeypatch, "-m", *words)


def launched(monkeypatch, *words: str) -> int:
    """The command line in this process; its exit code."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from phasegpt.cli import launch

    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["train", *words])
    try:
        launch(main, config_name="config", after=Plan.finish)
    except SystemExit as stopped:
        return stopped.code
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
    return 0


def show(folder: Path) -> str:
    done = processes.run(processes.python(ROOT / "scripts" / "analyze_results.py", folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """planned(words): the jobs of a multirun, of which none is trained."""

    real = Plan.on_multirun_start

    def stops(self, config, **kwargs):
        real(self, config)
        sys.exit(0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Plan, "on_multirun_start", stops)

    def plan(*words: str) -> list[dict]:
        if words not in PLANS:
            multirun(monkeypatch, *words)
            (file,) = tmp_path.rglob("sweep.json")
            PLANS[words] = json.loads(file.read_text())["jobs"]
            file.unlink()
        return PLANS[words]

    return plan


SCALED = [sweep for sweep in SWEEPS if sweep != "seeds" and "_late" not in sweep]


def assert_apart(found: list[dict]) -> None:
    assert len({job["config_hash"] for job in found}) == len(found)
    assert len({job["name"] for job in found}) == len(found)
    assert not [job for job in found if job["error"]]


def test_a_model_that_cannot_be_built_is_said_before_the_sweep(planned):
    words = ["attention=kuramoto,as_coded", "model=small_rope", "data=synthetic"]
    first, second = planned(*words)
    assert not first["error"]
    assert "attention=as_coded knows model.positions=learned only" in second["error"]


def test_jobs_that_are_one_run_are_said_before_the_sweep(planned, capfd):
    first, second = planned("data=synthetic", "data.num_workers=0,1")
    assert first["config_hash"] == second["config_hash"]
    assert (
        "2 jobs: 1 differ from another in nothing that changes a result" in capfd.readouterr().err
    )


def of_a_kind(sweeps) -> list:
    """In the short suite one of each kind: a study, a grid, seeds."""
    soon = ("phase_a", "phase_b", "coupling_grid", "seeds")
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in soon)) for name in sweeps]


@pytest.mark.parametrize("sweep", of_a_kind(SWEEPS))
def test_a_sweep_composes_its_jobs_in_full(planned, sweep):
    found = planned(f"+sweep={sweep}", *(["scale=full"] if sweep in SCALED else []))
    assert len(found) == SWEEPS[sweep]
    assert_apart(found)


@pytest.mark.parametrize("sweep", of_a_kind(SCALED))
def test_a_sweep_composes_each_of_its_arms_small(planned, sweep):
    full = planned(f"+sweep={sweep}", "scale=full")
    arms = dict.fromkeys(job["name"].rpartition("-seed")[0] for job in full)
    found = planned(f"+sweep={sweep}", "scale=small", "seed=1")
    assert [job["name"] for job in found] == [f"{arm}-seed1" for arm in arms]
    assert_apart(found)


def test_every_sweep_is_in_the_table_and_has_its_experiments(planned):
    assert {path.stem for path in (CONF_DIR / "sweep").glob("*.yaml")} == {
        *(*SWEEPS, "optuna", "leaderboard")  # test_leaderboard.py has its own
    }
    for phase in ("phase_a", "phase_b"):
        named = {job["name"].split("-")[1] for job in planned(f"+sweep={phase}", "scale=full")}
        assert named == {path.stem for path in (CONF_DIR / "experiment" / phase).glob("*.yaml")}


def test_small_scale_wins_over_the_experiment_and_the_user_over_both(planned):
    from phasegpt.core.composition import compose
    from phasegpt.training.config import run_config

    hashes = [job["config_hash"] for job in planned("+sweep=phase_b", "scale=small", "seed=5")]
    words = ["+experiment=phase_b/diverse", "seed=5", "+sweep=phase_b", "scale=small"]
    run = run_config(compose(words))
    assert (run.model.n_layer, run.model.n_embd, run.model.block_size) == (12, 64, 128)
    assert (run.data.batch_size, run.data.tokenizer) == (16, "byte")
    assert run.trainer.max_steps == 1500 and run.attention.options.noise_sigma == 0.03
    assert run.hash == hashes[-1]
    again = planned("+sweep=phase_b", "scale=small", "seed=5", "trainer.max_steps=7")
    assert again[-1]["config_hash"] == run_config(compose([*words, "trainer.max_steps=7"])).hash


@pytest.mark.parametrize("word", ["+experiment=baseline", "+experiment/phase_a=l6_n32_k2"])
def test_a_scale_before_the_experiment_that_would_undo_it_is_refused(word):
    from phasegpt.core.composition import compose

    assert compose([word, "+scale=small"]).trainer.max_steps == 1500
    with pytest.raises(ConfigError, match=re.escape(f"give {word} first, then +scale=small")):
        compose(["+scale=small", "seed=2", word])


@pytest.mark.parametrize("sweep", ["phase_a", "leaderboard"])
def test_a_sweep_without_m_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capfd, sweep
):
    monkeypatch.chdir(tmp_path)
    assert launched(monkeypatch, f"+sweep={sweep}", "scale=small", "trainer=cpu") == 2
    assert f"+sweep={sweep} lists the jobs of a multirun; add -m" in capfd.readouterr().err
    assert not list((tmp_path / "runs").iterdir())


def test_shares_of_a_sweep_are_disjoint_and_are_all_together(planned):
    def mine(part):
        planned("data=synthetic", "seed=1,2,3", f"share={part}/2")
        return [job.run.seed for job in Plan.planned if job.here]

    assert [mine(1), mine(2)] == [[1, 3], [2]]


def test_a_glob_over_a_group_names_its_experiments(planned):
    found = planned("+experiment/phase_a=glob(*)", "seed=1,2,3")
    assert len(found) == 24
    assert found[0]["name"] == "0-phase_a-baseline-seed-1"


@pytest.mark.parametrize("word", ["+experiment=glob(phase_a/*)", "+experiment/phase_a=glob(nope*)"])
def test_a_sweep_without_a_job_is_an_error(tmp_path, monkeypatch, capfd, word):
    monkeypatch.chdir(tmp_path)
    assert multirun(monkeypatch, word, "seed=1,2") == 2
    told = capfd.readouterr().err
    assert "composes no job" in told and word in told and "'+experiment/phase_a=glob(*)'" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["attention=kuramto,softmax", "sed=1,2"])
def test_a_misspelt_word_of_a_sweep_is_one_error(tmp_path, monkeypatch, capfd, recwarn, word):
    monkeypatch.chdir(tmp_path)
    assert multirun(monkeypatch, word) == 1
    assert capfd.readouterr().err.count("Could not") == 1
    assert not [w for w in recwarn if "Plan." in str(w.message)]


@pytest.mark.parametrize(
    ("word", "mended"),
    [("trainer.devices=2", "+launcher=joblib"), ("resume=of/another.ckpt", "leave resume out")],
)
def test_what_no_job_can_be_is_refused_with_an_explanation(
    tmp_path, monkeypatch, capfd, text, word, mended
):
    sweep = f"hydra.sweep.dir={tmp_path}"
    assert multirun(monkeypatch, "seed=1", word, sweep, *TWO_STEPS, *text) == 1
    told = capfd.readouterr().err
    assert f"{word} in a multirun" in told and mended in told
    listed = told[told.index("1 jobs: 1 failed") :]
    assert f"{word} in a multirun" in listed and "the same command" not in listed


def test_no_job_stops_another_and_the_sweep_goes_on_with_what_is_missing(
    tmp_path, monkeypatch, capfd, text
):
    """One job diverges, one is invalid, one meets a bug, one was killed: the rest are trained."""
    from phasegpt.training.lit import LitGPT

    real = LitGPT.on_train_start

    def fails(self):
        if self.run.seed == 3:
            raise RuntimeError("a bug of seed 3")
        return real(self)

    words = [*TWO_STEPS, *text, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    words += ["optimizer.weight_decay=1000"]  # with lr=1000, weights times -1e6 at each step
    jobs_of = ["seed=1,3", "optimizer.lr=1e-3,1e3", "attention.layers=[1],[7]"]
    sweep = tmp_path / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "on_train_start", fails)
        assert multirun(monkeypatch, *words, *jobs_of, "trainer.max_steps=6") == 1
    states = {job.name: job.status for job in jobs(sweep)}
    assert list(states.values()).count("ok") == 1
    assert list(states.values()).count("collapsed") == 1
    assert list(states.values()).count("failed") == 6
    told = capfd.readouterr().err
    assert "8 jobs: 1 done, 6 failed, 1 collapsed" in told
    listed = told[told.index("8 jobs") :]
    assert listed.count("attention.layers=[7] is out of range") == 4
    assert listed.count("RuntimeError: a bug of seed 3") == 2

    done = [file for file in sweep.glob("*/run.json") if read_record(file.parent)["status"] == "ok"]
    before = {file: file.stat().st_mtime_ns for file in done}
    assert multirun(monkeypatch, *words, *jobs_of, "trainer.max_steps=6") == 1
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    told = capfd.readouterr().err
    assert "8 jobs: 2 done, 4 failed, 2 collapsed" in told
    shown = show(sweep)
    assert "8 jobs: 2 done, 4 failed, 2 collapsed" in shown
    assert shown.count("out of range") == 4


def test_a_wider_sweep_finds_its_runs_under_any_job_number(tmp_path, monkeypatch, text, capfd):
    words = [*TWO_STEPS, *text, f"hydra.sweep.dir={tmp_path}"]
    assert multirun(monkeypatch, *words, "seed=5") == 0
    before = (tmp_path / "0-kuramoto-text" / "run.json").read_bytes()
    os.rename(tmp_path / "0-kuramoto-text", tmp_path / "moved")
    assert multirun(monkeypatch, *words, "seed=4,5") == 0
    assert (tmp_path / "moved" / "run.json").read_bytes() == before
    assert {path.parent.name for path in tmp_path.glob("*/run.json")} == {
        "0-kuramoto-text-seed-4",
        "moved",
    }
    assert "2 jobs: 2 done" in capfd.readouterr().err


def test_a_wider_sweep_leaves_a_run_in_the_folder_of_a_new_job(tmp_path, monkeypatch, text, capfd):
    words = [*TWO_STEPS, *text, f"hydra.sweep.dir={tmp_path}", "seed=1,2"]
    assert multirun(monkeypatch, *words, "attention.coupling=0.5") == 0
    files = tmp_path.glob("*/run.json")
    before = {file: file.read_bytes() for file in files}
    for _ in range(2):  # the second time all of it is done
        assert multirun(monkeypatch, *words, "attention.coupling=1.0") == 0
        assert all(file.read_bytes() == then for file, then in before.items())
        found = jobs(tmp_path)
        assert [job.status for job in found] == ["ok"] * 4
        fresh = read_record(tmp_path / found[0].name)
        assert found[0].name == f"0-kuramoto-text-seed-1-{fresh['config_hash'][:6]}"
        assert (fresh["seed"], fresh["config"]["attention"]["coupling"]) == (1, 1.0)
    assert len(list(tmp_path.glob("*/run.json"))) == 4


@pytest.mark.parametrize("damage", [b"", b'{"status": "o', b"[]", b"\xff"])
def test_a_damaged_record_is_named(tmp_path, damage):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"unreadable .*a/run\.json: .*move the folder"):
        read_record(tmp_path / "a")
    (job,) = jobs(tmp_path)
    assert job.status == "failed" and str(job.error).startswith("unreadable ")


def test_a_damaged_record_stops_no_other_job(tmp_path, monkeypatch, text, capfd):
    words = [*TWO_STEPS, *text, f"hydra.sweep.dir={tmp_path}"]
    record = tmp_path / "0-kuramoto-text-seed-1" / "run.json"
    record.parent.mkdir()
    record.write_text("")
    assert multirun(monkeypatch, *words, "seed=1,2") == 1
    assert record.read_text() == ""
    told = capfd.readouterr().err
    assert "Traceback" not in told and "2 jobs: 1 done, 1 failed" in told
    listed = told[told.index("2 jobs") :]
    assert f"0-kuramoto-text-seed-1  failed  unreadable {record}" in listed
    assert "the same command" not in listed  # someone has to see to the file first
    assert f"0-kuramoto-text-seed-1  failed  step 0  best val/ppl -  unreadable {record}" in show(
        tmp_path
    )


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"jobs": [{}]}', '{"jobs": null}'])
def test_a_damaged_plan_is_an_error_that_names_it(tmp_path, capfd, damage):
    (tmp_path / "sweep.json").write_text(damage)
    with pytest.raises(UserError, match=r"unreadable .*sweep\.json: .*Start the sweep again"):
        jobs(tmp_path)
    assert report(tmp_path) == 2
    assert "unreadable" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [
        *[("ok", 0, False), ("collapsed", 0, False), ("running", 1, False)],
        *[("interrupted", 1, True), ("failed", 1, True), ("missing", 1, True)],
        ("invalid", 1, False),
    ],
)
def test_the_report_gives_advice_only_where_it_helps(tmp_path, capfd, status, code, again):
    invalid = "ConfigError: no good" if status == "invalid" else None
    planned = [{"name": "a", "config_hash": None if invalid else "aa", "error": invalid}]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": planned}))
    folder = RunFolder(tmp_path / "a")
    if status not in ("missing", "invalid"):
        folder.update(status=status, config_hash="aa")
    if status != "running":
        folder.close()
    assert report(tmp_path) == code
    folder.close()
    told = capfd.readouterr().err
    assert ("the same command again runs 1 of these" in told) is again
    assert ("  a  " in told) is (status != "ok")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["NAME=phase_c"],
            "NAME=phase_c; choose from: phase_a, phase_a_late, phase_a_long, phase_b, leaderboard",
        ),
        (["NAME=phase_a", "SCALE=medium"], "SCALE=medium; choose from: small, full"),
        (["NAME=phase_a", "SCALE=small full"], "SCALE=small full; choose from: small, full"),
    ],
)
def test_a_study_that_there_is_not_is_refused_before_any_sweep(tmp_path, words, told):
    (tmp_path / ".installed").touch()
    apart = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(  # not as a part of the `make test` that may run this
        ["make", "study", f"VENV={tmp_path}", *words],
        cwd=ROOT, env=apart, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, f"{told}\n")


def test_data_that_cannot_be_read_fails_the_job_and_not_the_next_start(tmp_path, monkeypatch, text):
    path = text[0].removeprefix("data.path=")
    later = tmp_path / "later.txt"
    words = [*TWO_STEPS, text[1], f"data.path={later}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert multirun(monkeypatch, *words, "seed=1") == 1
    (job,) = jobs(tmp_path / "sweep")
    assert job.status == "failed" and "later.txt" in str(job.error)
    later.write_text(Path(path).read_text())
    assert multirun(monkeypatch, *words, "seed=1") == 0
    (job,) = jobs(tmp_path / "sweep")
    assert job.status == "ok" and job.step == 2 and job.error is None


def test_a_job_that_is_refused_for_its_data_or_model_is_a_failed_one(
    tmp_path, monkeypatch, text, capfd
):
    words = [w for w in (*TWO_STEPS, *text) if not w.startswith("data.tokenizer")]
    words += ["attention=as_coded", "model.positions=rope"]
    sweep = tmp_path / "sweep"
    jobs_of = ["data.tokenizer=hf,byte", f"data.tokenizer_path={tmp_path / 'missing.json'},null"]
    assert multirun(monkeypatch, *words, *jobs_of, f"hydra.sweep.dir={sweep}") == 1
    told = capfd.readouterr().err
    assert "will fail: DataError: cannot read" in told and "4 jobs: 4 failed" in told
    errors = [job.error for job in jobs(sweep)]
    assert len(errors) == 4  # two are of configurations that cannot be
    for said in ("cannot read", "knows model.positions=learned only"):
        assert sum(said in error for error in errors) == 1, errors


def test_the_state_of_every_job_can_be_read_at_any_time(tmp_path):
    planned = [{"name": n, "config_hash": n * 2, "error": None, "overrides": []} for n in "abcde"]
    planned.append({"name": "f", "config_hash": None, "error": "no good", "overrides": []})
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": planned}))
    states = {"a": "ok", "b": "running", "c": "running", "d": "interrupted"}
    folders = {}
    for name, status in states.items():
        folders[name] = RunFolder(tmp_path / name)
        folders[name].update(status=status, config_hash=name * 2, step=3, best={"val/ppl": 2.5})
        if name != "b":
            folders[name].close()
    found = jobs(tmp_path)
    folders["b"].close()
    assert [job.status for job in found] == [
        *("ok", "running", "stopped", "stopped", "missing", "failed")
    ]
    assert found[0] == Job("a", "ok", 3, 2.5, None)
    assert [job.name for job in found if job.again] == ["c", "d", "e"]
    assert counted(found) == "6 jobs: 1 done, 1 running, 2 stopped, 1 failed, 1 missing"
    assert "e  missing" in show(tmp_path)


def test_ctrl_c_ends_the_sweep_and_not_one_job_of_it(tmp_path, monkeypatch, text, capfd):
    import signal

    from phasegpt.training.lit import LitGPT

    real = LitGPT.on_train_batch_end

    def interrupts(self, outputs, batch, batch_idx):
        if self.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, outputs, batch, batch_idx)

    words = [*TWO_STEPS, *text, f"hydra.sweep.dir={tmp_path}", "seed=1,2", "trainer.max_steps=20"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "on_train_batch_end", interrupts)
        assert multirun(monkeypatch, *words) == 128 + signal.SIGINT
    assert [job.status for job in jobs(tmp_path)] == ["stopped", "missing"]
    assert "2 jobs: 1 stopped, 1 missing" in capfd.readouterr().err
    assert multirun(monkeypatch, *words) == 0
