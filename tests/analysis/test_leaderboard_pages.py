"""The leaderboard says what its records say: planted answers, numbers of others, nothing more."""

import re
import shutil
from pathlib import Path
from typing import Any

import boards
import pytest
from boards import BASE, STEPS, TOKENS, of, record, records, shifted
from helpers import script
from scipy import stats
from statsmodels.stats.power import TTestPower
from text_boxes import measured

from phasegpt.analysis import leaderboard as lb
from phasegpt.analysis.leaderboard_costs import equal_flops, rates, relative_costs
from phasegpt.analysis.leaderboard_gaps import missing
from phasegpt.analysis.leaderboard_page import first_page
from phasegpt.analysis.leaderboard_runs import arms_in_order, human, human_task
from phasegpt.analysis.leaderboard_task import task_page
from phasegpt.analysis.leaderboard_view import view, write_leaderboard
from phasegpt.core.errors import ConfigError

TASK = "cycle_navigation"
NOISE = [0.003, -0.002, 0.001, 0.000, -0.004, 0.002, 0.004, -0.001, -0.003, 0.001]
TEN = [*BASE, 0.51, 0.48, 0.53, 0.46, 0.55]


def arm(by: float, base: list[float] = BASE) -> list[float]:
    """Scores that are better than `base` by about `by`, with a spread unlike that of `shifted`."""
    return [v + by + NOISE[i] for i, v in enumerate(base)]


def column(*parts: dict[str, Any], task: str = TASK) -> lb.Column:
    return next(c for c in of(*parts).columns if c.key == task)


#: By coupling torus, by architecture fsn, by its own part kope, worse than both lohe, none ssa.
PLANTED = {
    "softmax": BASE,
    **{"torus": arm(0.10), "torus_off": shifted(0.01)},
    **{"fsn": arm(0.10), "fsn_off": shifted(0.10), "token_shift": shifted(0.08)},
    **{"kope": arm(0.00), "kope_off": shifted(-0.10)},
    **{"lohe": arm(-0.10), "lohe_off": shifted(-0.03)},
    **{"ssa": arm(0.00), "ssa_off": shifted(0.00)},
}


def test_planted_wins_are_credited_to_what_they_are_due_to():
    found = column(records(TASK, PLANTED, first=11))
    words = {name: found.cell(name).word for name in PLANTED}
    assert {k: v for k, v in words.items() if v} == {
        **{"torus": lb.COUPLING, "fsn": lb.ARCHITECTURE, "kope": lb.OWN_PART},
        **{"lohe": lb.WORSE, "ssa": lb.OPEN},
    }
    assert found.standing("torus") == lb.HOLDS
    assert [found.standing(name) for name in ("fsn", "kope", "lohe", "ssa")] == [None] * 4


def test_a_mechanism_that_its_coupling_harms_wins_by_architecture_alone():
    scores = {"softmax": BASE, "torus": arm(0.1), "torus_off": shifted(0.2)}
    found = column(records(TASK, scores, first=11))
    assert found.cell("torus").holm < 0.05 and found.cell("torus").word == lb.ARCHITECTURE
    assert found.standing("torus") is None


def test_in_a_text_fewer_bits_are_better():
    text = {name: [3 - v for v in values] for name, values in PLANTED.items()}
    found = column(records("shakespeare", text, first=11), task="shakespeare")
    assert found.cell("torus").word == lb.COUPLING and found.cell("lohe").word == lb.WORSE
    assert found.cell("torus").solved is None


def test_a_cell_has_scipys_numbers():
    cell = column(records(TASK, PLANTED, first=11)).cell("torus")
    own, base, off = (PLANTED[name] for name in ("torus", "softmax", "torus_off"))
    t = stats.ttest_rel(own, base)
    assert cell.against["softmax"].p == pytest.approx(t.pvalue)
    assert (cell.against["softmax"].low, cell.against["softmax"].high) == pytest.approx(
        tuple(t.confidence_interval())
    )
    assert (cell.low, cell.high) == pytest.approx(
        stats.t.interval(0.95, 4, stats.tmean(own), stats.sem(own))
    )
    spread = max(stats.tstd([a - b for a, b in zip(own, o, strict=True)]) for o in (base, off))
    d = cell.missed / spread
    assert TTestPower().power(d, 5, 0.05, alternative="two-sided") == pytest.approx(0.8)


