"""Runs of a leaderboard that solve a task or do not, and runs that collapsed."""

import pytest
from boards import PLANTED, SOLVED, TASK, TEN, arm, column, of, record, records, shifted

from phasegpt.analysis.leaderboard.board import (
    CANDIDATE,
    CONFIRMED,
    DROPPED,
    HOLDS,
    REFUTED,
    UNDECIDED,
)
from phasegpt.analysis.leaderboard.cells import COUPLING, FELL
from phasegpt.analysis.leaderboard.first_page import first_page
from phasegpt.analysis.leaderboard.task_page import task_page


@pytest.mark.parametrize(("first", "word"), [(11, DROPPED), (21, REFUTED)])
def test_a_run_that_collapsed_on_new_seeds_ends_a_candidate(first, word):
    screened = records(TASK, {k: v[:3] for k, v in PLANTED.items()})
    later = records(TASK, PLANTED, first=first)
    assert column(screened, later).standing("torus") == (HOLDS if first == 11 else CANDIDATE)
    later[f"leaderboard-{TASK}-torus-seed{first}"]["status"] = "collapsed"
    found = column(screened, later)
    assert found.standing("torus") == word
    assert all(cells["torus"].word in (None, FELL) for cells in found.stages.values())
    assert "1 lost" in first_page(of(screened, later))
    if first == 11:  # nor does a confirmation bring it back
        ten = {"softmax": TEN, "torus_off": shifted(0.0, TEN), "torus": arm(0.1, TEN)}
        last = records(TASK, ten, first=21)
        assert column(screened, later, last).standing("torus") == DROPPED
    for seed in range(first, first + 5):  # even if no run of it is left
        later[f"leaderboard-{TASK}-torus-seed{seed}"]["status"] = "collapsed"
    assert column(screened, later).standing("torus") == word


def test_nine_good_runs_beside_one_that_collapsed_win_nothing():
    ten = {"softmax": TEN, "torus_off": shifted(0.0, TEN), "torus": arm(0.1, TEN)}
    last = records(TASK, ten, first=21)
    assert column(last).word("torus") == COUPLING
    last[f"leaderboard-{TASK}-torus-seed24"]["status"] = "collapsed"
    assert column(last).word("torus") == FELL


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
    assert column(found, held, wrong).standing("torus") == HOLDS


def test_holms_family_keeps_a_mechanism_whose_runs_all_collapsed():
    scores = {k: PLANTED[k] for k in ("softmax", "torus", "torus_off", "kope", "kope_off")}
    found = records(TASK, scores, first=11)
    before = column(found).cell("torus").holm
    for seed in range(11, 16):
        found[f"leaderboard-{TASK}-kope-seed{seed}"]["status"] = "collapsed"
    assert column(found).cell("torus").holm == pytest.approx(before)


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
    assert "without a t-test" in page and "1.000 0.300 0.350" in page and "1 of 3" in page
    assert "| 3 against 1 of 3 solved |" in page  # not a difference of accuracies


def test_a_solver_beside_arms_that_never_solve_is_confirmed_by_ten_pairs():
    scores = {"softmax": [0.3] * 10, "torus": [1.0] * 9 + [0.3], "torus_off": [0.2] * 10}
    first = {"softmax": [0.3, 0.31, 0.28], "torus": [1.0] * 3, "torus_off": [0.2, 0.22, 0.21]}
    found = column(records(TASK, first), records(TASK, scores, first=21))
    assert found.stages["confirmation"]["torus"].p == pytest.approx(2 * 0.5**9)  # McNemar, nine
    assert found.standing("torus") == CONFIRMED
    five = {name: (values * 2)[:5] for name, values in first.items()}
    before = column(records(TASK, first), records(TASK, scores, first=21))
    assert before.stages["confirmation"]["torus"].groups
    assert before.stages["screening"]["torus"].candidate
    del scores["torus"][9:], scores["softmax"][9:], scores["torus_off"][9:]
    apart = {"torus_off": [0.2, 0.2, 0.7, 0.2, 0.2], "softmax": [0.3, 0.3, 0.3, 0.8, 0.3]}
    waiting = records(TASK, five | apart, first=11)
    assert column(waiting).cell("torus").p == 2 * 0.5**5  # five pairs cannot decide
    assert column(waiting).cell("torus").word is None
    assert column(waiting).standing("torus") == HOLDS


