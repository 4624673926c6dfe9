"""Who wins a leaderboard, and by what: planted answers are found, and nothing else is."""

import pytest
from boards import BASE, PLANTED, TASK, TEN, arm, column, of, records, shifted
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
    AT_CHANCE,
    BELOW_OFF,
    BELOW_SOFTMAX,
    COUPLING,
    HARMED,
    OPEN,
    OWN_PART,
    WORSE,
)
from phasegpt.analysis.leaderboard.first_page import first_page


def test_planted_wins_are_credited_to_what_they_are_due_to():
    found = column(records(TASK, PLANTED, first=11))
    words = {name: found.cell(name).word for name in PLANTED}
    assert {k: v for k, v in words.items() if v} == {
        **{"torus": COUPLING, "fsn": ARCHITECTURE, "kope": OWN_PART},
        **{"lohe": WORSE, "ssa": OPEN},
    }
    assert found.standing("torus") == HOLDS
    assert [found.standing(name) for name in ("fsn", "kope", "lohe", "ssa")] == [None] * 4


def test_that_its_coupling_harms_a_mechanism_is_said_beside_its_win():
    scores = {"softmax": BASE, "torus": arm(0.1), "torus_off": shifted(0.2)}
    found = column(records(TASK, scores, first=11))
    assert found.cell("torus").word == HARMED and found.standing("torus") is None
    assert found.cell("torus").p == 1.0  # neither better than both nor worse
    page = first_page(of(records(TASK, scores, first=11)))
    assert "worse than their own off control: torus on cycle navigation" in page
    assert "torus (+0.10" in page and ", worse than its off control) |" in page


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
        tests = [stats.ttest_rel(PLANTED[name], PLANTED[o]) for o in others]
        pair, ways = [t.pvalue for t in tests], {t.statistic > 0 for t in tests}
        p[name] = max(pair) if len(ways) == 1 else 1.0
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


def test_the_screening_tells_who_survives_it():
    found = column(records(TASK, {k: v[:3] for k, v in PLANTED.items()}))
    assert "torus" in found.survivors()
    assert not {"lohe", "kope_off", "softmax"} & set(found.survivors())
    assert column(records(TASK, {k: v[:2] for k, v in PLANTED.items()})).survivors() == []
    assert "than softmax + RoPE and off control: torus" in first_page(
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


def test_a_mean_at_chance_wins_nothing():
    """All seeds share the validation rows: 256 answers of one in five are 0.25 apart by luck."""
    for by, word, standing in ((0.0, AT_CHANCE, None), (0.1, COUPLING, HOLDS)):
        base = [0.20 + by, 0.21 + by, 0.19 + by, 0.20 + by, 0.205 + by]
        scores = {"softmax": base, "torus": arm(0.03, base), "torus_off": shifted(0.0, base)}
        found = column(records(TASK, scores, first=11))
        assert found.floor == pytest.approx(0.25) and found.cell("torus").word == word
        assert found.standing("torus") == standing
        screened = column(records(TASK, {k: v[:3] for k, v in scores.items()}))
        assert screened.survivors() == ["torus"] * (standing is not None)


def test_survivors_of_the_screening_are_in_the_verdicts_family():
    more = {name: PLANTED[name] for name in ("kope", "kope_off")}
    alone = records(TASK, {k: PLANTED[k] for k in ("softmax", "torus", "torus_off")}, first=11)
    survived = {k: v[:3] for k, v in PLANTED.items() if k[:5] in ("softm", "torus")}
    survived |= {"kope": arm(0.05)[:3], "kope_off": more["kope_off"][:3]}
    cell = column(records(TASK, survived), alone).stages["verdict"]["torus"]
    assert cell.holm == pytest.approx(2 * cell.p)
    assert column(alone).cell("torus").holm == pytest.approx(cell.p)


def test_a_rival_that_decides_nothing_is_told_beside_the_win():
    """selective_rope is better than kope: no page may say that kope is better than it."""
    first = {"softmax": BASE, "kope": arm(0.1), "kope_off": shifted(0.0)}
    first |= {"selective_rope": shifted(0.2), "selective_rope_off": shifted(0.0)}
    ten = {"softmax": TEN, "kope": arm(0.1, TEN), "kope_off": shifted(0.0, TEN)}
    ten |= {"selective_rope": shifted(0.2, TEN), "selective_rope_off": shifted(0.0, TEN)}
    found = of(records(TASK, first, first=11), records(TASK, ten, first=21))
    assert found.columns[0].standing("kope") == CONFIRMED
    claim, _, rest = first_page(found).partition(".**")
    assert "kope without coupling (" in claim and "selective_rope" not in claim
    assert "kope minus selective_rope on cycle navigation -0.10" in rest


def test_what_has_no_verdict_for_want_of_a_comparison_counts_as_untested():
    scores = {"softmax": BASE, "fsn": arm(0.1), "fsn_off": shifted(0.0)}
    page = first_page(of(records(TASK, scores, first=11)))
    assert "none of 1 tested" not in page and "| no verdict | no verdict | no verdict |" in page