def test_fsn_must_beat_token_shift_too():
    scores = {"softmax": BASE, "fsn": arm(0.1), "fsn_off": shifted(0.0)}
    for by, word in ((0.0, lb.COUPLING), (0.1, lb.ARCHITECTURE)):
        found = column(records(TASK, scores | {"token_shift": shifted(by)}, first=11))
        assert found.cell("fsn").word == word
    assert column(records(TASK, scores, first=11)).cell("fsn").p is None  # without it no verdict


def test_p_of_a_cell_is_the_larger_and_holm_goes_over_mechanisms():
    """Holm by hand: sorted p times 5, 4, 3, 2, 1, never below the one before, at most 1."""
    found = column(records(TASK, PLANTED, first=11))
    p = {}
    for name in ("torus", "fsn", "kope", "lohe", "ssa"):
        others = ["softmax", f"{name}_off"] + ["token_shift"] * (name == "fsn")
        pair = [stats.ttest_rel(PLANTED[name], PLANTED[o]).pvalue for o in others]
        p[name] = max(pair)
        assert found.cell(name).p == pytest.approx(p[name]) != pytest.approx(min(pair))
    least = 0.0
    for factor, name in zip(range(5, 0, -1), sorted(p, key=p.__getitem__), strict=True):
        least = min(1.0, max(least, factor * p[name]))
        assert found.cell(name).holm == pytest.approx(least)
    assert found.cell("softmax").p is None and found.cell("token_shift").holm is None


def test_holm_can_take_a_win_away():
    alone = {"softmax": BASE, "torus": [v + d for v, d in zip(BASE, WEAK, strict=True)],
             "torus_off": shifted(-0.3)}  # fmt: skip
    assert column(records(TASK, alone, first=11)).cell("torus").word == lb.COUPLING
    more = {name: PLANTED[name] for name in ("ssa", "ssa_off", "kope", "kope_off")}
    few = {name: PLANTED[name][:1] for name in ("ssa", "kope")}  # the family is there from run one
    for others in (more, few):
        cell = column(records(TASK, alone | others, first=11)).cell("torus")
        assert cell.p < 0.05 < cell.holm and cell.word != lb.COUPLING


WEAK = [0.020, 0.001, 0.018, 0.012, 0.009]  # p = 0.024 by itself


def test_three_seeds_make_candidates_and_ten_new_ones_decide():
    first = records(TASK, {k: v[:3] for k, v in PLANTED.items()})
    screened = column(first)
    assert screened.cell("torus").word is None and screened.standing("torus") == lb.CANDIDATE
    assert screened.standing("fsn") is None  # clear of softmax alone
    assert column(first, records(TASK, PLANTED, first=11)).standing("torus") == lb.HOLDS
    same = PLANTED | {"torus": arm(0.0)}
    assert column(first, records(TASK, same, first=11)).standing("torus") == lb.DROPPED
    ten = {"softmax": TEN, "torus_off": shifted(0.0, TEN)}
    for by, word in ((0.1, lb.CONFIRMED), (0.0, lb.REFUTED)):
        last = records(TASK, ten | {"torus": arm(by, TEN)}, first=21)
        assert column(first, last).standing("torus") == word
        del last[f"leaderboard-{TASK}-torus-seed30"]
        assert column(first, last).standing("torus") == lb.CANDIDATE  # nine are not ten


def test_clear_intervals_that_holm_does_not_keep_make_a_candidate_still():
    more = {name: PLANTED[name] for name in ("ssa", "ssa_off", "kope", "kope_off")}
    weak = [v + d for v, d in zip(BASE, WEAK, strict=True)]
    scores = {"softmax": BASE, "torus": weak, "torus_off": shifted(-0.3)}
    found = column(records(TASK, scores | more, first=11))
    assert found.cell("torus").holm > 0.05 and found.standing("torus") == lb.CANDIDATE


