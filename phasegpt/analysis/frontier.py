"""A sampler against the temperature sweep: what it buys at the diversity that it has.

Any sampler can trade diversity for likelihood by its temperature. So the question is not whether a
sampler's text is better judged than plain sampling's at one temperature, but whether it is better
judged than plain sampling's at the temperature that gives the same diversity.

Shapes: N rows (prompt and seed, common to all arms), M temperatures, K = 1 + M arms, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phasegpt.analysis.statistics import CONFIDENCE, RESAMPLES, RNG_SEED, Comparison

_OUTSIDE = 0.01  # share of resamples that may leave the sweep before the interval is withheld

Samples = tuple[Sequence[float], Sequence[float]]  # diversity and cost of N rows


def frontier_gap(arm: Samples, sweep: Sequence[Samples]) -> Comparison | None:
    """Mean cost of the arm minus the sweep's cost at the arm's mean diversity; below 0 is better.

    The frontier is piecewise linear through the means of the M points of the sweep, ordered by
    diversity. The interval is a percentile bootstrap that draws rows, the same ones for every
    arm: pairs stay pairs. The sweep is never extrapolated: None for an arm outside it, and no
    interval when more than 1% of the resamples are. Raises ValueError for unequal rows.
    """
    points = (arm, *sweep)
    if len(sweep) < 2 or len({len(side) for point in points for side in point}) > 1:
        raise ValueError(
            "the arm and at least two points of the sweep must have one diversity and one cost "
            "for each of the same rows"
        )
    x_KN, y_KN = (np.array([point[side] for point in points], np.float64) for side in (0, 1))
    N = x_KN.shape[1]
    effect = float(_gap(x_KN.mean(1)[None], y_KN.mean(1)[None])[0])
    if np.isnan(effect):
        return None
    weight_RN = np.random.default_rng(RNG_SEED).multinomial(N, np.full(N, 1 / N), RESAMPLES) / N
    gaps = _gap(weight_RN @ x_KN.T, weight_RN @ y_KN.T)
    if N < 2 or np.isnan(gaps).mean() > _OUTSIDE:
        return Comparison(n=N, effect=effect)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(gaps, (tail, 1 - tail))
    return Comparison(n=N, effect=effect, low=float(low), high=float(high))


def _gap(x_RK: NDArray[np.float64], y_RK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per resample; the arm is first. NaN where its diversity is outside the sweep's."""
    x_R1, sweep_RM = x_RK[:, :1], x_RK[:, 1:]
    order_RM = np.argsort(sweep_RM, axis=1, kind="stable")
    sweep_RM = np.take_along_axis(sweep_RM, order_RM, 1)
    cost_RM = np.take_along_axis(y_RK[:, 1:], order_RM, 1)
    above_R1 = (sweep_RM < x_R1).sum(1, keepdims=True).clip(1, sweep_RM.shape[1] - 1)
    (x0, x1), (y0, y1) = (
        (np.take_along_axis(of_RM, above_R1 - 1, 1), np.take_along_axis(of_RM, above_R1, 1))
        for of_RM in (sweep_RM, cost_RM)
    )
    share_R1 = (x_R1 - x0) / np.where(x1 > x0, x1 - x0, 1.0)
    inside_R1 = (sweep_RM[:, :1] <= x_R1) & (x_R1 <= sweep_RM[:, -1:])
    return np.where(inside_R1, y_RK[:, :1] - y0 - share_R1 * (y1 - y0), np.nan)[:, 0]
