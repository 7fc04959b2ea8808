"""Policies: what they do to an environment, and that a seed decides it."""

import importlib.util
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import wm_gym  # noqa: F401  (registers the environments)
from training.recording.policies import Navigator, make_policy, mixed_policy_name


class ToyMaze(gym.Env[np.ndarray, np.int64]):
    """Memory Maze's actions and info on a drawn map, without physics: 18 degrees a turn, a quarter of a cell a step."""

    def __init__(self, rows: list[str]) -> None:
        self.action_space = spaces.Discrete(6)
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self._layout = np.array([[cell == "#" for cell in row] for row in rows], np.uint8)
        self._targets = np.array([(x, y) for y, row in enumerate(rows) for x, c in enumerate(row) if c == "T"]) + 0.5

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._x, self._y, self._angle, self._target = 0.5, 0.5, 0.3, 0
        return np.zeros((64, 64, 3), np.uint8), self._info()

    def step(self, action: Any) -> Any:
        self._angle += math.radians({2: 18, 4: 18, 3: -18, 5: -18}.get(int(action), 0))
        if int(action) in (1, 4, 5):
            self._move(0.25 * math.cos(self._angle), 0.25 * math.sin(self._angle))
        reward = float(math.dist((self._x, self._y), self._targets[self._target]) < 0.4)
        if reward:
            self._target = (self._target + 1) % len(self._targets)
        return np.zeros((64, 64, 3), np.uint8), reward, False, False, self._info()

    def _move(self, dx: float, dy: float) -> None:
        """Slides along walls, as the ball does."""
        for step_x, step_y in ((dx, 0), (0, dy)):
            x, y = self._x + step_x, self._y + step_y
            corners = [(x + sx, y + sy) for sx in (-0.1, 0.1) for sy in (-0.1, 0.1)]
            size = len(self._layout)
            if all(0 <= cx < size and 0 <= cy < size and not self._layout[int(cy), int(cx)] for cx, cy in corners):
                self._x, self._y = x, y

    def _info(self) -> dict[str, Any]:
        pose = [self._x, self._y, math.cos(self._angle), math.sin(self._angle)]
        return {
            "pose": np.array(pose, np.float32),
            "layout": self._layout,
            "targets": self._targets.astype(np.float32),
            "target_index": self._target,
        }


NINE = [
    "...#...T.",
    ".#.#.###.",
    ".#...#...",
    ".###.#.#.",
    "...#...#.",
    "##.#####.",
    "..T......",
    ".##.####.",
    "....#..T.",
]


def tile(rows: list[str], size: int) -> list[str]:
    """A larger map: the small one, repeated around an open cross."""
    wide = [(row + "." + row)[:size] for row in rows]
    return [*wide, "." * size, *wide][:size]


def walk(env: gym.Env[Any, Any], policy: Any, num_steps: int, seed: int = 0) -> tuple[list[int], set[Any], float]:
    """Returns the actions, the visited cells and the sum of rewards."""
    obs, info = env.reset(seed=seed)
    policy.reset(info)
    actions, cells, rewards = [], set(), 0.0
    for _ in range(num_steps):
        actions.append(int(policy(obs, info)))
        obs, reward, _, _, info = env.step(actions[-1])
        cells.add((int(info["pose"][0]), int(info["pose"][1])))
        rewards += float(reward)
    return actions, cells, rewards


@pytest.mark.parametrize("size", [9, 11, 13, 15])
def test_navigator_sees_most_of_a_maze_of_any_size_and_touches_targets(size: int) -> None:
    env = ToyMaze(tile(NINE, size))
    _, cells, rewards = walk(env, make_policy("navigator", env, 0), {9: 1000, 11: 2000, 13: 3000, 15: 4000}[size])
    assert len(cells) > 0.7 * (env._layout == 0).sum()
    assert rewards >= 4


