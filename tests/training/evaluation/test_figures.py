"""Figures of a column whose quality is known for every frame."""

from __future__ import annotations

import json

import numpy as np
import pytest

from training.evaluation.figures import column_figures
from training.evaluation.nearest_view import Places
from wm_gym.statistics import Bootstrap

NUM_CONTEXT, NUM_FRAMES = 400, 400


def falling(db_per_frame: float) -> tuple[np.ndarray, Places]:
    """Two mazes walked back exactly; frames that were seen 400 frames ago and more count as not seen."""
    back = np.tile(1 + 2 * np.arange(NUM_FRAMES), (2, 1))
    places = Places(NUM_CONTEXT - 1 - np.tile(np.arange(NUM_FRAMES), (2, 1)), back <= NUM_CONTEXT, back)
    return np.where(places.seen, 30 - db_per_frame * back, 10.0), places


def test_recall_over_distance_is_the_slope_over_seen_frames() -> None:
    values, places = falling(0.01)
    figures = column_figures(values, places, Bootstrap(2))
    change = figures["change_over_distance"]
    assert change["value"] == pytest.approx(-0.01 * 350, abs=1e-3)
    assert (change["from"], change["to"], change["num_frames"]) == (50, 400, 2 * 175)


def test_seen_and_unseen_frames_are_told_apart() -> None:
    values, places = falling(0.01)
    figures = column_figures(values, places, Bootstrap(2))
    assert figures["unseen"] == {"value": 10.0, "low": 10.0, "high": 10.0, "num_frames": 400}
    assert figures["seen"]["value"] == pytest.approx(values[places.seen].mean(), abs=1e-3)
    assert figures["all"]["num_frames"] == 800


def test_bins_cover_every_frame_once() -> None:
    values, places = falling(0.01)
    figures = column_figures(values, places, Bootstrap(2))
    by_length, by_distance = figures["by_length"], figures["by_distance"]
    assert (by_length["from"][:2], by_length["to"][:2]) == ([1, 26], [25, 50])
    assert by_length["to"][-1] == NUM_FRAMES
    assert sum(by_length["num_frames"]) == 800
    assert sum(by_distance["num_frames"]) == places.seen.sum()
    assert by_distance["value"][0] == pytest.approx(30 - 0.01 * 12, abs=1e-3)  # frames 1, 3, ..., 23 back


def test_figures_are_json_where_nothing_was_seen_and_only_one_maze_was_walked() -> None:
    values, places = falling(0.01)
    nothing = Places(places.nearest[:1], np.zeros_like(places.seen[:1]), places.frames_back[:1])
    figures = json.loads(json.dumps(column_figures(values[:1], nothing, Bootstrap(1)), allow_nan=False))
    assert figures["seen"] == {"value": None, "low": None, "high": None, "num_frames": 0}
    assert figures["by_distance"]["value"] == []
    assert figures["change_over_distance"]["value"] is None
    assert figures["all"]["low"] is None