@pytest.mark.parametrize(("first", "word"), [(11, lb.DROPPED), (21, lb.REFUTED)])
def test_a_run_that_collapsed_on_new_seeds_ends_a_candidate(first, word):
    screened = records(TASK, {k: v[:3] for k, v in PLANTED.items()})
    later = records(TASK, PLANTED, first=first)
    assert column(screened, later).standing("torus") == (lb.HOLDS if first == 11 else lb.CANDIDATE)
    later[f"leaderboard-{TASK}-torus-seed{first}"]["status"] = "collapsed"
    found = column(screened, later)
    assert found.standing("torus") == word
    assert all(cells["torus"].word in (None, lb.OPEN) for cells in found.stages.values())
    assert "1 lost" in first_page(of(screened, later))
    if first == 11:  # nor does a confirmation bring it back
        ten = {"softmax": TEN, "torus_off": shifted(0.0, TEN), "torus": arm(0.1, TEN)}
        last = records(TASK, ten, first=21)
        assert column(screened, later, last).standing("torus") == lb.DROPPED
    for seed in range(first, first + 5):  # even if no run of it is left
        later[f"leaderboard-{TASK}-torus-seed{seed}"]["status"] = "collapsed"
    assert column(screened, later).standing("torus") == word


@pytest.mark.parametrize("more", [
    {"smoke": True}, {"git": {"sha": "0", "dirty": True}},
    {"config": {"trainer": {"max_steps": 7}}},
], ids=str)  # fmt: skip
def test_a_collapsed_run_that_would_not_count_refutes_nothing(more):
    found = records(TASK, PLANTED, first=11)
    config = more.pop("config", {})
    wrong = record(TASK, "torus", 21, 0.5, config=config) | {"status": "collapsed"} | more
    held = {f"leaderboard-{TASK}-{name}-seed21": record(TASK, name, 21, 0.5)
            for name in ("softmax", "torus_off")}  # fmt: skip
    wrong = {f"leaderboard-{TASK}-torus-seed21": wrong}
    assert column(found, held, wrong).standing("torus") == lb.HOLDS


def test_holms_family_keeps_a_mechanism_whose_runs_all_collapsed():
    scores = {k: PLANTED[k] for k in ("softmax", "torus", "torus_off", "kope", "kope_off")}
    found = records(TASK, scores, first=11)
    before = column(found).cell("torus").holm
    for seed in range(11, 16):
        found[f"leaderboard-{TASK}-kope-seed{seed}"]["status"] = "collapsed"
    assert column(found).cell("torus").holm == pytest.approx(before)


def test_the_screening_tells_who_survives_it():
    found = column(records(TASK, {k: v[:3] for k, v in PLANTED.items()}))
    assert "torus" in found.survivors()
    assert not {"lohe", "kope_off", "softmax"} & set(found.survivors())
    assert column(records(TASK, {k: v[:2] for k, v in PLANTED.items()})).survivors() == []
    assert "Survive the screening, by their means: torus" in first_page(
        of(records(TASK, {k: v[:3] for k, v in PLANTED.items() if not k.startswith("fsn")}))
    )


def test_two_seeds_make_no_candidate():
    assert column(records(TASK, {k: v[:2] for k, v in PLANTED.items()})).standing("torus") is None


def test_a_mechanism_without_coupling_wins_by_architecture():
    scores = {"softmax": BASE, "selective_rope": arm(0.1), "selective_rope_off": shifted(0.0)}
    found = column(records(TASK, scores, first=11))
    assert found.cell("selective_rope").word == lb.ARCHITECTURE
    assert found.standing("selective_rope") is None


SOLVED = {"softmax": [1.0, 0.3, 0.35], "torus": [1.0, 1.0, 0.995], "torus_off": [0.2, 0.2, 0.3]}


def test_runs_that_solve_or_do_not_are_counted_without_a_t_test():
    found = column(records(TASK, SOLVED))
    assert found.cell("torus").groups == "1 of 3 runs of softmax + RoPE solved it"
    torus, softmax = found.cell("torus"), found.cell("softmax")
    assert (torus.solved, softmax.solved) == (3, 1) and softmax.low is softmax.sd is None
    assert set(torus.counted) == {"softmax"} and torus.low is not None  # its own are of one kind
    assert torus.against["softmax"].effect == pytest.approx(2 / 3)
    assert torus.against["softmax"].p == 0.5  # of two pairs that disagree both ways are one in two
    assert found.standing("torus") is None
    page = task_page(of(records(TASK, SOLVED)), TASK)
    assert "no t-test" in page and "1.000 0.300 0.350" in page and "1 of 3" in page


