"""Means and shares with 95% intervals over what was drawn independently: episodes, training seeds or mazes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_RESAMPLES = 2000
NUM_RESAMPLES_OF_PROPORTIONS = 10_000
Z95 = 1.959964  # standard normal


@dataclass(frozen=True)
class Estimate:
    """G figures with the ends of their 95% intervals; NaN where there is no frame, or only one maze.

    Attributes:
        value, low, high: float64 [G].
        num_frames: int64 [G]: over how many frames.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_frames: np.ndarray


class Bootstrap:
    """Percentile bootstrap over M mazes: frames of one maze are not independent, mazes are.

    All estimates of an instance share their resamples, so the same mazes are drawn for whatever is compared.
    """

    def __init__(self, num_mazes: int, seed: int = 0) -> None:
        shares = np.full(num_mazes, 1 / num_mazes)
        self._num_mazes = num_mazes
        self._draws = np.random.default_rng(seed).multinomial(num_mazes, shares, NUM_RESAMPLES).astype(np.float64)

    def mean(self, values: np.ndarray, groups: np.ndarray) -> Estimate:
        """Mean over the frames of each group.

        Args:
            values: float [M, F].
            groups: bool [G, M, F], which frames count; or [G, 1, F] for all mazes alike.
        """
        counts = np.stack([np.broadcast_to(group, values.shape).sum(1) for group in groups], 1).astype(np.float64)
        sums = np.stack([np.where(group, values, 0.0).sum(1) for group in groups], 1)
        return self._estimate(np.stack([sums, counts]), lambda s: _divide(s[0], s[1]), counts)

    def ratio(self, above: np.ndarray, below: np.ndarray, groups: np.ndarray) -> Estimate:
        """Sum of `above` over sum of `below`, both float [M, F], over the frames of each group, as in `mean`."""
        counts = np.stack([np.broadcast_to(group, above.shape).sum(1) for group in groups], 1).astype(np.float64)
        sums = [np.stack([np.where(group, part, 0.0).sum(1) for group in groups], 1) for part in (above, below)]
        return self._estimate(np.stack(sums), lambda s: _divide(s[0], s[1]), counts)

    def of_sums(self, sums: np.ndarray, function: Callable[[np.ndarray], float], resamples: int) -> Estimate:
        """`function` of what mazes add up to, `sums` [M, S], its interval from the first `resamples` draws: G = 1."""
        value = np.array([function(sums.sum(0))])
        drawn = [function(row @ sums) for row in self._draws[: resamples if self._num_mazes > 1 else 0]]
        low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (np.nan, np.nan)
        return Estimate(value, np.array([low]), np.array([high]), np.array([self._num_mazes]))

    def slope(self, values: np.ndarray, x: np.ndarray, where: np.ndarray) -> Estimate:
        """Slope of the least-squares line of `values` over `x`, both [M, F], where `where` is True: G = 1."""
        x, y = np.where(where, x, 0.0), np.where(where, values, 0.0)
        moments = [part.sum(1, keepdims=True) for part in (where.astype(np.float64), x, y, x * x, x * y)]

        def fit(s: np.ndarray) -> np.ndarray:
            count, sx, sy, sxx, sxy = s
            return _divide(count * sxy - sx * sy, count * sxx - sx**2)

        return self._estimate(np.stack(moments), fit, moments[0])

    def _estimate(self, sums: np.ndarray, function: Any, counts: np.ndarray) -> Estimate:
        """`function` of sums [S, M, G] over all mazes, and over each resample of them."""
        value, total = function(sums.sum(1)), counts.sum(0)
        if self._num_mazes == 1:
            nothing = np.full_like(value, np.nan)
            return Estimate(value, nothing, nothing, total.astype(np.int64))
        resampled = function(np.einsum("rm,smg->srg", self._draws, sums))
        known = np.isfinite(resampled)
        # A resample may have none of the mazes that show a group; a group that no maze shows is NaN all over.
        ends = np.full((2, len(value)), np.nan)
        for index in np.flatnonzero(known.any(0)):
            ends[:, index] = np.percentile(resampled[known[:, index], index], [2.5, 97.5])
        return Estimate(value, ends[0], ends[1], total.astype(np.int64))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b != 0)


def interval95(values: Sequence[float]) -> list[float] | None:
    """Student's 95% confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # of the extra "agents"

    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return [mean - half, mean + half]


def proportion95(parts: Sequence[int], wholes: Sequence[int]) -> list[float] | None:
    """95% interval of sum(parts) / sum(wholes); None if there is nothing to count.

    The hull of two: Wilson's (1927), which takes single rewards as independent and stays honest where all or none are
    right, and the percentiles of resampled episodes, whose rewards may be right or wrong together.

    Args:
        parts, wholes: counts of each episode.
    """
    total = sum(wholes)
    if total == 0:
        return None
    share = sum(parts) / total
    centre = (share + Z95**2 / (2 * total)) / (1 + Z95**2 / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2)) / (1 + Z95**2 / total)
    bounds = [centre - half, centre + half]
    counts = np.array([parts, wholes], np.int64)
    drawn = np.random.default_rng(0).integers(len(wholes), size=(NUM_RESAMPLES_OF_PROPORTIONS, len(wholes)))
    sums = counts[:, drawn].sum(-1)
    low, high = np.percentile(sums[0][sums[1] > 0] / sums[1][sums[1] > 0], (2.5, 97.5))
    return [max(0.0, min(bounds[0], float(low))), min(1.0, max(bounds[1], float(high)))]
