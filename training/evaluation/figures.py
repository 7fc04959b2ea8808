"""From the quality of every frame to the figures of a JSON file."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.evaluation.nearest_view import Places
from wm_gym.statistics import Bootstrap, Estimate

BIN = 25  # frames of a group, by length and by distance
SLOPE_RANGE = (50, 400)  # frames back; the target of recall over distance is the change between the two
DIGITS = 4


def column_figures(values: np.ndarray, places: Places, bootstrap: Bootstrap) -> dict[str, Any]:
    """All figures of one metric of one column (such as the model with its memory kept).

    Args:
        values: [M, F], NaN nowhere.
        places: where the frames were taken.
        bootstrap: of M mazes.
    """
    num_frames = values.shape[1]
    everything = np.ones((1, 1, num_frames), np.bool_)
    splits = {"all": everything, "seen": places.seen[None], "unseen": ~places.seen[None]}
    figures: dict[str, Any] = {name: _one(bootstrap.mean(values, group)) for name, group in splits.items()}
    figures["by_length"] = _binned(values, np.arange(1, num_frames + 1)[None], everything[0], 1, bootstrap)
    figures["by_distance"] = _binned(values, places.frames_back, places.seen, 0, bootstrap)
    figures["change_over_distance"] = _change(values, places, bootstrap)
    figures["per_frame"] = listed(values.mean(0))
    figures["per_maze"] = listed(values.mean(1))
    return figures


def _binned(values: np.ndarray, x: np.ndarray, where: np.ndarray, first: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Means over bins of `x` that hold any frame; `from` and `to` are inclusive."""
    edges = np.arange(first, x.max() + 1, BIN)
    groups = [where & (x >= edge) & (x < edge + BIN) for edge in edges]
    kept = [index for index, group in enumerate(groups) if group.any()]
    names = ("from", "to", "value", "low", "high", "num_frames")
    if not kept:
        return {name: [] for name in names}
    estimate = bootstrap.mean(values, np.stack([groups[index] for index in kept]))
    last = np.minimum(edges[kept] + BIN - 1, x.max())
    columns = (edges[kept], last, estimate.value, estimate.low, estimate.high, estimate.num_frames)
    return {name: listed(column) for name, column in zip(names, columns, strict=True)}


def _change(values: np.ndarray, places: Places, bootstrap: Bootstrap) -> dict[str, Any]:
    """How much the least-squares line falls from the near end of `SLOPE_RANGE` to the far one, over seen frames."""
    near, far = SLOPE_RANGE
    within = places.seen & (places.frames_back >= near) & (places.frames_back <= far)
    slope = bootstrap.slope(values, places.frames_back.astype(np.float64), within)
    reach = far - near
    scaled = Estimate(slope.value * reach, slope.low * reach, slope.high * reach, slope.num_frames)
    return {"from": near, "to": far, **_one(scaled)}


def _one(estimate: Estimate) -> dict[str, Any]:
    names = ("value", "low", "high", "num_frames")
    return {name: listed(getattr(estimate, name))[0] for name in names}


def listed(values: np.ndarray) -> list[Any]:
    """JSON numbers, rounded; None for NaN."""
    if values.dtype.kind in "iu":
        return values.tolist()
    return [None if np.isnan(value) else round(float(value), DIGITS) for value in values]
