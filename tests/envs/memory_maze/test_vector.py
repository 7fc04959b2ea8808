"""Mazes that share a renderer are those that have one each."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from wm_gym.envs.memory_maze.env import MemoryMazeEnv
from wm_gym.envs.memory_maze.vector import MemoryMazeVectorEnv
from wm_gym.policies.base import make_policy

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("memory_maze") is None, reason="the memory-maze extra is not installed"
    ),
    pytest.mark.real_env,
]


@pytest.fixture(scope="module")
def env() -> Iterator[MemoryMazeVectorEnv]:
    env = MemoryMazeVectorEnv(2, autoreset_mode=AutoresetMode.DISABLED)
    yield env
    env.close()


def assert_same(left: tuple[Any, ...], right: tuple[Any, ...]) -> None:
    for ours, theirs in zip(left, right, strict=True):
        if isinstance(ours, dict):
            assert ours.keys() == theirs.keys()
            assert_same(tuple(ours.values()), tuple(theirs[name] for name in ours))
        else:
            assert type(ours) is type(theirs)
            np.testing.assert_array_equal(ours, theirs)


def test_each_row_is_the_single_environment_bit_by_bit_whatever_the_others_do(env: MemoryMazeVectorEnv) -> None:
    singles = [MemoryMazeEnv() for _ in range(2)]
    starts = [env.reset_row(row, 40 + row) for row in range(2)]
    policies = [make_policy("navigator", single, row) for row, single in enumerate(singles)]
    for row, single in enumerate(singles):
        assert_same(starts[row], single.reset(seed=40 + row))
        policies[row].reset(starts[row][1])
    seen = {row: (start[0], start[1]) for row, start in enumerate(starts)}
    for step in range(32):
        rows = [(0, 1), (1,), (0,), (1, 0)][step % 4]
        actions = {row: policies[row](*seen[row]) for row in rows}
        for row, outcome in env.step_rows(actions).items():
            assert_same(outcome, singles[row].step(actions[row]))
            seen[row] = (outcome[0], outcome[4])
        if step == 15:  # a new maze in a row leaves the other alone
            seen[1] = env.reset_row(1, 77)
            assert_same(seen[1], singles[1].reset(seed=77))
            policies[1].reset(seen[1][1])
    for single in singles:
        single.close()


def test_a_batch_has_the_rows_of_single_environments(env: MemoryMazeVectorEnv) -> None:
    single = MemoryMazeEnv()
    frames, infos = env.reset(seed=50)
    assert frames.shape == (2, 64, 64, 3)
    assert env.observation_space.contains(frames)
    assert list(infos["maze_seed"]) == [50, 51]
    expected, _ = single.reset(seed=51)
    np.testing.assert_array_equal(frames[1], expected)
    kept = frames.copy()
    for action in ([1, 4], [2, 5]):
        batch, rewards, terminated, truncated, infos = env.step(np.array(action))
        expected, reward, *_, info = single.step(action[1])
        np.testing.assert_array_equal(batch[1], expected)
        np.testing.assert_array_equal(infos["pose"][1], info["pose"])
        assert (rewards[1], terminated[1], truncated[1], infos["_pose"][1]) == (reward, False, False, True)
    np.testing.assert_array_equal(frames, kept)
    frames, infos = env.reset(seed=[None, 50], options={"reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(frames[1], kept[0])
    np.testing.assert_array_equal(frames[0], batch[0])
    assert list(infos["_maze_seed"]) == [False, True]
    single.close()


def test_rows_that_ended_are_reset_in_the_next_step_or_by_hand() -> None:
    options: dict[str, Any] = {"num_envs": 1, "vectorization_mode": "vector_entry_point"}
    env = gym.make_vec("wm_gym:wm_gym/MemoryMaze-9x9-v0", **options, max_episode_steps=2)
    env.reset(seed=3)
    assert [bool(env.step([0])[3][0]) for _ in range(2)] == [False, True]
    _, rewards, _, truncated, infos = env.step([0])
    assert (rewards[0], truncated[0]) == (0.0, False)
    assert infos["maze_seed"][0] != 3
    env.close()
    with pytest.raises(ResetNeeded, match="closed"):
        env.reset()
    by_hand = MemoryMazeVectorEnv(1, autoreset_mode="Disabled", max_episode_steps=2)
    by_hand.reset(seed=3)
    by_hand.step([0])
    by_hand.step([0])
    with pytest.raises(ResetNeeded, match="call reset first"):
        by_hand.step([0])
    by_hand.close()
    by_hand.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "must be at least 1, got 0"),
        ({"autoreset_mode": AutoresetMode.SAME_STEP}, "SAME_STEP is not there"),
        ({"render_mode": "rgb_array"}, "render_mode must be None"),
        ({"size": "8x8"}, "size is one of '9x9'"),
    ],
)
def test_wrong_arguments_are_value_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryMazeVectorEnv(**arguments)


def test_wrong_calls_are_value_errors_and_move_nothing(env: MemoryMazeVectorEnv) -> None:
    env.reset(seed=[60, 61])
    with pytest.raises(ValueError, match="seeds needs one for each of 2 rows, got 1"):
        env.reset(seed=[60])
    with pytest.raises(ValueError, match="reset_mask must be bool"):
        env.reset(options={"reset_mask": np.array([1, 0])})
    with pytest.raises(ValueError, match="only option of reset"):
        env.reset(options={"mask": 1})
    with pytest.raises(ValueError, match="One action for each of 2 rows"):
        env.step([0])
    before = env._envs[0]._backend.physics.data.time
    with pytest.raises(ValueError, match="from 0 to 5, got 6"):
        env.step([0, 6])
    assert env._envs[0]._backend.physics.data.time == before


def test_an_interpreter_may_exit_without_closing_it() -> None:
    code = (
        "from wm_gym.envs.memory_maze.vector import MemoryMazeVectorEnv as V\n"
        "env = V(2); env.reset(seed=1); env.step([1, 1]); print('stepped')"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (process.returncode, process.stdout) == (0, "stepped\n"), process.stderr
    # What is wrong at the exit shows there alone; beside it there may be warnings of other packages.
    assert not any(word in process.stderr for word in ("Traceback", "Error", "Exception ignored")), process.stderr
