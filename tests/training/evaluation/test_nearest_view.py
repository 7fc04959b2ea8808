"""Which frame of the context is revisited, on poses with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluation.nearest_view import locate


def pose(x: float, y: float, degrees: float) -> list[float]:
    return [x, y, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def located(context: list[list[float]], *later: list[float]) -> tuple[list[int], list[bool], list[int]]:
    places = locate(np.array([[*context, *later]], np.float32), len(context), 0.5, 30.0)
    return places.nearest[0].tolist(), places.seen[0].tolist(), places.frames_back[0].tolist()


def test_the_nearest_pose_is_found_with_how_far_back_it_was() -> None:
    context = [pose(1, 1, 0), pose(2, 1, 0), pose(3, 1, 90)]
    assert located(context, pose(2.1, 1, 5), pose(1, 1, 0)) == ([1, 0], [True, True], [2, 4])


def test_the_same_place_in_another_direction_has_not_been_seen() -> None:
    context = [pose(1, 1, 0), pose(2, 1, 0)]
    assert located(context, pose(1, 1, 180), pose(1, 1, 29), pose(1, 1, 31))[1] == [False, True, False]


def test_another_place_in_the_same_direction_has_not_been_seen() -> None:
    assert located([pose(1, 1, 0)], pose(1.5, 1, 0), pose(1.3, 1.3, 0), pose(1.51, 1, 0))[1] == [True, True, False]


def test_headings_are_compared_across_the_turn_from_180_to_minus_180() -> None:
    assert located([pose(1, 1, 170)], pose(1, 1, -170))[1] == [True]


def test_of_equal_poses_the_newest_is_the_one_revisited() -> None:
    assert located([pose(1, 1, 0), pose(1, 1, 0), pose(4, 4, 0)], pose(1, 1, 0)) == ([1], [True], [2])


def test_a_frame_within_both_limits_goes_before_a_closer_one_that_is_beyond_one_of_them() -> None:
    context = [pose(1.45, 1, 27), pose(1.55, 1, 0)]
    assert located(context, pose(1, 1, 0)) == ([0], [True], [2])


def test_poses_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 numbers"):
        locate(np.zeros((1, 4, 2)), 2, 0.5, 30.0)
