"""The order of examples, and the random numbers of generated ones, all functions of their keys.

Every generated example is one stream: a batch draws for all its examples at once, and an example
gets the same numbers in every batch. Shapes: B examples, C numbers of each.
"""

from __future__ import annotations

import numpy as np

IGNORED = -100  # a target that is not scored, cross_entropy's own default

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def _mixed(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), on uint64 modulo 2^64."""
    z = (z ^ (z >> _SHIFTS[0])) * _MULTIPLIERS[0]
    z = (z ^ (z >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return z ^ (z >> _SHIFTS[2])


class Draws:
    """One SplitMix64 stream for each example, begun at a hash of (key, example).

    Every method takes the next numbers of all streams, or of those at the places `rows`.
    """

    def __init__(self, *key: int | str, example_B: np.ndarray) -> None:
        """Streams of the examples with these numbers."""
        from phasegpt.core.randomness import keyed_seed  # it loads torch

        start = np.uint64(keyed_seed("task", *key))
        self._state_B = _mixed(start + _mixed(example_B.astype(np.uint64) * _GOLDEN))

    def __len__(self) -> int:
        return len(self._state_B)

    def bits(self, count: int, rows: np.ndarray | None = None) -> np.ndarray:
        """[B,C] uint64."""
        at = slice(None) if rows is None else rows
        step_C = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        z = self._state_B[at, None] + step_C
        self._state_B[at] += step_C[-1]
        return _mixed(z)

    def uniform(self, count: int) -> np.ndarray:
        """[B,C] float64, uniform in (0, 1)."""
        return ((self.bits(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def below(self, n: int, count: int, rows: np.ndarray | None = None) -> np.ndarray:
        """[B,C] int64, uniform in 0..n-1 up to a bias of n / 2^32."""
        return ((self.bits(count, rows) >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(
            np.int64
        )

    def weighted(self, weights: np.ndarray, count: int) -> np.ndarray:
        """[B,C] int64: one after the other without replacement, by the weights of those left.

        The smallest of exponential times over weights come in this order (Efraimidis and Spirakis
        2006).
        """
        times = -np.log(self.uniform(len(weights))) / weights
        return np.argsort(times, axis=1, kind="stable")[:, :count]

    def distinct(self, n: int, count: int) -> np.ndarray:
        """[B,C] int64: different numbers of 0..n-1, every ordered choice alike."""
        if count**2 > n:
            return np.argsort(self.bits(n), axis=1, kind="stable")[:, :count]
        found = self.below(n, count)
        while len(rows := np.flatnonzero(_repeats(found))):
            found[rows] = self.below(n, count, rows)
        return found


def _repeats(numbers: np.ndarray) -> np.ndarray:
    """Whether a number is there twice, [B]."""
    ordered = np.sort(numbers, axis=1)
    return (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)


class Order:
    """An endless order of `size` things: every epoch all of them, permuted by (seed, epoch)."""

    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size = seed, size
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, place_B: np.ndarray) -> np.ndarray:
        """What stands at these places, [B]."""
        epoch_B, within_B = np.divmod(place_B, self.size)
        found = np.empty_like(place_B)
        for epoch in np.unique(epoch_B):
            mine = epoch_B == epoch
            found[mine] = self._epoch(int(epoch))[1][within_B[mine]]
        return found

    def drawn(self, place_B: np.ndarray, below: int) -> np.ndarray:
        """A number of 0..below-1 for the epoch of each place, [B]."""
        return np.array([self._epoch(int(e))[0] % below for e in place_B // self.size], np.int64)

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        """The first bits of an epoch, and its permutation."""
        if epoch not in self._epochs:
            # Raw bits and a stable sort: numpy keeps the bits, not its shuffles, across versions.
            bits = np.random.Philox(key=[self.seed, epoch]).random_raw(self.size + 1)
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = int(bits[0]), np.argsort(bits[1:], kind="stable")
        return self._epochs[epoch]
