"""Episodes of a real environment in a Zarr v3 store.

    PATH/                            group; attributes: `StoreHeader`, format name and version
        train/                       group; one per split, see `SPLITS`
            episode_0000000017/      group; attributes: seed, num_frames and whatever the writer adds
                frames               uint8 [T+1, H, W, C], one shard, chunks of 50 frames, zstd (lossless)
                actions              int64 [T] or float32 [T, A]
                rewards              float32 [T]
                terminations         bool [T]
                truncations          bool [T]
                pose                 float32 [T+1, P]; absent if P = 0

An episode is written under a temporary name and renamed, so an `episode_...` group is always complete, and any number
of processes may write at the same time.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import NDBuffer
from zarr.codecs import ZstdCodec

from training.episode import FIRST_EVALUATION_SEED, SPLITS, Episode, StoreHeader, check_episode, check_seed
from wm_gym.spaces import space_from_json, space_to_json

__all__ = [
    "FIRST_EVALUATION_SEED",
    "SPLITS",
    "Episode",
    "EpisodeStore",
    "EpisodeWriter",
    "StoreHeader",
    "check_seed",
    "create_store",
    "open_store",
]

FORMAT_NAME = "wm-gym-episodes"
FORMAT_VERSION = 1
FRAMES_PER_CHUNK = 50
# Level 3 needs 3.5 kB for a 64x64 frame of Memory Maze at 15,000 frames/s; level 6 saves 9% and takes twice the time.
COMPRESSOR = ZstdCodec(level=3, checksum=True)
ABANDONED_AFTER_SECONDS = 3600.0

_EPISODE_NAME = re.compile(r"episode_(\d{10})")
_TEMPORARY_NAME = re.compile(r"\.writing-episode_\d{10}-(?P<host>.+)-(?P<pid>\d+)")
_ARRAYS = ("frames", "actions", "rewards", "terminations", "truncations")
# What zarr, its codecs and json raise on files that are not what they should be.
_DAMAGE = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class EpisodeStore:
    """An existing store; made by `create_store` and `open_store`."""

    def __init__(self, path: Path, header: StoreHeader) -> None:
        self.path = path
        self.header = header

    def split_path(self, split: str) -> Path:
        if split not in SPLITS:
            raise ValueError(f"A split is one of {', '.join(SPLITS)}, got {split!r}.")
        return self.path / split

    def seeds(self, split: str = "train") -> list[int]:
        """Seeds of the complete episodes of a split, ascending; empty if nothing of it was recorded."""
        folder = self.split_path(split)
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _EPISODE_NAME.fullmatch(name)))

    def num_frames(self, seed: int, split: str = "train") -> int:
        """Frames of an episode (transitions + 1), from its attributes. Raises ValueError if these are damaged."""
        path = self.split_path(split) / _episode_name(seed)
        with _damage_as_value_error(path):
            return _read_attributes(path)["num_frames"]

    def read(self, seed: int, split: str = "train", frames_out: np.ndarray | None = None) -> Episode:
        """Reads one episode; may be called from several threads.

        Args:
            seed, split: which one.
            frames_out: contiguous uint8 [T+1, H, W, C] that receives the frames; None allocates.

        Raises:
            FileNotFoundError: no such episode.
            ValueError: it is damaged, or does not have the shapes and types that the header promises.
        """
        path = self.split_path(split) / _episode_name(seed)
        if not path.is_dir():
            raise FileNotFoundError(f"{self.path} has no episode of seed {seed} in split {split!r}.")
        with _damage_as_value_error(path):
            attributes = _read_attributes(path)
            recorded_seed, num_frames = attributes.pop("seed"), attributes.pop("num_frames")
            arrays = {name: _read_array(path / name, frames_out if name == "frames" else None) for name in _ARRAYS}
            has_pose = (path / "pose").is_dir()
            pose = _read_array(path / "pose") if has_pose else np.zeros((num_frames, 0), np.float32)
            episode = Episode(recorded_seed, **arrays, pose=pose, attributes=attributes)
            if recorded_seed != seed or episode.num_frames != num_frames:
                raise ValueError(f"zarr.json: it says seed {recorded_seed} and {num_frames} frames")
            check_episode(episode, self.header)
        return episode


class EpisodeWriter:
    """Adds episodes to one split of a store, each atomically. Raises ValueError for an unknown split."""

    def __init__(self, store: EpisodeStore, split: str = "train") -> None:
        self._header = store.header
        self._split = split
        self._folder = store.split_path(split)
        zarr.open_group(self._folder, mode="a")

    def write(self, episode: Episode) -> bool:
        """Writes an episode; False, and nothing is changed, if the store already has one of this seed.

        Raises:
            ValueError: shapes or types that do not fit the header, or a seed that is kept for another split.
        """
        check_seed(episode.seed, self._split)
        check_episode(episode, self._header)
        target = self._folder / _episode_name(episode.seed)
        temporary = self._folder / f".writing-{target.name}-{socket.gethostname()}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _write_arrays(temporary, episode)
            return _rename_if_new(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove_abandoned(self) -> int:
        """Removes what writers left that died in the middle of an episode; returns the number of such folders.

        A writer counts as dead if its process is gone from this host, or if its folder is older than an hour: to write
        an episode takes a second.
        """
        removed = 0
        for folder in self._folder.glob(".writing-*"):
            match = _TEMPORARY_NAME.fullmatch(folder.name)
            dead = match is not None and match["host"] == socket.gethostname() and not _is_alive(int(match["pid"]))
            if dead or _age_seconds(folder) > ABANDONED_AFTER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed


def create_store(path: str | Path, header: StoreHeader) -> EpisodeStore:
    """Makes an empty store, or opens the one that is there if it has the same header (package versions aside).

    Raises:
        ValueError: something else is at `path`: a store of another environment or policy, or no store at all.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        return _open_same(path, header)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        zarr.create_group(temporary, attributes=_header_to_json(header))
        _rename_if_new(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _open_same(path, header)


def open_store(path: str | Path) -> EpisodeStore:
    """Opens an existing store for reading and writing.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no episode store, a damaged one, or one of a newer format.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no episode store at {path}; `python -m training.collect` makes one.")
    try:
        attributes = dict(zarr.open_group(path, mode="r").attrs)
    except _DAMAGE as error:
        raise ValueError(f"{path} is not an episode store, or its zarr.json is damaged ({error}).") from error
    if attributes.get("format") != FORMAT_NAME:
        raise ValueError(f"{path} is a Zarr group, but not an episode store.")
    if attributes.get("version") != FORMAT_VERSION:
        version = attributes.get("version")
        raise ValueError(f"{path} has version {version!r} of the store format, this code reads {FORMAT_VERSION}.")
    try:
        return EpisodeStore(path, _header_from_json(attributes))
    except _DAMAGE as error:
        raise ValueError(f"The attributes in {path / 'zarr.json'} are damaged ({error}).") from error


def _open_same(path: Path, header: StoreHeader) -> EpisodeStore:
    store = open_store(path)
    for name in ("env_id", "observation_space", "action_space", "policy", "max_episode_steps"):
        theirs, ours = getattr(store.header, name), getattr(header, name)
        if not (store.header.is_of(ours) if name == "env_id" else theirs == ours):
            raise ValueError(f"{path} is a store with {name} {theirs}, not {ours}; choose another path.")
    return store


def _header_to_json(header: StoreHeader) -> dict[str, Any]:
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "env_id": header.env_id,
        "observation_space": space_to_json(header.observation_space),
        "action_space": space_to_json(header.action_space),
        "policy": header.policy,
        "max_episode_steps": header.max_episode_steps,
        "packages": header.packages,
    }


def _header_from_json(attributes: dict[str, Any]) -> StoreHeader:
    return StoreHeader(
        env_id=attributes["env_id"],
        observation_space=space_from_json(attributes["observation_space"]),
        action_space=space_from_json(attributes["action_space"]),
        policy=attributes["policy"],
        max_episode_steps=attributes["max_episode_steps"],
        packages=attributes["packages"],
    )


def _write_arrays(path: Path, episode: Episode) -> None:
    attributes = {**episode.attributes, "seed": int(episode.seed), "num_frames": episode.num_frames}
    group = zarr.create_group(path, attributes=attributes)
    num_chunks = -(-episode.num_frames // FRAMES_PER_CHUNK)
    for name in (*_ARRAYS, "pose"):
        data = np.ascontiguousarray(getattr(episode, name))
        if data.size == 0:
            continue
        sharded = name == "frames"
        array = group.create_array(
            name,
            shape=data.shape,
            dtype=data.dtype,
            chunks=(FRAMES_PER_CHUNK, *data.shape[1:]) if sharded else data.shape,
            shards=(num_chunks * FRAMES_PER_CHUNK, *data.shape[1:]) if sharded else None,
            compressors=COMPRESSOR,
            # All-zero chunks too, so that a file that is not there is damage.
            config={"write_empty_chunks": True},
        )
        array[...] = data


def _read_attributes(path: Path) -> dict[str, Any]:
    """Attributes of an episode, at least its seed and num_frames; ValueError names the file if it is damaged."""
    try:
        attributes = dict(zarr.open_group(path, mode="r").attrs)
        if not all(isinstance(attributes[name], int) for name in ("seed", "num_frames")):
            raise TypeError("seed and num_frames must be integers")
        return attributes
    except _DAMAGE as error:
        raise ValueError(f"zarr.json: {error}") from error


def _read_array(path: Path, out: np.ndarray | None = None) -> np.ndarray:
    """Raises ValueError that names the array, whatever is wrong with its files."""
    try:
        array = zarr.open_array(path, mode="r")
        # zarr would read a missing file as zeros. Each array is one chunk or one shard.
        chunk = path / array.metadata.encode_chunk_key((0,) * array.ndim)
        if not chunk.is_file():
            raise FileNotFoundError(f"{chunk} is missing")
        if out is None:
            return np.asarray(array[...])
        if out.shape != array.shape or out.dtype != array.dtype:
            raise ValueError(f"it is {array.dtype} {array.shape}, room was made for {out.dtype} {out.shape}")
        array.get_basic_selection(out=NDBuffer.from_numpy_array(out))
        return out
    except _DAMAGE as error:
        raise ValueError(f"{path.name}: {error}") from error


@contextmanager
def _damage_as_value_error(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"Episode {path} is damaged ({error}); delete this folder and collect again.") from error


def _rename_if_new(source: Path, target: Path) -> bool:
    """os.rename of a folder; False if a folder that is not empty has the name already."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


def _episode_name(seed: int) -> str:
    return f"episode_{seed:010d}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _age_seconds(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
