"""Who wins a leaderboard, and by what: planted answers are found, and nothing else is."""

import pytest
from boards import BASE, PLANTED, SOLVED, TASK, arm, column, of, record, records, shifted
from scipy import stats
from statsmodels.stats.power import TTestPower

from phasegpt.analysis.leaderboard.board import (
    CANDIDATE,
    CONFIRMED,
    DROPPED,
    HOLDS,
    REFUTED,
)
from phasegpt.analysis.leaderboard.cells import (
    ARCHITECTURE,
    BELOW_OFF,
    BELOW_SOFTMAX,
    COUPLING,
    OPEN,
    OWN_PART,
    WORSE,
)
from phasegpt.analysis.leaderboard.first_page import first_page
from phasegpt.analysis.leaderboard.task_page import task_page

TEN = [*BASE, 0.51, 0.48, 0.53, 0.46, 0.55]


def test_planted_wins_are_credited_to_what_they_are_due_to():
    found = column(records(TASK, PLANTED, first=11))
    words = {name: found.cell(name).word for name in PLANTED}
    assert {k: v for k, v in words.items() if v} == {
        **{"torus": COUPLING, "fsn": ARCHITECTURE, "kope": OWN_PART},
        **{"lohe": WORSE, "ssa": OPEN},
    }
    assert found.standing("torus") == HOLDS
    assert [found.standing(name) for name in ("fsn", "kope", "lohe", "ssa")] == [None] * 4


def test_a_mechanism_that_its_coupling_harms_wins_by_architecture_alone():
    scores = {"softmax": BASE, "torus": arm(0.1), "torus_off": shifted(0.2)}
    found = column(records(TASK, scores, first=11))
    assert found.cell("torus").holm < 0.05 and found.cell("torus").word == ARCHITECTURE
    assert found.standing("torus") is None


def test_in_a_text_fewer_bits_are_better():
    text = {name: [3 - v for v in values] for name, values in PLANTED.items()}
    found = column(records("shakespeare", text, first=11), task="shakespeare")
    assert found.cell("torus").word == COUPLING and found.cell("lohe").word == WORSE
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
    assert (
        column(records(TASK, {k: v[:3] for k, v in PLANTED.items()})).cell("torus").missed is None
    )
    d = cell.missed / spread
    assert TTestPower().power(d, 5, 0.05, alternative="two-sided") == pytest.approx(0.8)


def test_fsn_must_beat_token_shift_too():
    scores = {"softmax": BASE, "fsn": arm(0.1), "fsn_off": shifted(0.0)}
    for by, word in ((0.0, COUPLING), (0.1, ARCHITECTURE)):
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
    assert column(records(TASK, alone, first=11)).cell("torus").word == COUPLING
    more = {name: PLANTED[name] for name in ("ssa", "ssa_off", "kope", "kope_off")}
    few = {name: PLANTED[name][:1] for name in ("ssa", "kope")}  # the family is there from run one
    for others in (more, few):
        cell = column(records(TASK, alone | others, first=11)).cell("torus")
        assert cell.p < 0.05 < cell.holm and cell.word != COUPLING


WEAK = [0.020, 0.001, 0.018, 0.012, 0.009]  # p = 0.024 by itself


def test_three_seeds_make_candidates_and_ten_new_ones_decide():
    first = records(TASK, {k: v[:3] for k, v in PLANTED.items()})
    screened = column(first)
    assert screened.cell("torus").word is None and screened.standing("torus") == CANDIDATE
    assert screened.standing("fsn") is None  # clear of softmax alone
    assert column(first, records(TASK, PLANTED, first=11)).standing("torus") == HOLDS
    same = PLANTED | {"torus": arm(0.0)}
    assert column(first, records(TASK, same, first=11)).standing("torus") == DROPPED
    ten = {"softmax": TEN, "torus_off": shifted(0.0, TEN)}
    for by, word in ((0.1, CONFIRMED), (0.0, REFUTED)):
        last = records(TASK, ten | {"torus": arm(by, TEN)}, first=21)
        assert column(first, last).standing("torus") == word
        del last[f"leaderboard-{TASK}-torus-seed30"]
        assert column(first, last).standing("torus") == CANDIDATE  # nine are not ten


