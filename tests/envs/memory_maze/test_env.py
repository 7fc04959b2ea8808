"""The real Memory Maze: the published task, exactly, as a Gymnasium environment."""

import importlib.util
import math
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from tests.paths import ROOT
from training.recording.policies import make_policy
from wm_gym.envs.memory_maze.env import MemoryMazeEnv
from wm_gym.envs.memory_maze.published import ACTION_CONTROLS, EPISODE_LENGTHS, load_libraries

needs_memory_maze = pytest.mark.skipif(
    importlib.util.find_spec("memory_maze") is None, reason="the memory-maze extra is not installed"
)
FORWARD = 1


@pytest.fixture(scope="module")
def env() -> Iterator[MemoryMazeEnv]:
    env = MemoryMazeEnv("9x9", render_mode="rgb_array")
    yield env
    env.close()


def assert_same_info(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


@needs_memory_maze
@pytest.mark.real_env
def test_direct_implementation_is_bit_exact_with_upstream() -> None:
    env = MemoryMazeEnv("9x9")  # without a render mode, as it is trained in: room for one frame and no more
    upstream = MemoryMazeEnv("9x9", implementation="upstream")
    env.reset(seed=6)  # An earlier maze must leave nothing behind.
    total_reward = 0.0
    for seed, policy_name in ((42, "navigator"), (43, "random")):
        frame, info = env.reset(seed=seed)
        upstream_frame, upstream_info = upstream.reset(seed=seed)
        policy = make_policy(policy_name, env, seed)
        policy.reset(info)
        for _ in range(35):
            np.testing.assert_array_equal(frame, upstream_frame)
            assert_same_info(info, upstream_info)
            action = policy(frame, info)
            frame, reward, terminated, truncated, info = env.step(action)
            upstream_frame, *upstream_outcome, upstream_info = upstream.step(action)
            assert [reward, terminated, truncated] == upstream_outcome
            total_reward += reward
    env.close()
    upstream.close()
    assert total_reward > 0, "the comparison should include a touched target"


@needs_memory_maze
@pytest.mark.real_env
def test_same_seed_gives_the_same_episode_and_another_seed_another_maze(env: MemoryMazeEnv) -> None:
    episodes = []
    for seed in (42, 1, 42):
        frame, info = env.reset(seed=seed)
        policy = make_policy("navigator", env, 42)
        policy.reset(info)
        frames, indices = [frame], [info["target_index"]]
        for _ in range(30):
            frame, _, _, _, info = env.step(policy(frame, info))
            frames.append(frame)
            indices.append(info["target_index"])
        episodes.append((np.stack(frames), indices, info))
    np.testing.assert_array_equal(episodes[0][0], episodes[2][0])
    assert episodes[0][1] == episodes[2][1]
    assert len(set(episodes[0][1])) > 1, "the episode should include a draw of the next target"
    assert_same_info(episodes[0][2], episodes[2][2])
    assert not np.array_equal(episodes[0][0][0], episodes[1][0][0])


@needs_memory_maze
@pytest.mark.real_env
def test_reset_without_seed_draws_training_mazes_reproducibly(env: MemoryMazeEnv) -> None:
    seeds = []
    for _ in range(2):
        env.reset(seed=3)
        seeds.append([env.reset()[1]["maze_seed"] for _ in range(2)])
    assert seeds[0] == seeds[1]
    assert seeds[0][0] != seeds[0][1]
    assert max(seeds[0]) < 7_000_000, "later seeds are kept for evaluation"


@needs_memory_maze
@pytest.mark.real_env
def test_info_describes_the_maze_in_grid_units(env: MemoryMazeEnv) -> None:
    frame, info = env.reset(seed=5)
    assert info["maze_seed"] == 5
    assert info["layout"].shape == (9, 9)
    assert info["layout"].dtype == np.uint8
    assert set(np.unique(info["layout"])) == {0, 1}
    assert info["targets"].shape == (3, 2)
    for x, y in [info["pose"][:2], *info["targets"]]:
        assert info["layout"][int(y), int(x)] == 0, "agent and targets stand in free cells"
    assert info["pose"].dtype == info["targets"].dtype == info["target_color"].dtype == np.float32
    np.testing.assert_allclose(np.hypot(*info["pose"][2:]), 1, rtol=1e-6)
    border = (info["target_color"] * 255 * 0.7).astype(np.uint8)
    for edge in (frame[:2], frame[-2:], frame[:, :2], frame[:, -2:]):
        assert (edge == border).all()
    before = info["pose"]
    for _ in range(4):
        *_, info = env.step(FORWARD)
    moved = info["pose"][:2] - before[:2]
    assert moved @ before[2:] == pytest.approx(np.hypot(*moved), rel=1e-3), "forward leads along the heading"


@needs_memory_maze
@pytest.mark.real_env
def test_episode_is_truncated_at_the_published_length_and_then_needs_reset(env: MemoryMazeEnv) -> None:
    env.reset(seed=0)
    for _ in range(999):
        _, _, terminated, truncated, _ = env.step(FORWARD)
        assert not terminated
        assert not truncated
    _, _, terminated, truncated, _ = env.step(FORWARD)
    assert truncated
    assert not terminated
    with pytest.raises(ResetNeeded, match="after the end of the episode"):
        env.step(FORWARD)


@needs_memory_maze
@pytest.mark.real_env
@pytest.mark.parametrize("size", EPISODE_LENGTHS)
def test_lengths_and_actions_are_those_of_the_published_task(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = load_libraries().tasks
    made: dict[str, Any] = {}
    monkeypatch.setattr(tasks.composer, "Environment", lambda **arguments: made.update(arguments))
    published = getattr(tasks, f"memory_maze_{size}")(seed=1)
    assert math.ceil(made["time_limit"] / made["task"].control_timestep) == EPISODE_LENGTHS[size]
    np.testing.assert_array_equal(published.action_set, ACTION_CONTROLS)


@needs_memory_maze
@pytest.mark.real_env
def test_passes_the_checks_of_gymnasium_and_sb3_without_warnings() -> None:
    sb3_checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gym.make("wm_gym/MemoryMaze-9x9-v0", render_mode="rgb_array").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    env = MemoryMazeEnv("9x9")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_checker.check_env(env)
    env.close()


@needs_memory_maze
@pytest.mark.real_env
def test_render_shows_the_frame_larger(env: MemoryMazeEnv) -> None:
    frame, _ = env.reset(seed=8)
    picture = env.render()
    assert picture is not None
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8
    shrunk = picture.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(shrunk - frame).mean() < 8


@needs_memory_maze
@pytest.mark.real_env
@pytest.mark.parametrize("action", [6, -1, 1.5, "forward", None, np.array([1, 2])])
def test_wrong_action_is_a_value_error(env: MemoryMazeEnv, action: Any) -> None:
    if env._state != "running":
        env.reset(seed=1)
    with pytest.raises(ValueError, match="integer from 0 to 5"):
        env.step(action)


@needs_memory_maze
@pytest.mark.real_env
def test_step_and_render_before_reset_and_after_close_say_reset_is_needed() -> None:
    env = MemoryMazeEnv("11x11", render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="before the first reset"):
        env.step(0)
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.render()
    env.close()
    env.close()
    with pytest.raises(ResetNeeded, match="after close"):
        env.step(0)
    with pytest.raises(ResetNeeded, match="make a new one"):
        env.reset()


@needs_memory_maze
@pytest.mark.real_env
def test_wrong_seed_or_options_are_value_errors(env: MemoryMazeEnv) -> None:
    with pytest.raises(ValueError, match="from 0 to 2\\*\\*32 - 1, got -1"):
        env.reset(seed=-1)
    with pytest.raises(ValueError, match="got 4294967296"):
        env.reset(seed=2**32)
    with pytest.raises(ValueError, match="no reset options"):
        env.reset(options={"maze": 1})


def test_unknown_size_implementation_or_render_mode_are_value_errors() -> None:
    with pytest.raises(ValueError, match="size is one of '9x9'"):
        MemoryMazeEnv("10x10")
    with pytest.raises(ValueError, match="implementation is one of 'direct', 'upstream'"):
        MemoryMazeEnv("9x9", implementation="fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="render_mode is one of 'rgb_array', got 'human'"):
        MemoryMazeEnv("9x9", render_mode="human")


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")  # so that a missing software renderer does not come first
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"pip install wm_gym\[memory-maze\]"):
        MemoryMazeEnv("9x9")


def test_missing_software_renderer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(ImportError, match="apt-get install libosmesa6"):
        MemoryMazeEnv("9x9")


@needs_memory_maze
@pytest.mark.real_env
@pytest.mark.slow
def test_interpreter_exits_silently_with_environments_left_open() -> None:
    script = """
        from wm_gym.envs.memory_maze.env import MemoryMazeEnv
        left_open, dropped = MemoryMazeEnv("9x9"), MemoryMazeEnv("9x9", implementation="upstream")
        for env in (left_open, dropped):
            env.reset(seed=1)
            env.step(1)
        del env, dropped
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    root = ROOT
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert result.stderr == ""


@needs_memory_maze
@pytest.mark.real_env
def test_an_episode_ends_after_the_length_that_was_asked_for() -> None:
    env = MemoryMazeEnv("9x9", episode_length=3)
    env.reset(seed=5)
    assert [env.step(np.int64(FORWARD))[3] for _ in range(3)] == [False, False, True]
    env.close()
    with pytest.raises(ValueError, match="direct implementation"):
        MemoryMazeEnv("9x9", implementation="upstream", episode_length=2048)