def test_what_softmax_always_solves_is_won_by_none():
    scores = {"softmax": [0.991, 0.992, 0.993, 0.991, 0.992], "torus": [1.0, 0.999] * 2 + [1.0]}
    found = column(records(TASK, scores | {"torus_off": [0.5, 0.51, 0.52, 0.5, 0.49]}, first=11))
    why = "every run of softmax + RoPE solved it, so none can be better"
    assert found.cell("torus").groups == why
    assert found.cell("torus").against["softmax"].effect == 0 and found.standing("torus") is None
    assert found.cell("torus").missed is None  # no true difference would have been found
    assert set(found.cell("torus").counted) == {"own", "softmax", "off"}  # as registered
    page = first_page(of(records(TASK, scores | {"torus_off": [0.5] * 4 + [0.51]}, first=11)))
    assert "or a control lost a run: torus on cycle navigation" in page


def test_two_groups_far_apart_count_as_solved_or_not_though_none_is_at_99():
    far = {"softmax": [0.95, 0.45, 0.5]}
    assert "0.45 apart" in (column(records(TASK, far)).cell("softmax").groups or "")
    near = {"softmax": [0.65, 0.45, 0.5], "uniform": [1.0] * 3}
    assert column(records(TASK, near)).cell("uniform").groups is None  # each arm is of one kind


def test_an_arm_that_is_not_compared_takes_no_t_test_away():
    more = {"uniform": [0.2, 0.21, 0.6, 0.2, 0.2], "ssa": [0.1, 0.9, 0.1, 0.9, 0.1]}
    found = column(records(TASK, PLANTED | more, first=11))
    assert found.cell("torus").word == COUPLING and found.cell("torus").low is not None
    assert found.cell("ssa").groups and found.cell("uniform").groups and not found.cell("ssa").low
    rival = {"selective_rope": [1.0, 0.3, 1.0, 0.3, 0.3], "kope": arm(0.1)}
    kope = column(records(TASK, PLANTED | rival, first=11)).cell("kope")
    assert kope.word == COUPLING and set(kope.counted) == {"rival"}


def test_counts_that_decide_nothing_refute_nothing():
    """One run of ten that fell far from the others, or that alone is at 0.99, takes the t-test."""
    before = records(TASK, {k: v[:3] for k, v in PLANTED.items()}), records(TASK, PLANTED, first=11)
    for odd in (0.15, 1.0):
        scores = {"softmax": TEN, "torus_off": shifted(0.0, TEN), "torus": arm(0.1, TEN)}
        scores["torus"] = [*scores["torus"][:9], odd]
        last = records(TASK, scores, first=21)
        found = column(*before, last)
        assert found.stages["confirmation"]["torus"].groups and found.standing("torus") == UNDECIDED
        page = first_page(of(*before, last))
        assert "did not hold" not in page and "or a control lost a run: torus on" in page


def test_a_control_that_collapsed_leaves_a_confirmation_open_for_good():
    before = records(TASK, {k: v[:3] for k, v in PLANTED.items()}), records(TASK, PLANTED, first=11)
    scores = {"softmax": TEN, "torus_off": shifted(0.0, TEN), "torus": arm(0.1, TEN)}
    last = records(TASK, scores, first=21)
    last[f"leaderboard-{TASK}-torus_off-seed24"]["status"] = "collapsed"
    found = of(*before, last)
    assert found.columns[0].standing("torus") == UNDECIDED
    page = first_page(found)
    assert "wait for ten more" not in page and "seed 24" not in page
    assert "1 run: collapsed, or its loss was not finite, of torus without its step." in page


def test_a_mechanism_of_which_every_run_collapsed_has_a_row():
    found = records(TASK, {k: PLANTED[k][:3] for k in ("softmax", "kope", "kope_off")})
    for seed in (1, 2, 3):
        found[f"leaderboard-{TASK}-kope-seed{seed}"]["status"] = "collapsed"
    assert "| kope | collapsed |" in first_page(of(found))
