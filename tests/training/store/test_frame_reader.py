"""Windows of frames read without zarr are the bytes that zarr reads."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from tests.toy_store import make_toy_store, toy_episode, toy_header
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store, open_store
from training.store.frame_reader import FrameReader

NUM_FRAMES = 131  # in three chunks of 50, the last one not full


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return make_toy_store(tmp_path / "store", seeds=[3], max_episode_steps=NUM_FRAMES - 1)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 131), (0, 1), (49, 51), (50, 100), (7, 123), (100, 131), (130, 131), (60, 60)]
)
def test_a_window_is_what_zarr_reads(store: EpisodeStore, start: int, stop: int) -> None:
    array = zarr.open_array(store.episode_path(3) / "frames", mode="r")
    expected = np.asarray(array[start:stop])
    np.testing.assert_array_equal(store.read_frames(3, start, stop), expected)
    room = np.full((stop - start + 2, 16, 16, 3), 77, np.uint8)
    store.read_frames(3, start, stop, out=room[1:-1])
    np.testing.assert_array_equal(room[1:-1], expected)
    assert (room[[0, -1]] == 77).all()


@pytest.mark.parametrize(
    "layout",
    [
        {"chunks": (50, 16, 16, 3), "compressors": ZstdCodec()},
        {"chunks": (50, 16, 16, 3), "shards": (150, 16, 16, 3), "compressors": BloscCodec()},
        {"chunks": (50, 8, 16, 3), "shards": (150, 16, 16, 3), "compressors": ZstdCodec()},
        {"chunks": (50, 16, 16, 3), "shards": (100, 16, 16, 3), "compressors": ZstdCodec()},
        {"chunks": (20, 16, 16, 3), "shards": (140, 16, 16, 3), "compressors": ZstdCodec()},
    ],
)
def test_frames_of_any_zarr_layout_are_read(tmp_path: Path, layout: dict) -> None:
    frames = toy_episode(3, NUM_FRAMES - 1).frames
    array = zarr.create_array(tmp_path / "frames", shape=frames.shape, dtype=frames.dtype, **layout)
    array[...] = frames
    np.testing.assert_array_equal(FrameReader(tmp_path / "frames").read(33, 120), frames[33:120])


def test_several_threads_read_one_store(store: EpisodeStore) -> None:
    frames = store.read(3).frames
    with ThreadPoolExecutor(4) as pool:
        windows = pool.map(lambda start: store.read_frames(3, start, start + 30), range(100))
        assert all((window == frames[start : start + 30]).all() for start, window in enumerate(windows))


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (100, 132)])
def test_a_window_outside_the_episode_is_an_error(store: EpisodeStore, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="has frames 0 to 131, asked for"):
        store.read_frames(3, start, stop)


def test_room_that_does_not_fit_is_an_error(store: EpisodeStore) -> None:
    for room in (np.zeros((9, 16, 16, 3), np.uint8), np.zeros((10, 16, 16, 3), np.float32)):
        with pytest.raises(ValueError, match="room was made for"):
            store.read_frames(3, 0, 10, out=room)


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, 200),
        lambda file: flip(file, -1),
        lambda file: flip(file, -30),
        lambda file: file.write_bytes(file.read_bytes()[:-7]),
        lambda file: file.write_bytes(b""),
        Path.unlink,
    ],
)
def test_a_damaged_shard_names_file_and_episode(store: EpisodeStore, damage: Callable[[Path], object]) -> None:
    damage(store.episode_path(3) / "frames/c/0/0/0/0")
    with pytest.raises(ValueError, match=r"episode_0000000003 is damaged \(frames:"):
        store.read_frames(3, 0, 20)


def test_damage_elsewhere_leaves_other_windows_readable(store: EpisodeStore) -> None:
    frames = store.read(3).frames
    flip(store.episode_path(3) / "frames/c/0/0/0/0", 200)
    np.testing.assert_array_equal(store.read_frames(3, 50, 131), frames[50:])


def test_an_episode_that_was_collected_again_is_read_anew(tmp_path: Path, store: EpisodeStore) -> None:
    store.read_frames(3, 0, 20)
    shutil.rmtree(store.episode_path(3))
    with pytest.raises(FileNotFoundError, match="no episode of seed 3"):
        store.read_frames(3, 0, 20)
    other = dataclasses.replace(toy_episode(4, 90), seed=3)
    EpisodeWriter(store).write(other)
    np.testing.assert_array_equal(store.read_frames(3, 0, 91), other.frames)


def test_frames_of_another_shape_than_the_header_s_are_damage(tmp_path: Path) -> None:
    path = make_toy_store(tmp_path / "store", seeds=[0]).path
    array = zarr.create_array(path / "train/episode_0000000000/frames", shape=(9, 4, 4, 3), dtype="u1", overwrite=True)
    array[...] = 1
    with pytest.raises(ValueError, match=r"is damaged \(frames: they are uint8"):
        open_store(path).read_frames(0, 0, 5)


def test_an_empty_store_has_no_window(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no episode of seed 0"):
        create_store(tmp_path / "store", toy_header()).read_frames(0, 0, 1)
