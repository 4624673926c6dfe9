"""Statistics against numbers worked by hand, and against other implementations."""

import math

import numpy as np
import pytest
from helpers import ROOT
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from phasegpt.analysis.statistics import (
    bca,
    detectable,
    differ,
    effect_size,
    holm,
    interval,
    less,
    less_spread,
    never,
    perplexity_difference,
    sign_flip,
    solve,
    verdict,
    within,
)
from phasegpt.analysis.study import run_table

D = [-1.0, -2.0, -3.0, -4.0, 0.5]


def test_the_t_interval_is_that_of_statsmodels() -> None:
    mean, sd, low, high = interval(D)
    assert (mean, sd) == (pytest.approx(-1.9), pytest.approx(np.std(D, ddof=1)))
    assert (low, high) == pytest.approx(DescrStatsW(D).tconfint_mean())
    assert interval([]) == (None, None, None, None)
    assert interval([3.0]) == (3.0, None, None, None)


def test_the_bootstrap_interval_is_fixed_and_skewed_with_the_data() -> None:
    skewed = [1.0, 1.1, 1.2, 1.3, 1.2, 1.1, 9.0]
    low, high = bca(skewed)
    assert bca(skewed) == (low, high)
    mean = float(np.mean(skewed))
    assert high - mean > mean - low > 0
    assert bca([2.0, 2.0]) == (2.0, 2.0) and bca([2.0]) is None


def test_the_paired_t_test_is_scipys() -> None:
    a, b = [4.0, 8.0, 6.0, 7.0, 3.0], [5.0, 8.5, 6.2, 8.1, 3.9]
    found = less(a, b)
    assert found.p == pytest.approx(stats.ttest_rel(a, b, alternative="less").pvalue)
    assert found.against == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)
    assert found.effect == pytest.approx(-0.74) and found.n == 5
    assert found.high < 0 and found.bca[1] < 0


def test_two_sided_p_and_interval_of_pairs_are_scipys() -> None:
    a, b = [4.0, 8.0, 6.0, 7.0, 3.0], [5.0, 8.5, 6.2, 8.1, 3.9]
    found, t = differ(a, b), stats.ttest_rel(a, b)
    assert found.p == pytest.approx(t.pvalue) == pytest.approx(differ(b, a).p)
    assert (found.low, found.high) == pytest.approx(tuple(t.confidence_interval()))
    assert differ([0.3, 0.7, 0.6], [0.2, 0.6, 0.5]).p == 1.0  # a spread of rounding is none
    assert differ([1.0], [2.0]).p == 1.0 and differ([1.0], [2.0]).low is None
    with pytest.raises(ValueError, match="nothing to compare"):
        differ([], [])


def test_solvers_are_compared_by_mcnemars_exact_test() -> None:
    of, than = [True] * 7 + [False] * 3, [True, False] + [False] * 7 + [True]
    found = solve(of, than)  # six pairs disagree one way, one the other: 2 (1 + 7) / 2^7
    assert found.p == pytest.approx(2 * 8 / 128) and found.effect == pytest.approx(0.5)
    assert solve([True] * 6, [False] * 6).p == 2 / 64 < 0.05 < solve([True] * 5, [False] * 5).p
    assert solve([True], [True]).p == 1.0


def test_the_sign_flip_test_counts_patterns() -> None:
    assert sign_flip([-1.0, -2.0, -3.0]) == 1 / 8  # of 8 patterns only the data's is as low
    # -2 -3 -4 with -1 +-, +-0.5: sums -10.5 and -9.5 (the data's)
    assert sign_flip(D) == 2 / 32
    assert sign_flip([1.0, 2.0, 3.0]) == 1.0


