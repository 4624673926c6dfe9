"""The pages of a leaderboard say what its records say, and nothing more."""

import re
import shutil
from pathlib import Path
from typing import Any

import boards
import pytest
from boards import BASE, PLANTED, SOLVED, STEPS, TASK, TOKENS, arm, of, record, records, shifted
from helpers import script
from scipy import stats
from text_boxes import measured

from phasegpt.analysis.leaderboard.costs import equal_flops, rates, relative_costs
from phasegpt.analysis.leaderboard.first_page import first_page
from phasegpt.analysis.leaderboard.gaps import missing
from phasegpt.analysis.leaderboard.runs import arms_in_order, human, human_task
from phasegpt.analysis.leaderboard.task_page import task_page
from phasegpt.analysis.leaderboard.view import view, write_leaderboard
from phasegpt.core.errors import ConfigError


def test_runs_that_do_not_count_are_grouped_by_reason():
    good = records(TASK, {"softmax": BASE[:3]})

    def run(name: str, **more: Any) -> dict[str, Any]:
        seed = int(name.rpartition("seed")[2])
        content = record(TASK, "softmax", seed, 0.5) | more
        return {name: content}

    prefix = f"leaderboard-{TASK}"
    config = record(TASK, "kope", 1, 0.5)["config"]
    longer = config | {"trainer": config["trainer"] | {"max_steps": 2000}}
    dead = config | {"attention": {"name": "ssa_as_published", "layers": "all"}}
    final = {"val/accuracy": 0.5}
    found = of(
        good,
        run(f"{prefix}-torus-seed1", leaky=True),
        run(f"{prefix}-torus-seed2", status="collapsed"),
        run(f"{prefix}-torus-seed3", final=final),
        run(f"{prefix}-fsn-seed1", git={"sha": "0", "dirty": True}),
        run(f"{prefix}-fsn-seed2", status="failed"),
        run(f"{prefix}-fsn-seed3", smoke=True),
        run(f"{prefix}-kope-seed1", config=longer),
        run(f"{prefix}-kope-seed7"),
        run(f"{prefix}-ssa-seed1", config=dead),
        run("phase_a-seed1"),
    )
    assert len(found.runs) == 3
    assert {reason: len(names) for reason, names in found.excluded.items()} == {
        "leaky: it sees the future": 1,
        "collapsed, or its loss was not finite": 2,
        "not from a checkout without uncommitted changes": 1,
        "not finished: failed": 1,
        "a smoke run, which does not train or validate in full": 1,
        "another configuration than most of its task: trainer.max_steps": 1,
        "a seed of no stage, or other than in its name": 1,
        "dead: parameters without a gradient at the start": 1,
        "no run of the leaderboard by its name": 1,
    }
    assert "- 2 runs: collapsed, or its loss was not finite, of torus." in first_page(found)
    assert f"{prefix}-torus-seed2" in task_page(found, TASK)


def test_lost_runs_stand_in_their_cell_and_an_arm_has_one_rate():
    good = records(TASK, PLANTED, first=11)
    good[f"leaderboard-{TASK}-torus-seed12"] |= {"status": "collapsed"}
    good[f"leaderboard-{TASK}-ssa-seed13"]["config"]["optimizer"]["lr"] = 9.0
    found = of(good)
    assert (found.columns[0].cell("torus").n, found.columns[0].cell("torus").lost) == (4, 1)
    assert found.columns[0].cell("torus").word is None  # four pairs decide nothing
    assert "another configuration than most of its arm: optimizer.lr" in found.excluded
    assert "4 (1 lost)" in first_page(found)
    again = records(TASK, {"kope": BASE[:3]}, config={"optimizer": {"lr": 9.0}})
    assert sum(map(len, of(good, again).excluded.values())) == 2 + 3  # nor two in two stages