def test_a_solver_beside_arms_that_never_solve_is_confirmed_by_ten_pairs():
    scores = {"softmax": [0.3] * 10, "torus": [1.0] * 9 + [0.3], "torus_off": [0.2] * 10}
    found = column(records(TASK, scores, first=21))
    assert found.cell("torus").p == pytest.approx(2 * 0.5**9)  # McNemar: nine pairs, all one way
    assert found.standing("torus") == lb.CONFIRMED
    first = {"softmax": [0.3] * 3, "torus": [1.0] * 3, "torus_off": [0.2] * 3}
    five = {name: (values * 2)[:5] for name, values in first.items()}
    before = column(records(TASK, first), records(TASK, scores, first=21))
    assert before.stages["confirmation"]["torus"].groups
    assert before.stages["screening"]["torus"].candidate
    del scores["torus"][9:], scores["softmax"][9:], scores["torus_off"][9:]
    apart = {"torus_off": [0.2, 0.2, 0.7, 0.2, 0.2], "softmax": [0.3, 0.3, 0.3, 0.8, 0.3]}
    waiting = records(TASK, five | apart, first=11)
    assert column(waiting).cell("torus").p == 2 * 0.5**5  # five pairs cannot decide
    assert column(waiting).cell("torus").word is None
    assert column(waiting).standing("torus") == lb.HOLDS


def test_what_softmax_always_solves_is_won_by_none():
    scores = {"softmax": [0.991, 0.992, 0.993, 0.991, 0.992], "torus": [1.0, 0.999] * 2 + [1.0]}
    found = column(records(TASK, scores | {"torus_off": [0.5, 0.51, 0.52, 0.5, 0.49]}, first=11))
    why = "every run of softmax + RoPE solved it, so none can be better"
    assert found.cell("torus").groups == why
    assert found.cell("torus").against["softmax"].effect == 0 and found.standing("torus") is None


def test_two_groups_far_apart_count_as_solved_or_not_though_none_is_at_99():
    far = {"softmax": [0.95, 0.45, 0.5]}
    assert "0.45 apart" in (column(records(TASK, far)).cell("softmax").groups or "")
    near = {"softmax": [0.65, 0.45, 0.5], "uniform": [1.0] * 3}
    assert column(records(TASK, near)).cell("uniform").groups is None  # each arm is of one kind


def test_an_arm_that_is_not_compared_takes_no_t_test_away():
    more = {"uniform": [0.2, 0.21, 0.6, 0.2, 0.2], "ssa": [0.1, 0.9, 0.1, 0.9, 0.1]}
    found = column(records(TASK, PLANTED | more, first=11))
    assert found.cell("torus").word == lb.COUPLING and found.cell("torus").low is not None
    assert found.cell("ssa").groups and found.cell("uniform").groups and not found.cell("ssa").low
    rival = {"selective_rope": [1.0, 0.3, 1.0, 0.3, 0.3], "kope": arm(0.1)}
    kope = column(records(TASK, PLANTED | rival, first=11)).cell("kope")
    assert kope.word == lb.COUPLING and set(kope.counted) == {"rival"}


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
    assert "- 2 runs: collapsed, or its loss was not finite." in first_page(found)
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
    assert f"{name}: no off control of torus, so nothing credits their coupling" in told
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


def test_the_same_records_give_the_same_pages(study, tmp_path):
    shutil.copytree(study / "runs", tmp_path / "leaderboard" / "runs")
    with pytest.MonkeyPatch.context() as patch:  # pictures are tested to be the same elsewhere
        patch.setattr("phasegpt.analysis.leaderboard_figures.draw", lambda *_: [])
        write_leaderboard(tmp_path / "leaderboard")
    for path in study.glob("*.md"):
        assert path.read_bytes() == (tmp_path / "leaderboard" / path.name).read_bytes()


def test_a_folder_in_which_no_run_counts_is_refused(tmp_path):
    folder = boards.write(tmp_path, records(TASK, {"torus": [0.5]}, leaky=True))
    with pytest.raises(ConfigError, match=r"no run that counts.*leaky"):
        write_leaderboard(folder)
