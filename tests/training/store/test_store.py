import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import zarr

from tests.toy_store import TOY_ENV, make_toy_store, toy_episode, toy_header
from training.store.episode_store import Episode, EpisodeWriter, StoreHeader, create_store, open_store

ARRAYS = ("frames", "actions", "rewards", "terminations", "truncations", "pose")


def assert_same(a: Episode, b: Episode) -> None:
    assert a.seed == b.seed
    assert a.attributes == b.attributes
    for name in ARRAYS:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def hidden_files(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def test_an_episode_comes_back_as_it_was_written(tmp_path: Path) -> None:
    episode = toy_episode(3, max_episode_steps=120)
    assert episode.truncations[-1]
    assert episode.attributes["layout"]

    store = create_store(tmp_path / "store", toy_header())
    assert EpisodeWriter(store).write(episode)

    assert_same(open_store(tmp_path / "store").read(3), episode)
    assert not hidden_files(tmp_path)


def test_frames_are_read_into_the_room_given(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[0])
    room = np.zeros((50, 16, 16, 3), np.uint8)
    episode = store.read(0, frames_out=room[4:45])
    np.testing.assert_array_equal(room[4:45], toy_episode(0).frames)
    assert np.shares_memory(episode.frames, room)
    assert not room[:4].any()
    assert not room[45:].any()


def test_continuous_actions_and_a_missing_pose_come_back(tmp_path: Path) -> None:
    actions = gym.spaces.Box(-1, 1, (2,), np.float32)
    store = create_store(tmp_path / "store", dataclasses.replace(toy_header(), action_space=actions))
    random_actions = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    episode = dataclasses.replace(toy_episode(0), actions=random_actions, pose=np.zeros((41, 0), np.float32))
    EpisodeWriter(store).write(episode)
    assert_same(open_store(tmp_path / "store").read(0), episode)


def test_the_header_comes_back(tmp_path: Path) -> None:
    header = dataclasses.replace(toy_header(), max_episode_steps=7, packages={"zarr": "3"})
    create_store(tmp_path / "store", header)
    read = open_store(tmp_path / "store").header
    assert read == header
    assert read.packages == {"zarr": "3"}


def test_any_zarr_reader_can_read_the_store(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[2])
    group = zarr.open_group(tmp_path / "store", mode="r")
    frames = group["train/episode_0000000002/frames"]
    assert isinstance(frames, zarr.Array)
    np.testing.assert_array_equal(np.asarray(frames[...]), toy_episode(2).frames)
    assert frames.shards is not None


def test_an_episode_is_never_written_twice(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[1])
    other = dataclasses.replace(toy_episode(2), seed=1)
    assert not EpisodeWriter(store).write(other)
    assert_same(store.read(1), toy_episode(1))
    assert store.seeds() == [1]
    assert not hidden_files(tmp_path)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[])

    def full_disk(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(OSError, match="No space left"):
        EpisodeWriter(store).write(toy_episode(0))
    assert store.seeds() == []
    assert not hidden_files(tmp_path)


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[0])
    writer = EpisodeWriter(store)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    left = tmp_path / "store/train" / f".writing-episode_0000000001-{host}-{dead.pid}.0"
    alive = tmp_path / "store/train" / f".writing-episode_0000000002-{host}-{os.getpid()}.0"
    for folder in (left, alive):
        shutil.copytree(tmp_path / "store/train/episode_0000000000", folder)
    assert writer.remove_abandoned() == 1
    assert not left.exists()
    assert alive.exists()
    assert store.seeds() == [0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("env_id", "other/Maze-v0"),
        ("policy", "navigator"),
        ("max_episode_steps", 9),
        ("action_space", gym.spaces.Discrete(5)),
        ("observation_space", gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)),
    ],
)
def test_a_store_is_not_continued_with_something_else(tmp_path: Path, name: str, value: object) -> None:
    make_toy_store(tmp_path / "store", seeds=[0])
    with pytest.raises(ValueError, match=f"is a store with {name}"):
        create_store(tmp_path / "store", dataclasses.replace(toy_header(), **{name: value}))


def test_the_module_in_an_id_makes_no_other_environment(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[0])
    header = dataclasses.replace(toy_header(), env_id=TOY_ENV.rpartition(":")[2])
    assert create_store(tmp_path / "store", header).seeds() == [0]


def test_a_path_without_a_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no episode store"):
        open_store(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="not an episode store"):
        create_store(tmp_path / "folder", toy_header())
    zarr.create_group(tmp_path / "group")
    with pytest.raises(ValueError, match="not an episode store"):
        open_store(tmp_path / "group")


def test_a_newer_format_is_an_error(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[0])
    zarr.open_group(tmp_path / "store", mode="r+").attrs["version"] = 2
    with pytest.raises(ValueError, match="version 2 of the store format"):
        open_store(tmp_path / "store")


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[0])
    metadata = tmp_path / "store" / "zarr.json"
    description = json.loads(metadata.read_text())
    del description["attributes"]["observation_space"]
    metadata.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"zarr\.json are damaged"):
        open_store(tmp_path / "store")
    metadata.write_text(metadata.read_text()[:100])
    with pytest.raises(ValueError, match=r"zarr\.json is damaged"):
        open_store(tmp_path / "store")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"1234")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, grow, Path.unlink])
@pytest.mark.parametrize("name", ["frames/c/0/0/0/0", "rewards/c/0", "frames/zarr.json", "zarr.json"])
def test_damage_names_file_and_episode(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[4])
    damage(tmp_path / "store/train/episode_0000000004" / name)
    part = name.partition("/")[0]
    with pytest.raises(ValueError, match=rf"episode_0000000004 is damaged \({part}:"):
        store.read(4)


def test_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    writer = EpisodeWriter(create_store(tmp_path / "store", toy_header()))
    good = toy_episode(0)
    for name, value in {
        "frames": good.frames[:, :8],
        "actions": good.actions[:-1],
        "rewards": good.rewards.astype(np.float64),
        "pose": good.pose[:-1],
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            writer.write(dataclasses.replace(good, **{name: value}))
    with pytest.raises(ValueError, match="actions must be from 0 to 2"):
        writer.write(dataclasses.replace(good, actions=good.actions + 1))
    assert not list((tmp_path / "store/train").glob("*episode*"))


def test_evaluation_mazes_and_training_mazes_do_not_mix(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", toy_header())
    with pytest.raises(ValueError, match="for evaluation only"):
        EpisodeWriter(store).write(dataclasses.replace(toy_episode(0), seed=7_000_000))
    with pytest.raises(ValueError, match="never trained on"):
        EpisodeWriter(store, "test").write(dataclasses.replace(toy_episode(0), seed=6_999_999))
    assert EpisodeWriter(store, "test").write(dataclasses.replace(toy_episode(0), seed=7_000_000))
    assert (store.seeds("train"), store.seeds("test")) == ([], [7_000_000])


def test_unknown_names_are_errors(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[0])
    with pytest.raises(ValueError, match="A split is one of"):
        store.seeds("validation")
    with pytest.raises(FileNotFoundError, match="no episode of seed 9"):
        store.read(9)


def test_spaces_that_a_store_cannot_hold_are_refused() -> None:
    good = toy_header()
    with pytest.raises(ValueError, match="uint8 Box"):
        StoreHeader("x", gym.spaces.Box(0, 1, (8,), np.float32), good.action_space, "random")
    with pytest.raises(ValueError, match="Discrete"):
        StoreHeader("x", good.observation_space, gym.spaces.MultiBinary(3), "random")
