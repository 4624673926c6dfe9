"""Statistics over seeds: intervals, paired differences, corrections, power; few numbers, said well.

A seed is the unit, and arms that share a seed share data order and common initial weights, so
differences are taken within a seed. With fewer than MINIMUM seeds numbers are descriptive only.
Every random draw has the fixed seed RNG_SEED: the same numbers give the same interval.

Sources: Student (1908); Efron, JASA 82 (1987), BCa; Hedges (1981); Holm (1979); Clopper and Pearson
(1934). pandas and statsmodels come with `pip install 'phasegpt[report]'`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

MINIMUM = 5  # seeds; with fewer there is no verdict
CONFIDENCE = 0.95
POWER = 0.8
RNG_SEED = 0
RESAMPLES = 9999

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What one test found.

    `effect` has the unit of what was compared and a two-sided 95% interval; `p` is one-sided, for
    the claim, and `against` for its opposite; of `differ` and `solve` p is two-sided. What a test
    does not define is None.
    """

    n: int
    effect: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    against: float | None = None
    bca: tuple[float, float] | None = None  # the interval again, by bootstrap
    exact: float | None = None  # p again, by sign flips
    size: float | None = None  # Cohen's d_z with Hedges' correction, no unit


def interval(
    values: Sequence[float],
) -> tuple[float | None, float | None, float | None, float | None]:
    """Mean, sd (n - 1) and the ends of the 95% interval by Student's t; None where undefined."""
    from scipy.stats import t

    if not len(values):
        return None, None, None, None
    x = np.array(values)
    if len(x) == 1:
        return float(x[0]), None, None, None
    sd = float(x.std(ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(x) - 1)) * sd / len(x) ** 0.5
    return float(x.mean()), sd, float(x.mean()) - half, float(x.mean()) + half


