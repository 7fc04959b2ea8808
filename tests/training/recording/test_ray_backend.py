"""Collection on a Ray cluster of two nodes of this machine, one of which is killed in the middle."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.toy_env import ToyMazeEnv
from tests.toy_store import TOY_ENV, make_toy_store, toy_episode
from training.collect import CollectConfig, collect
from training.recording.ray_backend import _Recorders, add_files
from training.recording.schedule import Schedule
from training.store.episode_store import EpisodeStore, EpisodeWriter, open_store
from training.store.tools import problems

SLOW_ENV = "tests.training.recording.test_ray_backend:tests/Slow-v0"
DEADLY_ENV = "tests.training.recording.test_ray_backend:tests/Deadly-v0"
FAULTY_ENV = "tests.training.recording.test_ray_backend:tests/Faulty-v0"


class SlowEnv(ToyMazeEnv):
    """An episode takes 0.4 s."""

    def step(self, action: np.int64):
        time.sleep(0.01)
        return super().step(action)


class DeadlyEnv(ToyMazeEnv):
    """Its process is killed in the episode of seed 1."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(seed=seed, options=options)


class FaultyEnv(ToyMazeEnv):
    """Raises in the episode of seed 1."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed == 1:
            raise ArithmeticError("the walls are crooked")
        return super().reset(seed=seed, options=options)


gym.register("tests/Slow-v0", "tests.training.recording.test_ray_backend:SlowEnv", max_episode_steps=40)
gym.register("tests/Deadly-v0", "tests.training.recording.test_ray_backend:DeadlyEnv", max_episode_steps=40)
gym.register("tests/Faulty-v0", "tests.training.recording.test_ray_backend:FaultyEnv", max_episode_steps=40)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a core each, and this process connected to the first one."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory})
    cluster.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def children(pid: int) -> list[int]:
    """The processes that a process has started: of a raylet, its workers."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def config(path: Path, env: str, num_episodes: int, workers: int = 2) -> CollectConfig:
    frames = num_episodes * 41
    return CollectConfig(env=env, out=path, frames=frames, policy="random", workers=workers, backend="ray")


def assert_holds(store: EpisodeStore, seeds: list[int]) -> None:
    assert store.seeds() == seeds
    for seed in seeds:
        episode, expected = store.read(seed), toy_episode(seed)
        np.testing.assert_array_equal(episode.frames, expected.frames)
        np.testing.assert_array_equal(episode.actions, expected.actions)
    assert list(problems(store)) == []
    names = sorted(path.name for path in (store.path / "train").iterdir())
    assert names == [*(f"episode_{seed:010d}" for seed in seeds), "zarr.json"]


@pytest.mark.slow
def test_a_recorder_that_dies_again_and_again_stops_the_run_and_names_the_seed(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"3 recorders died, the last one on \w+ in the episode of seed 1"):
        collect(config(tmp_path / "store", DEADLY_ENV, 4, workers=1))
    assert open_store(tmp_path / "store").seeds()[0] == 0


@pytest.mark.slow
def test_a_fault_of_the_environment_stops_the_run_and_shows_where(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)episode of seed 1 failed.*the walls are crooked"):
        collect(config(tmp_path / "store", FAULTY_ENV, 4, workers=1))
    assert_holds(open_store(tmp_path / "store"), [0])


@pytest.mark.slow
def test_a_node_that_is_killed_costs_no_reported_episode_and_doubles_none(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, reported, killed_after = tmp_path / "store", Counter[int](), []
    recording_on: set[str | None] = set()
    finish, give = Schedule.finish, _Recorders.give

    def watched_give(recorders: _Recorders, schedule: Schedule) -> None:
        give(recorders, schedule)
        recording_on.update(task.node for task in recorders._tasks.values() if task.seed is not None)

    def counted_finish(schedule: Schedule, seed: int, num_frames: int) -> None:
        finish(schedule, seed, num_frames)
        reported[seed] += 1

    monkeypatch.setattr(Schedule, "finish", counted_finish)
    monkeypatch.setattr(_Recorders, "give", watched_give)
    node = cluster.list_all_nodes()[-1]

    def kill() -> None:
        while sum(reported.values()) < 6 or len(recording_on) < 2:
            time.sleep(0.01)
        killed_after.extend(reported)
        for pid in [pid for _, process in node.live_processes() for pid in (process.pid, *children(process.pid))]:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    store = collect(config(path, SLOW_ENV, 40))
    killer.join(10)
    assert 6 <= len(killed_after) < 40, "the node must die in the middle"
    assert "A recorder died on" in capsys.readouterr().err
    assert reported == Counter(range(40))
    assert_holds(store, list(range(40)))


def test_a_finished_store_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toy_store(tmp_path / "store", seeds=[0, 1])
    monkeypatch.setitem(sys.modules, "ray", None)
    collect(config(tmp_path / "store", TOY_ENV, 2))


def test_missing_ray_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install wm_gym\[distributed\]"):
        collect(config(tmp_path / "store", TOY_ENV, 2))


def test_an_episode_that_arrives_twice_is_kept_once(tmp_path: Path) -> None:
    source = make_toy_store(tmp_path / "source", seeds=[3])
    folder = source.episode_path(3)
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    store = make_toy_store(tmp_path / "store", seeds=[])
    EpisodeWriter(store)
    assert add_files(store, "train", 3, files)
    assert not add_files(store, "train", 3, files)
    assert_holds(store, [3])
