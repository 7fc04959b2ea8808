"""What is around the agent and what it saw, in mazes drawn by hand (row 0 below, as y counts upwards)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.probes.maze_labels import (
    cells_around,
    grid_around,
    look_up,
    maze_of,
    objects_around,
    seen_cells,
    walls_around,
)


def maze(*rows: str) -> np.ndarray:
    """From drawings, the highest y first; # is a wall."""
    return np.array([[int(cell == "#") for cell in row] for row in rows[::-1]], np.uint8)


def pose(x: float, y: float, degrees: float) -> np.ndarray:
    return np.array([x, y, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


CORRIDOR = maze("###", "...", "##.")


def position(forward: int, left: int) -> int:
    return int(np.flatnonzero((grid_around(1) == (forward, left)).all(1))[0])


@pytest.mark.parametrize(
    ("degrees", "ahead", "at_left"),
    [(0, (1, 1), (0, 2)), (90, (0, 2), (-1, 1)), (180, (-1, 1), (0, 0)), (270, (0, 0), (1, 1))],
)
def test_forward_and_left_turn_with_the_agent(degrees: float, ahead: tuple[int, int], at_left: tuple[int, int]) -> None:
    cells = cells_around(pose(0.5, 1.5, degrees), 1)
    assert tuple(cells[position(1, 0)]) == ahead
    assert tuple(cells[position(0, 1)]) == at_left
    assert tuple(cells[position(0, 0)]) == (0, 1)


def test_walls_are_told_inside_the_maze_only() -> None:
    walls, inside = walls_around(CORRIDOR, pose(0.5, 1.5, 0), 1)
    assert walls[position(0, 1)] and walls[position(0, -1)] and not walls[position(1, 0)]
    assert inside.sum() == 6
    assert not inside[position(-1, 0)] and not walls[position(-1, 0)]


def test_objects_are_where_the_agent_would_have_to_go() -> None:
    objects = np.array([[1.5, 1.5], [0.5, 0.5]])
    assert objects_around(objects, pose(0.5, 1.5, 0)) == pytest.approx(np.array([[1, 0], [0, -1]]))
    assert objects_around(objects, pose(0.5, 1.5, 90)) == pytest.approx(np.array([[0, -1], [-1, 0]]))
    assert objects_around(objects, pose(0.5, 1.5, 225))[1] == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])


def test_what_is_ahead_is_seen_up_to_the_first_wall_and_nothing_behind() -> None:
    layout = maze(".....", "...#.", ".....")
    seen = seen_cells(layout, pose(1.5, 1.5, 0)[None])
    assert seen[1].tolist() == [False, True, True, True, False]
    assert seen_cells(layout, pose(1.5, 1.5, 180)[None])[1].tolist() == [True, True, False, False, False]


def test_turning_round_adds_to_what_was_seen() -> None:
    layout = maze(".....", "...#.", ".....")
    poses = np.stack([pose(1.5, 1.5, degrees) for degrees in (0, 180)])
    both = seen_cells(layout, poses)
    assert (both == (seen_cells(layout, poses[:1]) | seen_cells(layout, poses[1:]))).all()
    assert both[1].tolist() == [True, True, True, True, False]


def test_looking_outside_a_map_finds_nothing() -> None:
    values, inside = look_up(np.ones((2, 3), np.bool_), np.array([[2, 1], [3, 1], [-1, 0]]))
    assert values.tolist() == inside.tolist() == [True, False, False]


def test_a_walk_without_a_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="seed 5 has no layout"):
        maze_of({"targets": []}, 5)
