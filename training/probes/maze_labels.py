"""What a probe of Memory Maze is asked: walls and objects around the agent, in its own directions, and what it saw.

A model that is given actions alone cannot know where north is, so everything is told relative to the agent: positions
(forward, left) in cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FIELD_OF_VIEW = 80.0  # degrees, of the agent's camera
NUM_RAYS = 41
RAY_STEP = 0.1  # cells


def grid_around(radius: int) -> np.ndarray:
    """Positions (forward, left) around the agent, float64 [P, 2] with P = (2 * radius + 1)^2, one cell apart."""
    axis = np.arange(-radius, radius + 1, dtype=np.float64)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def cells_around(pose: np.ndarray, radius: int) -> np.ndarray:
    """The cells (x, y) at the positions of `grid_around`, int64 [P, 2]; some may lie outside the maze.

    Args:
        pose: [4]: x, y in cells, heading as a unit vector.
    """
    x, y, heading_x, heading_y = (float(value) for value in pose)
    axes = np.array([[heading_x, heading_y], [-heading_y, heading_x]])  # forward, left
    return np.floor(grid_around(radius) @ axes + (x, y)).astype(np.int64)


def walls_around(layout: np.ndarray, pose: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether there is a wall, and whether the position is inside the maze: bool [P] each.

    Args:
        layout: [n, n], indexed [y, x], 1 where there is a wall.
    """
    return look_up(layout != 0, cells_around(pose, radius))


def look_up(of_cells: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of a map bool [rows, columns] at cells (x, y) int64 [..., 2], False outside; and which are inside."""
    rows, columns = of_cells.shape
    x, y = cells[..., 0], cells[..., 1]
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    return of_cells[y.clip(0, rows - 1), x.clip(0, columns - 1)] & inside, inside


def objects_around(positions: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Positions [k, 2] of objects, in cells of the maze, as (forward, left) of the agent."""
    x, y, heading_x, heading_y = (float(value) for value in pose)
    return (positions - (x, y)) @ np.array([[heading_x, -heading_y], [heading_y, heading_x]])


def seen_cells(layout: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Cells in view from one of the poses: free ones, and walls that a free line of sight ends at. bool [n, n].

    Args:
        layout: as in `walls_around`.
        poses: [T, 4].
    """
    reach = 1.5 * max(layout.shape)
    angles = np.radians(np.linspace(-FIELD_OF_VIEW / 2, FIELD_OF_VIEW / 2, NUM_RAYS))
    directions = np.arctan2(poses[:, 3], poses[:, 2])[:, None] + angles
    steps = np.arange(0, reach, RAY_STEP)
    unit = np.stack([np.cos(directions), np.sin(directions)], -1)
    cells = np.floor(poses[:, None, None, :2] + unit[:, :, None] * steps[:, None]).astype(np.int64)
    wall, inside = look_up(layout != 0, cells)
    # A ray goes on as long as it has met neither a wall nor the border.
    blocked = np.cumsum(wall | ~inside, axis=-1)
    in_view = inside & ((blocked == 0) | (wall & (blocked == 1)))
    seen = np.zeros(layout.shape, np.bool_)
    x, y = cells[in_view].T
    seen[y, x] = True
    return seen


def maze_of(attributes: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Layout uint8 [n, n] and objects float64 [k, 2] of a recorded walk. Raises ValueError if they were not kept."""
    if "layout" not in attributes or "targets" not in attributes:
        raise ValueError(f"The walk of seed {seed} has no layout or no targets; probes need Memory Maze's.")
    return np.array(attributes["layout"], np.uint8), np.array(attributes["targets"], np.float64).reshape(-1, 2)