def test_at_equal_flops_a_dearer_arm_is_cut_at_its_last_validation_within():
    scores = {"softmax": BASE, "torus": arm(0.1), "uniform": shifted(-0.1)}
    every = records(TASK, scores, first=11)
    for name, content in every.items():
        if "torus" in name:
            content["flops_per_token"] = {"causal": 500_001}
            content["decode_bytes"] = {"token": 1024, "constant": 512}
        if "uniform" in name:  # stopped early as it was good: its score stays
            content |= {"step": STEPS // 2, "tokens": STEPS // 2 * TOKENS}
            content["curves"] = {"val/accuracy": [[STEPS // 2, content["final"]["val/accuracy"]]]}
    found = of(every)
    budget, cuts = equal_flops(found, found.columns[0])
    assert budget == 500_000 * STEPS * TOKENS
    assert cuts["softmax"].share == 1 and cuts["softmax"].mean == pytest.approx(sum(BASE) / 5)
    assert cuts["torus"].share == 0.5 and cuts["torus"].mean == pytest.approx(sum(arm(0.1)) / 10)
    assert cuts["uniform"].mean == pytest.approx(sum(shifted(-0.1)) / 5)
    halves = [v / 2 for v in arm(0.1)]
    assert cuts["torus"].difference.p == pytest.approx(stats.ttest_rel(halves, BASE).pvalue)
    dearer = relative_costs(found, "torus")
    assert dearer["flops"] == pytest.approx(1.000002)
    context = every[f"leaderboard-{TASK}-torus-seed11"]["config"]["model"]["block_size"]
    assert dearer["state"] == pytest.approx(0.5 + 0.25 / context)
    assert "at 50%" in first_page(found) and "is cut there too" in first_page(found).replace(
        "are", "is"
    )


def test_off_controls_which_are_not_shown_set_no_budget():
    every = records(TASK, {"softmax": BASE, "torus": arm(0.1), "torus_off": BASE}, first=11)
    for name, content in every.items():
        if "_off" in name:
            content["flops_per_token"] = {"causal": 100}
    found = of(every)
    budget, cuts = equal_flops(found, found.columns[0])
    assert budget == 500_000 * STEPS * TOKENS and set(cuts) == {"softmax", "torus"}
    assert "cycle navigation, 1e+12 FLOPs" in first_page(found)


def test_all_scores_of_a_column_are_of_the_same_seeds():
    """A mechanism's mark is from new seeds, beside which the others' scores would compare wrongly.

    The later seeds are harder for all.
    """
    first = records(TASK, {k: v[:3] for k, v in PLANTED.items()})
    later = {k: [x - 0.3 for x in PLANTED[k]] for k in ("softmax", "torus", "torus_off")}
    found = of(first, records(TASK, later, first=11))
    scores = first_page(found).split("## Scores")[1]
    assert re.search(r"\| torus \| 0\.604 \[.*\], 3 \*\*both\*\* \|", scores)
    assert re.search(r"\| softmax \+ RoPE \| 0\.503 \[", scores)
    assert "of the same seeds: the screening's" in scores
    assert "| cycle navigation | torus (holds" in first_page(found).replace(
        f"[{'cycle navigation'}]({TASK}.md)", "cycle navigation"
    )
    shown = view(found, "x")
    assert shown["columns"][0]["stage"] == "screening"
    assert [t["name"].rpartition(": ")[2] for t in shown["tables"]] == ["verdict", "screening"]


def test_survivors_without_a_verdict_are_missing():
    found = of(records(TASK, {k: v[:3] for k, v in PLANTED.items()}))
    told = "cycle navigation, verdict: not run for torus, kope, which survive the screening"
    assert told in set(missing(found))
    assert told not in set(missing(of(records(TASK, PLANTED), records(TASK, PLANTED, first=11))))


def test_at_equal_flops_a_text_is_in_bits_per_byte():
    every = records("shakespeare", {"softmax": [2.0], "torus": [1.9]})
    every["leaderboard-shakespeare-torus-seed1"]["flops_per_token"] = {"causal": 700_000}
    found = of(every)
    _, cuts = equal_flops(found, found.columns[0])
    assert cuts["softmax"].mean == 2.0 and cuts["torus"].mean == pytest.approx(3.8)


def loads(values: dict[int, float], *parts: dict[str, Any]) -> None:
    """Give every record accuracies by length."""
    for part in parts:
        for content in part.values():
            content["final"] |= {f"val/accuracy/{n}": v for n, v in values.items()}
            if far := [v for n, v in values.items() if n > 40]:
                content["final"]["val/accuracy/beyond"] = sum(far) / len(far)


def test_lengths_are_curves_and_what_cannot_read_them_is_na():
    far = records(TASK, {"softmax": [0.9], "torus": [0.9]})
    near = records(TASK, {"softmax_learned": [0.8]})
    loads({20: 0.95, 40: 0.9, 80: 0.5, 100: 0.3}, far)
    loads({20: 0.85, 40: 0.8}, near)
    found = of(far, near)
    assert [c.key for c in found.columns] == [TASK, f"{TASK}/beyond"]
    assert found.columns[1].cell("softmax").mean == pytest.approx(0.4)
    page = task_page(found, TASK)
    assert "Trained up to 40." in page
    assert "| softmax, learned positions | 0.850 | 0.800 | n/a | n/a |" in page
    assert re.search(r"learned positions \| 0\.800, 1 \| n/a", first_page(found))
    other = records("selective_copy", {"kope": [0.5]})  # did not run here, which is not "n/a"
    assert re.search(r"\| kope \|  \|  \| 0\.500, 1", first_page(of(far, near, other)))


def test_learning_rates_are_shown_and_only_there():
    chosen = {}
    for rate, score in ((1e-3, 0.4), (3e-3, 0.6)):
        content = record(TASK, "torus", 0, score, config={"optimizer": {"lr": rate}})
        chosen[f"leaderboard-{TASK}-torus-lr{rate:g}-seed0"] = content
    only = of(chosen)
    assert rates(only, only.columns[0]) == {"torus": {1e-3: 0.4, 3e-3: 0.6}}
    assert not only.columns[0].stages and "**Nothing is claimed: only" in first_page(only)
    assert view(only, "rates")["columns"][0]["cells"] == {}
    assert any("only runs that choose learning rates, of" in line for line in missing(only))
    page = task_page(only, TASK)
    assert "| torus | 0.400 | 0.600 |" in page
    later = records(TASK, {"torus": [0.5]}, config={"optimizer": {"lr": 1e-3}})
    page = task_page(of(chosen, later), TASK)
    assert "| torus | **0.400** | 0.600 |" in page
    assert "By the last validation another rate was best: torus." in page


def test_partial_records_claim_nothing_and_say_what_is_missing():
    found = of(records(TASK, {"torus": BASE[:1], "fsn": BASE[:1], "fsn_off": BASE[:1]}),
               records("selective_copy", {"softmax": [0.3, 0.4, 0.5]}))  # fmt: skip
    page = first_page(found)
    assert page.splitlines()[2].startswith("**No verdict yet")
    told = list(missing(found))
    name = "cycle navigation"
    assert f"{name}, screening: no run of softmax + RoPE, so no mechanism is compared" in told
    assert f"{name}, screening: no off control of torus, so nothing credits their coupling" in told
    assert f"{name}, screening: no run of softmax with token shift, which fsn must beat" in told
    assert f"{name}, screening: seeds 2, 3 of torus, fsn, fsn without delay and harmonics" in told
    assert "selective copy: no run of torus, fsn, fsn without delay and harmonics" in told
    assert all(f"- {line}." in page for line in told)


def test_arms_have_names_for_people_and_controls_come_first():
    assert human("softmax") == "softmax + RoPE" and human("kope_off") == "kope without coupling"
    assert human_task("cycle_navigation/beyond") == "cycle navigation, beyond"
    arms = ["my.mechanism", "fsn_off", "fsn", "torus", "no_mixing", "softmax", "kuramoto"]
    assert arms_in_order(arms) == [
        *("softmax", "no_mixing", "kuramoto", "torus", "fsn", "fsn_off", "my.mechanism")
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory: Any) -> Path:
    """A leaderboard with all that its pages can show."""
    first = records(TASK, {k: v[:3] for k, v in PLANTED.items()})
    last = records(TASK, PLANTED, first=11)
    loads({20: 0.95, 40: 0.9, 80: 0.5, 100: 0.3}, first, last)
    chosen = {
        f"leaderboard-{TASK}-{name}-lr{rate:g}-seed0": record(
            TASK, name, 0, 0.5, config={"optimizer": {"lr": rate}}
        )
        for name in ("softmax", "torus", "torus_off")
        for rate in (1e-3, 3e-3)
    }
    text = records("shakespeare", {k: [3 - x for x in v[:3]] for k, v in PLANTED.items()})
    folder = tmp_path_factory.mktemp("results") / "leaderboard"
    return boards.write(folder, first, last, chosen, text, records("selective_copy", SOLVED))


def test_everything_is_written_by_the_command_and_no_text_is_upon_another(
    study, capsys, monkeypatch
):
    with measured() as found:
        script(monkeypatch, "analyze_results.py", study)
    assert {name: faults for name, faults in found.items() if faults} == {}
    assert set(found) == {
        *("scores.png", f"{TASK}_loads.png", f"{TASK}_rates.png"),
    }
    written = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    pages = {"README.md", f"{TASK}.md", "shakespeare.md", "selective_copy.md", "report.html"}
    assert {name for name in written if not name.endswith(".png")} == pages
    assert "README.md" in capsys.readouterr().out
    page = (study / "README.md").read_text()
    for link in re.findall(r"\]\((\w+\.\w+)\)", page):
        assert link in written or link in found, link
    assert "fsn on cycle navigation" in page and "(candidate, ten new seeds decide)" in page


def test_a_win_that_was_looked_into_is_linked(study, tmp_path):
    folder = tmp_path / "leaderboard"
    shutil.copytree(study / "runs", folder / "runs")
    link = "[discovery_torus](../discovery_torus/README.md)"
    write_leaderboard(folder)
    assert link not in (folder / "README.md").read_text()
    (tmp_path / "discovery_torus").mkdir()
    (tmp_path / "discovery_torus" / "README.md").write_text("# torus")
    write_leaderboard(folder)
    assert link in (folder / "README.md").read_text()


def test_the_same_records_give_the_same_pages(study, tmp_path):
    again = tmp_path / study.parent.name / study.name
    shutil.copytree(study / "runs", again / "runs")
    with pytest.MonkeyPatch.context() as patch:  # pictures are tested to be the same elsewhere
        patch.setattr("phasegpt.analysis.leaderboard.figures.draw", lambda *_: [])
        write_leaderboard(again)
        for path in study.glob("*.md"):
            assert path.read_bytes() == (again / path.name).read_bytes()
        write_leaderboard(again.rename(tmp_path / "mine"))  # a board of somebody else's
    page = (tmp_path / "mine" / "README.md").read_text()
    assert "make study" not in page and "../attention" not in page
    assert f"analyze_results.py RUNS --into {tmp_path.name}/mine" in page


def test_a_folder_in_which_no_run_counts_is_refused(tmp_path):
    folder = boards.write(tmp_path, records(TASK, {"torus": [0.5]}, leaky=True))
    with pytest.raises(ConfigError, match=r"no run that counts.*leaky"):
        write_leaderboard(folder)
