"""Policies that act in a real environment to record and to measure it: random actions, each for one step or for
several, and three for Memory Maze, a navigator that sees all of a maze, one that keeps walking into its walls, and an
oracle that scores."""

import copy
import math
from collections import deque
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Cell = tuple[int, int]  # (x, y) in the layout, which is indexed [y, x]
Point = tuple[float, float]  # (grid_x, grid_y); the centre of cell (x, y) is (x + 0.5, y + 0.5)

FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = 1, 2, 3, 4, 5
TURN_ANGLE = math.radians(50)  # beyond it, turn on the spot
DRIFT_ANGLE = math.radians(9)  # half of what one turn action turns; below it, go straight

KEPT_STEPS = 6  # of a sticky action, on average

STICKY_STREAM = 6  # keeps when actions change apart from which they are
POLICY_STREAM = 1  # keeps a policy's random numbers apart from those that its environment draws from the same seed


class Policy(Protocol):
    """Chooses actions for one environment. Same seed, same observations and infos: same actions."""

    def reset(self, info: dict[str, Any]) -> None:
        """Starts an episode; `info` comes from the environment's reset."""

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        """The action to take at this observation, an element of the environment's action space."""


def make_policy(name: str, env: gym.Env[Any, Any], seed: int) -> Policy:
    """Makes a policy for `env`.

    Args:
        name: "random" (uniform over the action space), "sticky" (likewise, but an action is kept for some steps), or
            for Memory Maze "navigator", "restless" or "oracle", which read pose, layout and targets from info.
        seed: decides all of the policy's randomness.

    Raises:
        ValueError: an unknown name, or a navigator or oracle for an environment without Memory Maze's six actions.
    """
    if name == "random":
        return RandomPolicy(env.action_space, seed)
    if name == "sticky":
        return StickyPolicy(env.action_space, seed)
    if name in WALKERS:
        if not isinstance(env.action_space, spaces.Discrete) or env.action_space.n != 6:
            raise ValueError(f"The {name} acts in Memory Maze, with 6 discrete actions, not in {env.action_space}.")
        return WALKERS[name](seed)
    raise ValueError(f"A policy is called 'random', 'sticky', 'navigator', 'restless' or 'oracle', got {name!r}.")


def policy_seed(seed: int) -> int:
    """The policy's seed for the episode of an environment seed."""
    return int(np.random.SeedSequence((seed, POLICY_STREAM)).generate_state(1)[0])


def steering_action(angle: float) -> int:
    """Memory Maze's action that turns by `angle` radians, counter-clockwise positive, while walking where possible."""
    if abs(angle) < DRIFT_ANGLE:
        return FORWARD
    if abs(angle) < TURN_ANGLE:
        return FORWARD_LEFT if angle > 0 else FORWARD_RIGHT
    return LEFT if angle > 0 else RIGHT


class RandomPolicy:
    """Uniformly random actions."""

    def __init__(self, action_space: spaces.Space[Any], seed: int) -> None:
        # A copy, so that seeding leaves the environment's own sampling alone.
        self._action_space = copy.deepcopy(action_space)
        self._action_space.seed(seed)

    def reset(self, info: dict[str, Any]) -> None:
        """Nothing to do: no action depends on the episode."""

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        return self._action_space.sample()


class StickyPolicy(RandomPolicy):
    """Random actions, each kept for `KEPT_STEPS` steps on average: gets about, and walks into walls, as agents do that
    have yet to learn."""

    def __init__(self, action_space: spaces.Space[Any], seed: int) -> None:
        super().__init__(action_space, seed)
        self._random = np.random.default_rng((seed, STICKY_STREAM))
        self._action: Any = None

    def reset(self, info: dict[str, Any]) -> None:
        """Drops the action that was kept."""
        self._action = None

    def __call__(self, obs: Any, info: dict[str, Any]) -> Any:
        if self._action is None or self._random.random() < 1 / KEPT_STEPS:
            self._action = super().__call__(obs, info)
        return self._action


