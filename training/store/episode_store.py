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
of processes may write at the same time: of two with the same seed the first one stays.

`python -m training.store info|validate|merge|split|export|import` are in training/store/__main__.py.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from training.store.episode import SPLITS, Episode, StoreHeader, check_episode, check_seed
from training.store.episode_files import (
    ARRAYS,
    DAMAGE,
    EPISODE_NAME,
    damage_as_value_error,
    episode_name,
    is_abandoned,
    naming,
    read_all_frames,
    read_array,
    read_attributes,
    rename_if_new,
    temporary_name,
    write_arrays,
)
from training.store.frame_reader import FrameReader
from wm_gym.spaces import space_from_json, space_to_json

__all__ = [
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
MAX_OPEN_READERS = 4096
_SPACES = ("observation_space", "action_space")


class EpisodeStore:
    """An existing store; made by `create_store` and `open_store`."""

    def __init__(self, path: Path, header: StoreHeader) -> None:
        self.path = path
        self.header = header
        self._readers: dict[Path, FrameReader] = {}

    def split_path(self, split: str) -> Path:
        """The folder of a split."""
        if split not in SPLITS:
            raise ValueError(f"A split is one of {', '.join(SPLITS)}, got {split!r}.")
        return self.path / split

    def episode_path(self, seed: int, split: str = "train") -> Path:
        """The folder of an episode."""
        return self.split_path(split) / episode_name(seed)

    def seeds(self, split: str = "train") -> list[int]:
        """Seeds of the complete episodes of a split, ascending; empty if nothing of it was recorded."""
        folder = self.split_path(split)
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := EPISODE_NAME.fullmatch(name)))

    def num_frames(self, seed: int, split: str = "train") -> int:
        """Frames of an episode (transitions + 1), from its attributes. Raises ValueError if these are damaged."""
        path = self.episode_path(seed, split)
        with damage_as_value_error(path):
            return read_attributes(path)["num_frames"]

    def read(self, seed: int, split: str = "train", frames_out: np.ndarray | None = None) -> Episode:
        """Reads one episode; may be called from several threads.

        Args:
            seed, split: which one.
            frames_out: contiguous uint8 [T+1, H, W, C] that receives the frames; None allocates.

        Raises:
            FileNotFoundError: no such episode.
            ValueError: it is damaged, or does not have the shapes and types that the header promises.
        """
        path = self._existing_path(seed, split)
        with damage_as_value_error(path):
            attributes = read_attributes(path)
            recorded_seed, num_frames = attributes.pop("seed"), attributes.pop("num_frames")
            frames = read_all_frames(path / "frames", frames_out)
            arrays = {name: read_array(path / name) for name in ARRAYS if name != "frames"}
            has_pose = (path / "pose").is_dir()
            pose = read_array(path / "pose") if has_pose else np.zeros((num_frames, 0), np.float32)
            episode = Episode(recorded_seed, frames, **arrays, pose=pose, attributes=attributes)
            if recorded_seed != seed or episode.num_frames != num_frames:
                raise ValueError(f"zarr.json: it says seed {recorded_seed} and {num_frames} frames")
            check_episode(episode, self.header)
        return episode

    def read_frames(
        self, seed: int, start: int, stop: int, split: str = "train", out: np.ndarray | None = None
    ) -> np.ndarray:
        """Frames [start, stop) of one episode, uint8 [stop - start, H, W, C]; may be called from several threads.

        Only the chunks that hold them are read and checked. What the first call for an episode learns of its files is
        kept for the next.

        Args:
            seed, split: which episode.
            start, stop: 0 <= start <= stop <= number of frames.
            out: contiguous uint8 array of the result's shape that receives it; None allocates.

        Raises:
            FileNotFoundError: no such episode.
            ValueError: it is damaged or shorter, or `out` does not fit.
        """
        path = self._existing_path(seed, split)
        with damage_as_value_error(path), naming("frames"):
            reader = self._readers.get(path)
            if reader is None or not reader.is_current:
                if len(self._readers) >= MAX_OPEN_READERS:
                    self._readers.clear()
                reader = self._readers[path] = FrameReader(path / "frames")
                if reader.shape[1:] != self.header.frame_shape or reader.dtype != np.uint8:
                    raise ValueError(f"they are {reader.dtype} {reader.shape}")
            num_frames = reader.shape[0]
            if 0 <= start <= stop <= num_frames:
                return reader.read(start, stop, out)
        raise ValueError(f"Episode {path} has frames 0 to {num_frames}, asked for {start} to {stop}.")

    def attributes(self, seed: int, split: str = "train") -> dict[str, Any]:
        """What the writer added to an episode. Raises as `read`."""
        path = self._existing_path(seed, split)
        with damage_as_value_error(path):
            attributes = read_attributes(path)
        return {name: value for name, value in attributes.items() if name not in ("seed", "num_frames")}

    def read_rewards(self, seed: int, split: str = "train") -> np.ndarray:
        """float32 [T], without reading the rest of the episode. Raises as `read`."""
        path = self._existing_path(seed, split)
        with damage_as_value_error(path):
            return read_array(path / "rewards")

    def read_actions(self, seed: int, split: str = "train") -> np.ndarray:
        """int64 [T] or float32 [T, A], without reading the rest of the episode. Raises as `read`."""
        path = self._existing_path(seed, split)
        with damage_as_value_error(path):
            return read_array(path / "actions")

    def _existing_path(self, seed: int, split: str) -> Path:
        path = self.episode_path(seed, split)
        if not path.is_dir():
            raise FileNotFoundError(f"{self.path} has no episode of seed {seed} in split {split!r}.")
        return path


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
        with self._temporary(episode.seed) as temporary:
            write_arrays(temporary, episode)
            return rename_if_new(temporary, self._folder / episode_name(episode.seed))

    def copy(self, source: EpisodeStore, seed: int, split: str) -> bool:
        """Copies the files of another store's episode; False, and nothing is changed, if one of this seed is there.

        Raises ValueError if it is damaged, does not fit the header or has a seed that is kept for another split.
        """
        check_seed(seed, self._split)
        check_episode(source.read(seed, split), self._header)
        with self._temporary(seed) as temporary:
            shutil.copytree(source.episode_path(seed, split), temporary)
            return rename_if_new(temporary, self._folder / episode_name(seed))

    @contextmanager
    def _temporary(self, seed: int) -> Iterator[Path]:
        """A name for an episode that is being written; what has it afterwards is removed."""
        path = self._folder / temporary_name(seed)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def remove_abandoned(self) -> int:
        """Removes what writers left that died in the middle of an episode; returns the number of such folders.

        A writer counts as dead if its process is gone from this host, or if its folder is older than an hour: to write
        an episode takes a second.
        """
        removed = 0
        for folder in self._folder.glob(".writing-*"):
            if is_abandoned(folder):
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
        zarr.create_group(temporary, attributes=header_to_json(header))
        rename_if_new(temporary, path)
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
    except DAMAGE as error:
        raise ValueError(f"{path} is not an episode store, or its zarr.json is damaged ({error}).") from error
    if attributes.get("format") != FORMAT_NAME:
        raise ValueError(f"{path} is a Zarr group, but not an episode store.")
    if attributes.get("version") != FORMAT_VERSION:
        version = attributes.get("version")
        raise ValueError(
            f"{path} has version {version!r} of the store format, this code reads {FORMAT_VERSION}; update wm-gym."
        )
    try:
        return EpisodeStore(path, header_from_json(attributes))
    except DAMAGE as error:
        raise ValueError(f"The attributes in {path / 'zarr.json'} are damaged ({error}).") from error


def _open_same(path: Path, header: StoreHeader) -> EpisodeStore:
    store = open_store(path)
    for name in (field.name for field in dataclasses.fields(StoreHeader) if field.compare):
        theirs, ours = getattr(store.header, name), getattr(header, name)
        if not (store.header.is_of(ours) if name == "env_id" else theirs == ours):
            raise ValueError(f"{path} is a store with {name} {theirs}, not {ours}; choose another path.")
    return store


def header_to_json(header: StoreHeader) -> dict[str, Any]:
    """Format, version and every field of the header, as JSON types."""
    values = {field.name: getattr(header, field.name) for field in dataclasses.fields(header)}
    values |= {name: space_to_json(values[name]) for name in _SPACES}
    return {"format": FORMAT_NAME, "version": FORMAT_VERSION, **values}


def header_from_json(attributes: dict[str, Any]) -> StoreHeader:
    """The inverse of `header_to_json`; a field with a default may be missing, as in stores from before it was there."""
    names = [field.name for field in dataclasses.fields(StoreHeader) if field.name in attributes]
    values: dict[str, Any] = {name: attributes[name] for name in names}
    values.update({name: space_from_json(attributes[name]) for name in _SPACES})
    return StoreHeader(**values)