def test_differences_that_do_not_vary_have_no_t() -> None:
    found = less([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert (found.p, found.against, found.size) == (1.0, 1.0, None)
    assert (found.effect, found.low, found.high, found.exact) == (-1, -1, -1, 1 / 8)


def test_unequal_or_empty_lists_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        less([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="nothing to compare"):
        less([])


def test_hedges_correction_is_the_exact_one() -> None:
    d_z = np.mean(D) / np.std(D, ddof=1)
    # J(4) = Gamma(2) / (sqrt(2) Gamma(3/2)) = 1 / (sqrt(2) sqrt(pi) / 2)
    assert effect_size(D) == pytest.approx(d_z * 2 / math.sqrt(2 * math.pi))
    assert effect_size([1.0, 1.0, 1.0]) is None and effect_size([1.0, 2.0]) is None


def test_a_mean_is_in_the_band_only_if_both_ends_are_excluded() -> None:
    inside = within([0.44, 0.45, 0.46, 0.45, 0.44], [0.35, 0.55])
    assert inside.p < 1e-3 and inside.against > 0.99
    edge = within([0.50, 0.58, 0.52, 0.60, 0.53], [0.35, 0.55])
    assert edge.p > 0.05 and edge.against > 0.05
    below = within([0.30, 0.31, 0.29, 0.30, 0.31], [0.35, 0.55])
    assert below.p > 0.99 and below.against < 1e-3


def test_spread_is_compared_by_the_variance_ratio() -> None:
    a, b = [1.0, 2.0, 3.0], [2.0, 4.0, 6.0, 8.0]
    found = less_spread(a, b)
    F = 1 / np.var(b, ddof=1)
    assert found.effect == pytest.approx(math.sqrt(F))
    assert found.p == pytest.approx(stats.f.cdf(F, 2, 3))
    assert found.p + found.against == pytest.approx(1)
    assert found.low < found.effect < found.high
    assert less_spread(a, [1.0, 1.0, 1.0]).p == 1.0
    # The bound that the docstring and the preregistration state for five and five.
    assert math.sqrt(stats.f.ppf(0.05, 4, 4)) == pytest.approx(0.40, abs=0.005)


def test_what_never_happened_in_15_runs_may_have_chance_a_fifth() -> None:
    found = never([False] * 15)
    assert (found.effect, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 15))  # Clopper and Pearson at k = 0


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_power_is_that_of_the_noncentral_t() -> None:
    # The smallest d_z to two digits, rounded up so that the power is reached.
    found = {n: math.ceil(100 * detectable(n)) / 100 for n in (3, 5, 10)}
    assert found == {3: 2.30, 5: 1.36, 10: 0.86}
    for n in found:
        t = stats.t.ppf(0.95, n - 1)
        power = stats.nct.sf(t, n - 1, detectable(n) * math.sqrt(n))
        assert power == pytest.approx(0.8, abs=1e-5)
        t, shift = stats.t.ppf(0.975, n - 1), detectable(n, two_sided=True) * math.sqrt(n)
        both = stats.nct.sf(t, n - 1, shift) + stats.nct.cdf(-t, n - 1, shift)
        assert both == pytest.approx(0.8, abs=1e-5)


def test_verdicts_use_three_words_and_none_below_five_seeds() -> None:
    assert verdict(0.05, 0.95, n=5) == "supported"
    assert verdict(0.98, 0.02, n=5) == "not supported"
    assert verdict(0.3, 0.7, n=5) == "inconclusive"
    assert verdict(0.001, 0.999, n=4) is None


def test_the_block_bootstrap_pairs_blocks_and_covers_the_difference() -> None:
    generator = np.random.default_rng(1)
    hard_D = generator.normal(3, 1, 60)  # documents differ much more than the two models
    document_T = np.repeat(np.arange(60), 50)
    a_T = hard_D[document_T] + generator.normal(0, 0.1, 3000)
    b_T = a_T + 0.02 + generator.normal(0, 0.05, 3000)
    found = perplexity_difference(a_T, b_T, document_T)
    assert found.effect == pytest.approx(np.exp(a_T.mean()) - np.exp(b_T.mean()))
    assert found.low < found.effect < found.high < 0 and found.n == 60
    assert perplexity_difference(a_T, b_T, 50) == found  # blocks of 50 tokens are the documents
    ppl = [np.exp(a_T[document_T == d].mean()) for d in range(60)]
    assert found.high - found.low < 0.1 * (bca(ppl)[1] - bca(ppl)[0])


def test_the_block_bootstrap_of_a_model_with_itself_is_zero() -> None:
    same = perplexity_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1)
    assert (same.effect, same.low, same.high) == (0, None, None)
    with pytest.raises(ValueError, match="three equal"):
        perplexity_difference([1.0, 2.0], [1.0], 1)


def test_the_run_table_has_a_row_per_run_and_keeps_what_is_missing() -> None:
    study = ROOT / "results" / "first_light"
    table = run_table(study)
    assert len(table) == 18 and table.groupby("arm").seed.apply(list).tolist() == [[1, 2, 3]] * 6
    softmax = table[table.arm == "softmax"]
    assert softmax.ppl.mean() == pytest.approx(6.412, abs=5e-4)  # results/first_light/table.csv
    assert np.allclose(np.log(table.ppl), table.loss) and softmax.R.isna().all()
