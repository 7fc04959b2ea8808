import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests.paths import ROOT
from tests.toy_env import ToyMazeEnv
from tests.toy_store import TOY_ENV, make_toy_store, toy_episode
from training import collect as collect_module
from training.collect import CollectConfig, collect
from training.recording import workers as workers_module
from training.recording.recorder import record_seeds
from training.recording.schedule import Schedule
from training.store.episode_store import EpisodeStore, open_store
from training.store.tools import differing_part

DYING_ENV = "tests.training.test_collect:tests/Dying-v0"


class DyingEnv(ToyMazeEnv):
    """Its process is killed in the episode of seed 1."""

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(seed=seed, options=options)


gym.register("tests/Dying-v0", "tests.training.test_collect:DyingEnv", max_episode_steps=20)


def command(path: Path, num_episodes: int, workers: int) -> list[str]:
    options = {"env": TOY_ENV, "policy": "random", "frames": num_episodes * 41, "workers": workers, "out": path}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "training.collect", *arguments]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background, such as this test run, ignores Ctrl-C and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def num_episodes(path: Path) -> int:
    return len(list((path / "train").glob("episode_*")))


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_holds(store: EpisodeStore, seeds: list[int]) -> None:
    """These whole, undamaged episodes, and nothing else."""
    assert store.seeds() == seeds
    for seed in seeds:
        episode, expected = store.read(seed), toy_episode(seed)
        np.testing.assert_array_equal(episode.frames, expected.frames)
        np.testing.assert_array_equal(episode.actions, expected.actions)
    names = sorted(path.name for path in (store.path / "train").iterdir())
    assert names == [*(f"episode_{seed:010d}" for seed in seeds), "zarr.json"]


def test_killed_with_its_workers_left_alone_it_goes_on_without_double_or_damaged_episodes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    process = start(*command(path, num_episodes=40, workers=2))
    wait_until(lambda: num_episodes(path) >= 3)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    wait_until(lambda: not any(map(is_running, workers)))

    store = open_store(path)
    before = store.seeds()
    assert 3 <= len(before) < 40
    assert set(before) <= set(range(40))
    written = {seed: (path / f"train/episode_{seed:010d}/zarr.json").stat().st_mtime_ns for seed in before}

    collect(CollectConfig(env=TOY_ENV, out=path, frames=40 * 41, policy="random", workers=2))
    assert_holds(store, list(range(40)))
    for seed, time_ns in written.items():
        assert (path / f"train/episode_{seed:010d}/zarr.json").stat().st_mtime_ns == time_ns


