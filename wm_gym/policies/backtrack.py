"""A policy for Memory Maze that goes somewhere and then back the very way it came: a test of memory."""

from __future__ import annotations

import math
from typing import Any

from wm_gym.policies.base import Navigator, Point, steering_action


class Backtracker:
    """Walks like the navigator for some steps, then returns on its own track to where it began, out again, and so on.

    From the turn on it sees nothing but places that it has seen before, so a dream that starts at the turn can be
    judged on all that it shows.

    Args:
        seed: decides the way out.
        outward_steps: actions before the turn, from 1 on.

    Raises:
        ValueError: no steps; on `reset`: `info` is not that of Memory Maze.
    """

    spacing = 0.1  # cells between the points of the track
    reach = 0.3  # cells; a point of the track counts as passed within it

    def __init__(self, seed: int, outward_steps: int) -> None:
        if outward_steps < 1:
            raise ValueError(f"Backtracking needs a way out of at least one step, got {outward_steps}.")
        self._navigator = Navigator(seed)
        self._outward_steps = outward_steps

    def reset(self, info: dict[str, Any]) -> None:
        """Starts in a new maze. Raises ValueError if `info` lacks the layout, the targets or the pose."""
        self._navigator.reset(info)
        self._num_steps = 0
        self._track: list[Point] = []
        self._index = 0
        self._direction = -1

    def __call__(self, obs: Any, info: dict[str, Any]) -> int:
        x, y, heading_x, heading_y = (float(value) for value in info["pose"])
        self._num_steps += 1
        if self._num_steps <= self._outward_steps + 1 and (
            not self._track or math.dist(self._track[-1], (x, y)) >= self.spacing
        ):
            self._track.append((x, y))
            self._index = len(self._track) - 1
        if self._num_steps <= self._outward_steps:
            return self._navigator(obs, info)
        goal = self._next_point((x, y))
        direction = math.atan2(goal[1] - y, goal[0] - x) - math.atan2(heading_y, heading_x)
        return steering_action(math.remainder(direction, math.tau))

    def _next_point(self, position: Point) -> Point:
        """The next point of the track that is out of reach; at either end of the track the direction changes."""
        for _ in range(2 * len(self._track)):
            if math.dist(position, self._track[self._index]) >= self.reach:
                break
            if not 0 <= self._index + self._direction < len(self._track):
                self._direction = -self._direction
                if len(self._track) == 1:
                    break
            self._index += self._direction
        return self._track[self._index]
