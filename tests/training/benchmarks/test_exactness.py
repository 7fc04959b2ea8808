"""The direct implementation of Memory Maze is the published one, bit by bit, over whole episodes."""

from __future__ import annotations

import importlib.util
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.benchmarks import exactness as check_exactness
from training.benchmarks.exactness import POLICIES, Comparison, ExactnessConfig, Job, compare, planned, run
from wm_gym.envs.memory_maze.direct import DirectMaze
from wm_gym.envs.memory_maze.env import MemoryMazeEnv
from wm_gym.envs.memory_maze.published import EPISODE_LENGTHS, MazeStep
from wm_gym.files import write_json

needs_memory_maze = pytest.mark.skipif(
    importlib.util.find_spec("memory_maze") is None, reason="the memory-maze extra is not installed"
)


@needs_memory_maze
@pytest.mark.real_env
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(100, 105))
@pytest.mark.parametrize("size", EPISODE_LENGTHS)
def test_whole_episodes_are_bit_exact(size: str, seed: int, policy: str) -> None:
    comparison = compare(size, seed, policy, max_steps=0)
    assert comparison.difference is None
    assert comparison.ended
    assert comparison.steps == EPISODE_LENGTHS[size]


@needs_memory_maze
@pytest.mark.real_env
@pytest.mark.parametrize("size", ["11x11", "15x15"])
def test_larger_mazes_begin_bit_exactly(size: str) -> None:
    comparison = compare(size, 106, "navigator", max_steps=8)
    assert comparison.difference is None
    assert comparison.steps == 8


@needs_memory_maze
@pytest.mark.real_env
def test_one_wrong_bit_of_one_pixel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def flawed_step(self: DirectMaze, action: int) -> MazeStep:
        step = right_step(self, action)
        step.frame[30, 30, 1] ^= self._num_steps == 3
        return step

    right_step = DirectMaze.step
    monkeypatch.setattr(DirectMaze, "step", flawed_step)
    assert compare("9x9", 107, "random", max_steps=6).difference == "frame after 3 steps"


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        ({"pose": np.array([1, 2], np.float32), "reward": 0.0}, None),
        ({"pose": np.array([1, 3], np.float32), "reward": 0.0}, "pose"),
        ({"pose": np.array([1, 2], np.float64), "reward": 0.0}, "pose"),
        ({"pose": np.array([1, 2], np.float32), "reward": -0.0}, "reward"),
        ({"pose": np.array([1, 2], np.float32)}, "names ['reward']"),
    ],
)
def test_values_types_and_names_count(theirs: dict[str, Any], name: str | None) -> None:
    assert check_exactness._difference({"pose": np.array([1, 2], np.float32), "reward": 0.0}, theirs) == name


def test_a_number_of_steps_is_needed_for_each_size() -> None:
    with pytest.raises(ValueError, match="each of 2 sizes, got 1"):
        planned(ExactnessConfig(sizes=("9x9", "11x11"), steps=(5,)))


@needs_memory_maze
@pytest.mark.real_env
def test_an_interrupted_run_goes_on_and_code_that_changed_is_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "exactness.json"
    played: list[Job] = []

    class InThisProcess:
        """Stands in for the pool of processes and remembers what was played."""

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def __enter__(self) -> InThisProcess:
            return self

        def __exit__(self, *args: object) -> None: ...

        def submit(self, function: Any, *job: Any) -> Future[Comparison]:
            played.append(job)
            future: Future[Comparison] = Future()
            future.set_result(Comparison(*job, steps=3, rewards=0.0, ended=False, seconds=1.0, difference=None))
            return future

    monkeypatch.setattr(check_exactness, "ProcessPoolExecutor", InThisProcess)
    config = ExactnessConfig(out=out, sizes=("9x9",), steps=(3,), seeds=2, whole=0)
    record = run(config)
    assert (len(played), record["episodes"], record["not_run"]) == (4, 4, [])
    record["comparisons"].pop(1)
    write_json(out, record)
    played.clear()
    assert run(config)["comparisons"] == json.loads(out.read_text())["comparisons"]
    assert played == [("9x9", 100, "random", 3)]
    write_json(out, record | {"conditions": record["conditions"] | {"code": "other"}})
    played.clear()
    run(config)
    assert len(played) == 4


@needs_memory_maze
@pytest.mark.real_env
def test_a_maze_keeps_its_renderer_from_reset_to_reset() -> None:
    env = MemoryMazeEnv("9x9")
    first, _ = env.reset(seed=1)
    backend = env._backend
    assert isinstance(backend, DirectMaze)
    renderer = backend._renderer.gl
    env.reset(seed=2)
    assert backend._renderer.gl is renderer
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first, again)
    env.close()
    assert backend._renderer.gl is None