def bca(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the mean by the bias-corrected accelerated bootstrap; None if n < 2.

    Below about ten values it is too narrow; it stands beside Student's interval, not for it.
    """
    from scipy.stats import bootstrap

    x = np.array(values)
    if len(x) < 2:
        return None
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    rng = np.random.default_rng(RNG_SEED)
    found = bootstrap(
        (x,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", rng=rng
    ).confidence_interval
    return float(found.low), float(found.high)


def effect_size(differences: Sequence[float]) -> float | None:
    """Cohen's d_z = mean / sd of paired differences, times Hedges' J; None without spread.

    J = Gamma(m/2) / (sqrt(m/2) Gamma((m - 1)/2)) with m = n - 1 removes the bias of small samples.
    At n = 2 J is 0, as the expectation of |d_z| does not exist there: None.
    """
    x = np.array(differences)
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    m = len(x) - 1
    J = math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2)) / math.sqrt(m / 2)
    return J * float(x.mean() / x.std(ddof=1))


def sign_flip(differences: Sequence[float]) -> float:
    """One-sided p that the mean is below 0: the share of all 2^n sign patterns with a mean as low.

    Exact where differences are symmetric about 0 under the null. Its least value is 2^-n, so
    n >= 5 for p <= 0.05. Above 16 differences, RESAMPLES random patterns.
    """
    from scipy.stats import permutation_test

    x = np.array(differences)
    return float(
        permutation_test(
            (x,),
            lambda sample, axis: sample.mean(axis=axis),
            permutation_type="samples",
            alternative="less",
            n_resamples=np.inf if len(x) <= 16 else RESAMPLES,
            vectorized=True,
            rng=np.random.default_rng(RNG_SEED),
        ).pvalue
    )


def less(of: Sequence[float], than: Sequence[float] | None = None) -> Comparison:
    """Is `of` below `than` (None: below 0), pair by pair? The effect is mean(of - than).

    One-sided paired t-test; without any spread t is undefined and both p are 1.
    """
    from scipy.stats import ttest_1samp

    x = np.array(of) - (0.0 if than is None else np.array(than))
    if than is not None and len(of) != len(than):
        raise ValueError(f"{len(of)} values cannot be paired with {len(than)}")
    mean, sd, low, high = interval(x.tolist())
    if mean is None:
        raise ValueError("there is nothing to compare; give at least one pair")
    p = float(ttest_1samp(x, 0.0, alternative="less").pvalue) if sd else 1.0
    return Comparison(
        n=len(x),
        effect=mean,
        low=low,
        high=high,
        p=p,
        against=1 - p if sd else 1.0,
        bca=bca(x.tolist()),
        exact=sign_flip(x.tolist()) if len(x) > 1 else None,
        size=effect_size(x.tolist()),
    )


def differ(of: Sequence[float], than: Sequence[float]) -> Comparison:
    """Do paired values differ? The effect is mean(of - than); two-sided paired t-test.

    `size` is None. With one pair, or without any spread, t is undefined: p is 1.
    """
    from scipy.stats import ttest_1samp

    x = np.array(of) - np.array(than)
    mean, sd, low, high = interval(x.tolist())
    if mean is None:
        raise ValueError("there is nothing to compare; give at least one pair")
    tiny = np.finfo(float).eps * max(1.0, float(np.abs(x).max()))  # spread by rounding alone
    p = float(ttest_1samp(x, 0.0).pvalue) if sd and sd > 8 * tiny else 1.0
    return Comparison(n=len(x), effect=mean, low=low, high=high, p=p)


def solve(of: Sequence[bool], than: Sequence[bool]) -> Comparison:
    """Do runs of one arm solve a task where those of another with the same seed do not?

    The effect is the difference of the shares, without an interval; p is McNemar's exact two-sided
    one: of the pairs that disagree, each way is equally likely. Its least value is 2^(1-n), so
    n >= 6 for p <= 0.05.
    """
    from scipy.stats import binomtest

    won = sum(a and not b for a, b in zip(of, than, strict=True))
    lost = sum(b and not a for a, b in zip(of, than, strict=True))
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Comparison(n=len(of), effect=(won - lost) / len(of), p=p)


def within(values: Sequence[float], band: Sequence[float]) -> Comparison:
    """Does the mean lie inside the band? Two one-sided t-tests, p the larger; the effect: the mean.

    `against` is the p of the mean lying below the band, or above it, whichever is smaller.
    """
    low, high = band
    mean, _, left, right = interval(values)
    above, below = less([low - v for v in values]), less([v - high for v in values])
    return Comparison(
        n=len(values),
        effect=float(mean or 0.0),
        low=left,
        high=right,
        p=max(above.p or 0.0, below.p or 0.0),
        against=min(above.against or 0.0, below.against or 0.0),
        bca=bca(values),
    )


def less_spread(of: Sequence[float], than: Sequence[float]) -> Comparison:
    """Do independent values vary less? F = var(of) / var(than); the effect: the ratio of sd.

    Assumes normal values. At 5 and 5 the ratio must be below 0.40 for p <= 0.05.
    """
    from scipy.stats import f

    a, b = np.array(of), np.array(than)
    df = len(a) - 1, len(b) - 1
    F = float(a.var(ddof=1) / b.var(ddof=1)) if min(df) > 0 and np.ptp(b) else math.nan
    n = min(len(a), len(b))
    if math.isnan(F):
        return Comparison(n=n, effect=math.nan, p=1.0, against=1.0)
    tail = (1 - CONFIDENCE) / 2
    return Comparison(
        n=n,
        effect=math.sqrt(F),
        low=math.sqrt(F / f.ppf(1 - tail, *df)),
        high=math.sqrt(F / f.ppf(tail, *df)),
        p=float(f.cdf(F, *df)),
        against=float(f.sf(F, *df)),
    )


def never(happened: Sequence[bool]) -> Comparison:
    """Did it happen in no run? The effect is its share, with Clopper and Pearson's interval.

    This counts and tests nothing: p is None.
    """
    from scipy.stats import binomtest

    k, n = sum(happened), len(happened)
    ci = binomtest(k, n).proportion_ci(CONFIDENCE)
    return Comparison(n=n, effect=k / n, low=float(ci.low), high=float(ci.high))


def holm(p: Sequence[float]) -> list[float]:
    """p values of one family, corrected by Holm's step-down, in the order given."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p, method="holm")[1].tolist() if len(p) else []


def verdict(
    p: float, against: float, *, n: int, alpha: float = 0.05, minimum: int = MINIMUM
) -> str | None:
    """supported (p <= alpha), not supported (against <= alpha) or inconclusive; None if n is small.

    `p` and `against` are one-sided, for a claim and for its opposite.
    """
    if n < minimum:
        return None
    if p <= alpha:
        return SUPPORTED
    return NOT_SUPPORTED if against <= alpha else INCONCLUSIVE


def detectable(n: int, *, alpha: float = 0.05, two_sided: bool = False) -> float:
    """The smallest true d_z that a paired t-test with n >= 3 pairs finds with power POWER.

    Solves P(T > t_alpha) = POWER for T noncentral t, n - 1 degrees of freedom, noncentrality
    d_z sqrt(n); two-sided, P(|T| > t_(alpha/2)).
    """
    from statsmodels.stats.power import TTestPower

    sides = "two-sided" if two_sided else "larger"
    return float(TTestPower().solve_power(nobs=n, alpha=alpha, power=POWER, alternative=sides))


def perplexity_difference(
    nats_T: ArrayLike, other_T: ArrayLike, blocks: int | ArrayLike
) -> Comparison:
    """exp(mean nats) minus exp(mean other nats) on one text, by paired block bootstrap (BCa).

    T per-token losses in nats of two models on the same tokens; `blocks` is the number of tokens in
    a block, or the document of every token [T]. Blocks are drawn with replacement, the same for
    both models. The interval is about the text, at fixed weights: it says nothing about seeds.
    """
    from scipy.stats import bootstrap

    a_T, b_T = np.asarray(nats_T, np.float64), np.asarray(other_T, np.float64)
    place_T = np.arange(len(a_T)) // blocks if isinstance(blocks, int) else np.asarray(blocks)
    if not a_T.shape == b_T.shape == place_T.shape or a_T.ndim != 1:
        raise ValueError(
            f"losses of shapes {a_T.shape} and {b_T.shape} and blocks of {place_T.shape} must be "
            f"three equal [T]"
        )
    _, block_T = np.unique(place_T, return_inverse=True)
    sums: list[NDArray[Any]] = [
        np.bincount(block_T, weights) for weights in (a_T, b_T, np.ones_like(a_T))
    ]

    def difference(
        a: NDArray[Any], b: NDArray[Any], count: NDArray[Any], axis: int = -1
    ) -> NDArray[Any]:
        total = count.sum(axis)
        return np.exp(a.sum(axis) / total) - np.exp(b.sum(axis) / total)

    n = len(sums[0])
    effect = float(difference(sums[0], sums[1], sums[2]))
    if n < 2 or np.array_equal(a_T, b_T):
        return Comparison(n=n, effect=effect)
    found = bootstrap(
        sums,
        difference,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=256,
        method="BCa",
        rng=np.random.default_rng(RNG_SEED),
    ).confidence_interval
    return Comparison(n=n, effect=effect, low=float(found.low), high=float(found.high))
