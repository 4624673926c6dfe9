"""The gap to the temperature sweep is the one that was put in, with an interval that covers it."""

import numpy as np
import pytest

from phasegpt.analysis.sampling import frontier_gap

N = 200
DIVERSITIES = (0.2, 0.4, 0.6, 0.8)


def rows(diversity: float, cost: float, rng: np.random.Generator, luck: np.ndarray):
    """N samples whose cost shares the luck of their row with every other arm."""
    x = diversity + 0.02 * rng.standard_normal(N)
    return x.tolist(), (cost + luck + 0.1 * rng.standard_normal(N)).tolist()


def frontier(diversity: float) -> float:
    """Piecewise linear through the sweep: 1, 1.2, 1.6 and 2.4 at DIVERSITIES."""
    return float(np.interp(diversity, DIVERSITIES, (1.0, 1.2, 1.6, 2.4)))


@pytest.fixture
def draws():
    rng = np.random.default_rng(1)
    luck = rng.standard_normal(N)  # large, and the same for a row of every arm
    sweep = [rows(x, frontier(x), rng, luck) for x in DIVERSITIES]
    return rng, luck, sweep


@pytest.mark.parametrize("gap", [-0.3, 0.0, 0.5])
@pytest.mark.parametrize("diversity", [0.3, 0.5, 0.7])
def test_a_known_gap_is_found(draws, gap: float, diversity: float) -> None:
    rng, luck, sweep = draws
    found = frontier_gap(rows(diversity, frontier(diversity) + gap, rng, luck), sweep)
    assert found is not None
    assert found.n == N
    assert found.low < gap < found.high
    assert found.effect == pytest.approx(gap, abs=0.04)
    # Pairs stay pairs: unpaired, the luck of the rows alone would make the interval 0.28 wide.
    assert found.high - found.low < 0.1


def test_the_order_of_the_sweep_changes_no_interval(draws):
    rng, luck, sweep = draws
    arm = rows(0.5, 2.0, rng, luck)
    assert frontier_gap(arm, sweep) == frontier_gap(arm, sweep[::-1])


def test_a_point_of_the_sweep_has_no_gap(draws):
    _, _, sweep = draws
    found = frontier_gap(sweep[1], sweep)
    assert (found.effect, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_sweep_is_not_extrapolated(draws):
    rng, luck, sweep = draws
    assert frontier_gap(rows(0.9, 2.0, rng, luck), sweep) is None
    edge = frontier_gap(sweep[-1], [*sweep[:-1], (sweep[-1][0], sweep[-1][1])])
    assert edge.effect == pytest.approx(0, abs=1e-12)
    barely = frontier_gap(rows(0.7995, 2.0, rng, luck), sweep)
    assert barely is None or barely.low is None  # half of the resamples are outside


def test_rows_must_be_the_same(draws):
    _, _, sweep = draws
    with pytest.raises(ValueError, match="same rows"):
        frontier_gap(([0.5], [1.0]), sweep)
    with pytest.raises(ValueError, match="at least two"):
        frontier_gap(sweep[0], sweep[:1])