def test_ten_pairs_confirm_no_mechanism_that_was_no_candidate():
    for by in (0.1, 0.0):
        ten = {"softmax": TEN, "torus_off": shifted(0.0, TEN), "torus": arm(by, TEN)}
        last = records(TASK, ten, first=21)
        assert column(last).standing("torus") is None
        level = PLANTED | {"torus": arm(0.0)}  # as softmax at both stages before
        before = records(TASK, {k: v[:3] for k, v in level.items()}), records(TASK, level, first=11)
        assert column(*before, last).standing("torus") is None
        assert "did not hold" not in first_page(of(*before, last))


def test_what_is_worse_than_one_of_two_is_said():
    for by, off, word in ((-0.1, -0.1, BELOW_SOFTMAX), (-0.1, 0.0, WORSE), (0.0, 0.1, BELOW_OFF)):
        scores = {"softmax": BASE, "torus": arm(by), "torus_off": shifted(off)}
        found = of(records(TASK, scores, first=11))
        assert found.columns[0].cell("torus").word == word
        assert ("Worse than softmax + RoPE" in first_page(found)) == (word != BELOW_OFF)


def test_a_comparison_that_is_not_there_credits_nothing():
    for gone, lacks in (("torus_off", "no off control of torus"), ("softmax", "no mechanism is"),
                        ("token_shift", "token shift, which fsn must beat")):  # fmt: skip
        name = "fsn" if gone == "token_shift" else "torus"
        whole = records(TASK, PLANTED)
        found = of(whole, records(TASK, {k: v for k, v in PLANTED.items() if k != gone}, first=11))
        assert of(whole, records(TASK, PLANTED, first=11)).columns[0].word(name) is not None
        assert found.columns[0].word(name) is None
        assert f"{lacks}" in first_page(found)


def test_three_equal_differences_make_no_candidate():
    base = [0.5, 0.25, 0.375]  # exact in binary, so that no spread comes of rounding
    scores = {"softmax": base, "torus": [v + 0.125 for v in base], "torus_off": base}
    found = column(records(TASK, scores))
    assert found.cell("torus").p == 1.0 and found.standing("torus") is None


def test_clear_intervals_that_holm_does_not_keep_make_a_candidate_still():
    more = {name: PLANTED[name] for name in ("ssa", "ssa_off", "kope", "kope_off")}
    weak = [v + d for v, d in zip(BASE, WEAK, strict=True)]
    scores = {"softmax": BASE, "torus": weak, "torus_off": shifted(-0.3)}
    found = column(records(TASK, scores | more, first=11))
    assert found.cell("torus").holm > 0.05 and found.standing("torus") == CANDIDATE


@pytest.mark.parametrize(("first", "word"), [(11, DROPPED), (21, REFUTED)])
def test_a_run_that_collapsed_on_new_seeds_ends_a_candidate(first, word):
    screened = records(TASK, {k: v[:3] for k, v in PLANTED.items()})
    later = records(TASK, PLANTED, first=first)
    assert column(screened, later).standing("torus") == (HOLDS if first == 11 else CANDIDATE)
    later[f"leaderboard-{TASK}-torus-seed{first}"]["status"] = "collapsed"
    found = column(screened, later)
    assert found.standing("torus") == word
    assert all(cells["torus"].word in (None, OPEN) for cells in found.stages.values())
    assert "1 lost" in first_page(of(screened, later))
    if first == 11:  # nor does a confirmation bring it back
        ten = {"softmax": TEN, "torus_off": shifted(0.0, TEN), "torus": arm(0.1, TEN)}
        last = records(TASK, ten, first=21)
        assert column(screened, later, last).standing("torus") == DROPPED
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
    assert column(found, held, wrong).standing("torus") == HOLDS


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
    assert "screening than both they are compared with: torus" in first_page(
        of(records(TASK, {k: v[:3] for k, v in PLANTED.items() if not k.startswith("fsn")}))
    )


def test_two_seeds_make_no_candidate():
    assert column(records(TASK, {k: v[:2] for k, v in PLANTED.items()})).standing("torus") is None


def test_a_mechanism_without_coupling_wins_by_architecture():
    scores = {"softmax": BASE, "selective_rope": arm(0.1), "selective_rope_off": shifted(0.0)}
    found = column(records(TASK, scores, first=11))
    assert found.cell("selective_rope").word == ARCHITECTURE
    assert found.standing("selective_rope") is None
    assert "tested mechanisms" not in first_page(of(records(TASK, scores, first=11)))


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
    page = first_page(of(records(TASK, scores | {"torus_off": [0.5] * 4 + [0.51]}, first=11)))
    assert "softmax + RoPE always does: torus on cycle navigation" in page


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