def test_navigator_is_decided_by_its_seed() -> None:
    env = ToyMaze(NINE)
    first, again, other = (walk(env, make_policy("navigator", env, seed), 300)[0] for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_navigator_uses_every_action_and_mostly_walks() -> None:
    env = ToyMaze(NINE)
    actions, _, _ = walk(env, make_policy("navigator", env, 1), 1000)
    counts = np.bincount(actions, minlength=6)
    assert counts.min() > 0
    assert counts[[1, 4, 5]].sum() > 500


def test_navigator_frees_itself_from_a_place_where_walking_fails() -> None:
    env = ToyMaze(NINE)
    obs, info = env.reset(seed=0)
    policy = make_policy("navigator", env, 0)
    policy.reset(info)
    actions = [policy(obs, info) for _ in range(100)]  # The pose never changes: the agent is stuck.
    assert len(set(actions)) == 6


def test_oracle_touches_targets_several_times_as_often_as_the_navigator() -> None:
    rewards = {}
    for name in ("oracle", "navigator"):
        env = ToyMaze(NINE)
        rewards[name] = walk(env, make_policy(name, env, 0), 500)[2]
    assert rewards["oracle"] >= 9
    assert rewards["oracle"] >= 2 * rewards["navigator"]


def test_oracle_turns_to_the_new_target_at_once() -> None:
    env = ToyMaze(NINE)
    obs, info = env.reset(seed=0)
    oracle = make_policy("oracle", env, 0)
    oracle.reset(info)
    for index in range(len(info["targets"])):
        info["target_index"] = index
        oracle(obs, info)
        x, y = info["targets"][index]
        assert oracle._path[-1] == (int(x), int(y))  # pyright: ignore[reportAttributeAccessIssue]


def test_oracle_frees_itself_from_a_place_where_walking_fails() -> None:
    env = ToyMaze(NINE)
    obs, info = env.reset(seed=0)
    oracle = make_policy("oracle", env, 0)
    oracle.reset(info)
    assert len({oracle(obs, info) for _ in range(100)}) > 3  # The pose never changes: the agent is stuck.


def test_random_policy_is_decided_by_its_seed_and_leaves_the_environment_alone() -> None:
    env = ToyMaze(NINE)
    env.action_space.seed(0)
    expected = [env.action_space.sample() for _ in range(5)]
    env.action_space.seed(0)
    first, again = (walk(env, make_policy("random", env, 5), 50)[0] for _ in range(2))
    assert first == again
    assert set(first) == set(range(6))
    assert [env.action_space.sample() for _ in range(5)] == expected


def test_unknown_policy_and_wrong_environment_are_value_errors() -> None:
    env = ToyMaze(NINE)
    with pytest.raises(ValueError, match=r"'mixed' or PACKAGE\.MODULE:FUNCTION, got 'expert'"):
        make_policy("expert", env, 0)
    env.action_space = spaces.Discrete(3)
    with pytest.raises(ValueError, match="6 discrete actions"):
        make_policy("navigator", env, 0)
    with pytest.raises(ValueError, match="layout, targets, target_index missing"):
        Navigator(0).reset({"pose": np.zeros(4)})


@pytest.mark.real_env
@pytest.mark.skipif(importlib.util.find_spec("memory_maze") is None, reason="the memory-maze extra is not installed")
def test_navigator_explores_the_real_memory_maze() -> None:
    env = gym.make("wm_gym/MemoryMaze-9x9-v0")
    _, cells, rewards = walk(env, make_policy("navigator", env, 42), 300, seed=42)
    env.close()
    assert len(cells) >= 20
    assert rewards >= 1


def test_sticky_actions_are_kept_for_some_steps_and_are_the_same_for_the_same_seed() -> None:
    env = gym.make("CartPole-v1")
    env.action_space = gym.spaces.Discrete(6)
    taken = []
    for _ in range(2):
        policy = make_policy("sticky", env, 3)
        policy.reset({})
        taken.append([int(policy(None, {})) for _ in range(6000)])
    assert taken[0] == taken[1]
    changes = np.count_nonzero(np.diff(taken[0]))
    assert 0.8 < changes / (6000 / 6 * 5 / 6) < 1.2  # one in six drawn actions is the same again
    assert np.bincount(taken[0]).min() > 500
    env.close()


def test_restless_navigator_walks_into_walls_where_the_navigator_hardly_does_and_still_touches_targets() -> None:
    blocked, rewards = {}, {}
    for name in ("navigator", "restless"):
        env = ToyMaze(NINE)
        policy = make_policy(name, env, 4)
        obs, info = env.reset()
        policy.reset(info)
        forward = stopped = rewards[name] = 0
        for _ in range(2000):
            before, action = info["pose"][:2], policy(obs, info)
            obs, reward, *_, info = env.step(action)
            rewards[name] += reward
            if action in (1, 4, 5):
                forward += 1
                stopped += math.dist(before, info["pose"][:2]) < 0.025
        blocked[name] = stopped / forward
    assert blocked["navigator"] < 0.05
    assert blocked["restless"] > 3 * blocked["navigator"]
    assert rewards["restless"] >= 3


def test_mixed_plays_the_restless_navigator_most_and_the_same_for_the_same_seed() -> None:
    names = [mixed_policy_name(seed) for seed in range(2000)]
    assert names == [mixed_policy_name(seed) for seed in range(2000)]
    assert abs(names.count("restless") / 2000 - 0.3) < 0.04
    assert abs(names.count("navigator") / 2000 - 0.1) < 0.03
    assert abs(names.count("random") / 2000 - 0.25) < 0.04
    assert abs(names.count("sticky") / 2000 - 0.2) < 0.03
    lengths = {int(name.removeprefix("backtrack-")) for name in names if name.startswith("backtrack-")}
    assert min(lengths) >= 100
    assert max(lengths) < 500
    assert len(lengths) > 100