def test_ctrl_c_leaves_a_valid_store_and_says_so_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "store"
    process = start(*command(path, num_episodes=1000, workers=1))
    wait_until(lambda: num_episodes(path) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Interrupted; finished episodes are kept" in errors
    assert "Traceback" not in errors
    assert "frames/s" in errors
    store = open_store(path)
    assert_holds(store, store.seeds())


def test_a_worker_that_dies_stops_the_run_with_its_name_and_exit_code(tmp_path: Path) -> None:
    config = CollectConfig(env=DYING_ENV, out=tmp_path / "store", frames=100, policy="random")
    with pytest.raises(RuntimeError, match=r"collect-0 died with exit code -9 \(killed by SIGKILL\).*seed 1"):
        collect(config)
    store = open_store(tmp_path / "store")
    assert store.seeds() == [0]
    assert store.read(0).num_frames == 21


def test_a_finished_store_needs_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toy_store(tmp_path / "store", seeds=[0, 1])
    monkeypatch.setattr(workers_module, "_start_worker", None)
    collect(CollectConfig(env=TOY_ENV, out=tmp_path / "store", frames=82, policy="random", workers=4))


def test_a_worker_whose_collector_is_gone_ends_without_an_episode(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[])
    ours, theirs = workers_module.multiprocessing.Pipe()
    ours.send(3)
    ours.close()
    record_seeds(theirs, tmp_path / "store", "train", TOY_ENV, "random", 200)
    assert open_store(tmp_path / "store").seeds() == []


def test_episodes_recorded_several_at_a_time_are_those_recorded_one_by_one(tmp_path: Path) -> None:
    config = CollectConfig(env=TOY_ENV, out=tmp_path / "store", frames=8 * 41, policy="random", envs_per_worker=3)
    collect(config)
    assert_holds(open_store(tmp_path / "store"), list(range(8)))


@pytest.mark.real_env
@pytest.mark.skipif(importlib.util.find_spec("memory_maze") is None, reason="the memory-maze extra is not installed")
@pytest.mark.slow
def test_mazes_that_share_a_renderer_give_the_same_store(tmp_path: Path) -> None:
    maze = {"env": "wm_gym/MemoryMaze-9x9-v0", "frames": 3 * 13, "max_episode_steps": 12, "seed": 20}
    one = collect(CollectConfig(out=tmp_path / "one", **maze))
    together = collect(CollectConfig(out=tmp_path / "together", envs_per_worker=2, **maze))
    assert one.seeds() == together.seeds() == [20, 21, 22]
    for seed in one.seeds():
        assert differing_part(one.read(seed), together.read(seed)) is None


@pytest.mark.parametrize("num_workers", [1, 3, 16])
def test_a_schedule_ends_with_the_shortest_row_that_is_long_enough(tmp_path: Path, num_workers: int) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[12, 14], max_episode_steps=9)
    order = random.Random(num_workers)
    lengths = {seed: 10 if seed in (12, 14) else order.randint(2, 41) for seed in range(10, 60)}
    schedule = Schedule(store, "train", first_seed=10, num_frames=300, max_frames=41)
    running: list[int] = []
    recorded: list[int] = []
    while not schedule.done:
        while len(running) < num_workers and (seed := schedule.next_seed()) is not None:
            running.append(seed)
        seed = running.pop(order.randrange(len(running)))
        schedule.finish(seed, lengths[seed])
        recorded.append(seed)
    row = sorted([*recorded, 12, 14])
    assert row == list(range(10, row[-1] + 1))
    frames = [lengths[seed] for seed in row]
    assert sum(frames[:-1]) < 300 <= sum(frames)
    assert schedule.next_seed() is None


def test_without_a_limit_the_longest_episode_stands_in(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[])
    schedule = Schedule(store, "train", first_seed=0, num_frames=100, max_frames=None)
    assert [schedule.next_seed() for _ in range(3)] == [0, 1, 2]
    schedule.finish(0, 30)
    assert schedule.next_seed() == 3  # 30 recorded and two under way leave room for one more of 30
    assert schedule.next_seed() is None
    for seed in (1, 2):
        schedule.finish(seed, 30)
    assert schedule.next_seed() is None
    assert not schedule.done
    schedule.finish(3, 30)
    assert schedule.done


def test_a_row_that_runs_into_evaluation_mazes_is_refused(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[])
    schedule = Schedule(store, "train", first_seed=6_999_999, num_frames=1000, max_frames=41)
    assert schedule.next_seed() == 6_999_999
    with pytest.raises(ValueError, match="for evaluation only"):
        schedule.next_seed()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed", "7000000"], "for evaluation only"),
        (["--seed", "3", "--split", "test"], "never trained on"),
        (["--frames", "0"], "frames must be at least 1"),
        (["--envs-per-worker", "0"], "envs_per_worker must be at least 1"),
        (["--envs-per-worker", "2", "--backend", "ray"], "one environment each"),
        (["--env", "wm_gym/MemoryMaze-8x8-v0"], "Cannot make environment 'wm_gym/MemoryMaze-8x8-v0'"),
        (["--env", "no_such_module:Maze-v0"], "no_such_module"),
        (["--policy", "walker"], "walker"),
        (["--env", "CartPole-v1"], "uint8 Box"),
        (["--max-episode-steps", "9"], "is a store with max_episode_steps None, not 9"),
        (["--env", DYING_ENV], "is a store with env_id tests.toy_env:tests/ToyMaze-v0, not"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    make_toy_store(tmp_path / "store", seeds=[0])
    given = {"--env": TOY_ENV, "--policy": "random", "--frames": "20", "--out": str(tmp_path / "store")}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    monkeypatch.setattr(sys, "argv", ["collect", *(text for pair in given.items() for text in pair)])
    monkeypatch.setattr(collect_module.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as exit_info:
        collect_module.main()
    assert exit_info.value.code == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert len(errors.strip().splitlines()) == 1
    assert open_store(tmp_path / "store").seeds() == [0]
