"""Intervals against what is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from wm_gym.statistics import Bootstrap

ALL = np.ones((1, 1, 1), np.bool_)


def test_an_interval_over_many_mazes_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(20.0, 3.0, (400, 1))
    estimate = Bootstrap(400).mean(values, ALL)
    half = 1.96 * values.std() / np.sqrt(400)
    assert estimate.value[0] == pytest.approx(values.mean())
    assert estimate.low[0] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high[0] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_frames_of_one_maze_do_not_narrow_an_interval() -> None:
    values = np.random.default_rng(1).normal(20.0, 3.0, (20, 1))
    one, many = Bootstrap(20).mean(values, ALL), Bootstrap(20).mean(values.repeat(50, 1), ALL)
    assert many.high[0] - many.low[0] == pytest.approx(one.high[0] - one.low[0])
    assert (one.num_frames[0], many.num_frames[0]) == (20, 1000)


def test_a_mean_counts_the_frames_of_its_group_and_no_others() -> None:
    values = np.array([[1.0, 2.0, 90.0], [3.0, 90.0, 90.0]])
    group = np.array([[[True, True, False], [True, False, False]], [[False] * 3] * 2])
    estimate = Bootstrap(2).mean(values, group)
    assert estimate.value[0] == pytest.approx(2.0)
    assert estimate.num_frames.tolist() == [3, 0]
    assert np.isnan([estimate.value[1], estimate.low[1], estimate.high[1]]).all()


def test_one_maze_has_a_mean_and_no_interval() -> None:
    estimate = Bootstrap(1).mean(np.array([[1.0, 3.0]]), ALL)
    assert estimate.value[0] == 2.0
    assert np.isnan(estimate.low[0]) and np.isnan(estimate.high[0])


def test_a_slope_is_that_of_the_line_through_the_frames_that_count() -> None:
    x = np.arange(12.0).reshape(3, 4)
    values = 30 - 0.25 * x
    where = np.ones((3, 4), np.bool_)
    where[1, 2] = False
    values[1, 2] = 1000.0
    estimate = Bootstrap(3).slope(values, x, where)
    assert estimate.value[0] == pytest.approx(-0.25)
    assert estimate.low[0] == pytest.approx(-0.25) and estimate.high[0] == pytest.approx(-0.25)
    assert estimate.num_frames[0] == 11