class Navigator:
    """Walks shortest paths through a Memory Maze, so that recordings show all of it, again and again.

    Each goal is a target (p = 0.35, mostly the current one), a walk back along the own path (p = 0.25), or a free cell,
    the less visited the likelier. Short bursts of random actions (about 7% of all) widen the data; after a
    few steps without progress it frees itself by a burst and takes another goal.
    """

    target_probability = 0.35
    current_target_probability = 0.7
    return_probability = 0.25
    burst_probability = 0.02  # per step; a burst lasts 1 to 6 steps
    burst_length = 6
    stuck_steps = 12
    stuck_distance = 0.3  # cells
    arrival_distance = 0.3  # cells; a target is touched at 0.4
    lookahead = 4  # cells of the path that may be cut short along a free line
    clearance = 0.2  # cells; the agent's radius is 0.1
    return_cells = (4, 40)  # length of a walk back

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def reset(self, info: dict[str, Any]) -> None:
        """Starts in a new maze.

        Raises:
            ValueError: `info` lacks the layout, the targets or the pose.
        """
        missing = [key for key in ("layout", "targets", "pose", "target_index") if key not in info]
        if missing:
            raise ValueError(f"The navigator needs Memory Maze's info; {', '.join(missing)} missing.")
        self._free = np.asarray(info["layout"]) == 0
        self._visits = np.zeros(self._free.shape, np.int64)
        self._trail: list[Cell] = []
        self._path: list[Cell] = []
        self._burst: list[int] = []
        self._recent: deque[Point] = deque(maxlen=self.stuck_steps)

    def __call__(self, obs: Any, info: dict[str, Any]) -> int:
        x, y, heading_x, heading_y = (float(value) for value in info["pose"])
        self._note_position((x, y))
        if not self._burst and self._rng.random() < self.burst_probability:
            self._start_burst()
        if not self._burst and self._is_stuck():
            self._path = []
            self._start_burst()
        if self._burst:
            return self._burst.pop()
        waypoint = self._next_waypoint((x, y), info)
        direction = math.atan2(waypoint[1] - y, waypoint[0] - x) - math.atan2(heading_y, heading_x)
        return steering_action(math.remainder(direction, math.tau))

    def _note_position(self, position: Point) -> None:
        cell = self._cell(position)
        if not self._trail or self._trail[-1] != cell:
            self._trail.append(cell)
            self._visits[cell[1], cell[0]] += 1
        self._recent.append(position)

    def _is_stuck(self) -> bool:
        if len(self._recent) < self.stuck_steps:
            return False
        extent = np.ptp(np.array(self._recent), axis=0).max()
        return bool(extent < self.stuck_distance)

    def _start_burst(self) -> None:
        # Each drawn action is held for two steps: single ones hardly move the agent.
        actions = self._rng.integers(6, size=self._rng.integers(1, self.burst_length // 2 + 1))
        self._burst = [int(action) for action in np.repeat(actions, 2)]
        self._recent.clear()

    def _next_waypoint(self, position: Point, info: dict[str, Any]) -> Point:
        """The farthest point of the path, within the lookahead, that a free straight line leads to."""
        while self._path and math.dist(position, _centre(self._path[0])) < self.arrival_distance:
            self._path.pop(0)
        if not self._path:
            self._path = self._plan(self._cell(position), info)
        for index in range(min(self.lookahead, len(self._path)) - 1, 0, -1):
            if self._line_is_free(position, _centre(self._path[index])):
                del self._path[:index]
                break
        return _centre(self._path[0])

    def _plan(self, start: Cell, info: dict[str, Any]) -> list[Cell]:
        """Draws a goal and returns the cells that lead there; never empty."""
        kind = self._rng.random()
        if kind < self.return_probability and len(self._trail) > self.return_cells[0]:
            length = int(self._rng.integers(*self.return_cells, endpoint=True))
            return self._trail[-2 : -2 - length : -1]
        parents = self._search(start)
        if kind < self.return_probability + self.target_probability:
            index = int(info["target_index"])
            if self._rng.random() >= self.current_target_probability:
                index = int(self._rng.integers(len(info["targets"])))
            goal_x, goal_y = info["targets"][index]
            goal = self._cell((float(goal_x), float(goal_y)))
        else:
            cells = list(parents)
            weights = np.array([1.0 / (1 + self._visits[y, x]) ** 2 for x, y in cells])
            goal = cells[int(self._rng.choice(len(cells), p=weights / weights.sum()))]
        return _path_to(goal, start, parents)

    def _search(self, start: Cell) -> dict[Cell, Cell]:
        """Breadth-first search: the cell before each reachable one on a shortest path from `start`, ties at random."""
        parents = {start: start}
        queue = deque([start])
        steps = [(1, 0), (-1, 0), (0, 1), (0, -1)]
        while queue:
            x, y = queue.popleft()
            for index in self._rng.permutation(4):
                cell = (x + steps[index][0], y + steps[index][1])
                if cell not in parents and self._is_free(cell):
                    parents[cell] = (x, y)
                    queue.append(cell)
        return parents

    def _cell(self, position: Point) -> Cell:
        rows, columns = self._free.shape
        return min(max(int(position[0]), 0), columns - 1), min(max(int(position[1]), 0), rows - 1)

    def _is_free(self, cell: Cell) -> bool:
        rows, columns = self._free.shape
        return 0 <= cell[0] < columns and 0 <= cell[1] < rows and bool(self._free[cell[1], cell[0]])

    def _line_is_free(self, start: Point, end: Point) -> bool:
        """Whether an agent of `clearance` cells on every side can go straight from `start` to `end`."""
        for share in np.linspace(0, 1, 2 + int(8 * math.dist(start, end)))[1:]:
            x, y = start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
            for dx in (-self.clearance, self.clearance):
                for dy in (-self.clearance, self.clearance):
                    if not self._is_free((math.floor(x + dx), math.floor(y + dy))):
                        return False
        return True


class RestlessNavigator(Navigator):
    """A navigator that sticky random actions interrupt half of the time, whatever stands before it.

    Where walkers never meet walls, a step forward is itself a sign that the way is free, and a model of their walks
    opens walls to whoever walks on. Here the way an agent acts says less of what is there.
    """

    target_probability = 0.5
    current_target_probability = 0.85
    return_probability = 0.15
    burst_probability = 1 / 12
    burst_length = 2  # random actions, each kept as long as sticky ones

    def _start_burst(self) -> None:
        for _ in range(self.burst_length):
            action = int(self._rng.integers(6))
            self._burst += [action] * int(self._rng.geometric(1 / KEPT_STEPS))
        self._recent.clear()


class Oracle(Navigator):
    """Walks the shortest path to the current target, which info tells it: the ceiling for agents that must remember.

    Its scores are those of this walker, which steers by waypoints: the published oracle gets more (34.8 in 9x9, Memory
    Maze, arXiv 2210.13383).
    """

    burst_probability = 0.0
    turn_angle = math.radians(70)
    lookahead = 8

    def reset(self, info: dict[str, Any]) -> None:
        """Starts in a new maze. Raises ValueError as the navigator does."""
        super().reset(info)
        self._target = -1

    def __call__(self, obs: Any, info: dict[str, Any]) -> int:
        if self._target != int(info["target_index"]):
            self._target = int(info["target_index"])
            self._path = []
        return super().__call__(obs, info)

    def _plan(self, start: Cell, info: dict[str, Any]) -> list[Cell]:
        """The cells of a shortest path to the current target; never empty."""
        goal_x, goal_y = info["targets"][self._target]
        return _path_to(self._cell((float(goal_x), float(goal_y))), start, self._search(start))


# By name; all of them read info that only the real maze has.
WALKERS: dict[str, type[Navigator]] = {"navigator": Navigator, "restless": RestlessNavigator, "oracle": Oracle}


def _path_to(goal: Cell, start: Cell, parents: dict[Cell, Cell]) -> list[Cell]:
    """The cells after `start` up to the goal, or the goal alone if it is the start."""
    path = [goal]
    while parents[path[-1]] not in (start, path[-1]):
        path.append(parents[path[-1]])
    return path[::-1]


def _centre(cell: Cell) -> Point:
    return cell[0] + 0.5, cell[1] + 0.5
