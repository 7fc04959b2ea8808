"""How one episode lies on the disk: arrays, attributes, names, and what a dead writer leaves behind."""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from training.store.episode import Episode
from training.store.frame_reader import FrameReader

FRAMES_PER_CHUNK = 50
# Level 3 needs 3.5 kB for a 64x64 frame of Memory Maze at 15,000 frames/s; level 6 saves 9% and takes twice the time.
COMPRESSOR = ZstdCodec(level=3, checksum=True)
ABANDONED_AFTER_SECONDS = 3600.0

CLAIMS_NAME = ".claims"  # see training.recording.schedule.Claims
EPISODE_NAME = re.compile(r"episode_(\d{10})")
_TEMPORARY_NAME = re.compile(r"\.writing-episode_\d{10}-(?P<host>.+)-(?P<pid>\d+)\.\d+")
_numbers = itertools.count()
ARRAYS = ("frames", "actions", "rewards", "terminations", "truncations")
# What zarr, its codecs and json raise on files that are not what they should be.
DAMAGE = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def write_arrays(path: Path, episode: Episode) -> None:
    """Writes the arrays and attributes of an episode into the folder `path`."""
    attributes = {**episode.attributes, "seed": int(episode.seed), "num_frames": episode.num_frames}
    group = zarr.create_group(path, attributes=attributes)
    num_chunks = -(-episode.num_frames // FRAMES_PER_CHUNK)
    for name in (*ARRAYS, "pose"):
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


def read_attributes(path: Path) -> dict[str, Any]:
    """Attributes of an episode, at least its seed and num_frames; ValueError names the file if it is damaged."""
    try:
        attributes = dict(zarr.open_group(path, mode="r").attrs)
        if not all(isinstance(attributes[name], int) for name in ("seed", "num_frames")):
            raise TypeError("seed and num_frames must be integers")
        return attributes
    except DAMAGE as error:
        raise ValueError(f"zarr.json: {error}") from error


def read_array(path: Path) -> np.ndarray:
    """Raises ValueError that names the array, whatever is wrong with its files."""
    with naming(path.name):
        array = zarr.open_array(path, mode="r")
        # zarr would read a missing file as zeros. Each array is one chunk.
        chunk = path / array.metadata.encode_chunk_key((0,) * array.ndim)
        if not chunk.is_file():
            raise FileNotFoundError(f"{chunk} is missing")
        return np.asarray(array[...])


def read_all_frames(path: Path, out: np.ndarray | None) -> np.ndarray:
    """All frames of an array, uint8 ``[T, H, W, C]``, in `out` if it is given; ValueError names a damaged file."""
    with naming(path.name):
        reader = FrameReader(path)
        return reader.read(0, reader.shape[0], out)


@contextmanager
def naming(array: str) -> Iterator[None]:
    """Makes of whatever a damaged file raises a ValueError that names the array."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{array}: {error}") from error


@contextmanager
def damage_as_value_error(path: Path) -> Iterator[None]:
    """Makes of whatever a damaged episode raises a ValueError that says what to do."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"Episode {path} is damaged ({error}); delete this folder and collect again.") from error


def rename_if_new(source: Path, target: Path) -> bool:
    """os.rename of a folder; False if a folder that is not empty has the name already."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


def episode_name(seed: int) -> str:
    """The name of the folder of a seed's episode."""
    return f"episode_{seed:010d}"


def temporary_name(seed: int) -> str:
    """A name that no other writer of any process has."""
    return f".writing-{episode_name(seed)}-{socket.gethostname()}-{os.getpid()}.{next(_numbers)}"


def is_abandoned(folder: Path) -> bool:
    """Whether the writer of a temporary folder is dead, see `EpisodeWriter.remove_abandoned`."""
    match = _TEMPORARY_NAME.fullmatch(folder.name)
    dead = match is not None and match["host"] == socket.gethostname() and not _is_alive(int(match["pid"]))
    return dead or _age_seconds(folder) > ABANDONED_AFTER_SECONDS


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
