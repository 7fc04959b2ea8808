"""What all formats share: the result of an export, how exact its frames are, folders that appear when whole."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.store.episode import SPLITS, Episode
from training.store.episode_store import EpisodeStore
from wm_gym.seeds import FIRST_EVALUATION_SEED

METADATA_FILE = "wm_gym.json"


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote, and how its frames, decoded again, compare with the store's."""

    path: Path
    num_episodes: int
    num_frames: int
    num_bytes: int
    psnr: float  # dB, over all pixels together; infinite if every bit is the same
    left_out: str = ""  # what the format has no place for

    @property
    def lossless(self) -> bool:
        """Whether every frame was written as it is."""
        return math.isinf(self.psnr)

    def __str__(self) -> str:
        frames = "frames are lossless" if self.lossless else f"frames are LOSSY, {self.psnr:.1f} dB PSNR"
        missing = f"; left out: {self.left_out}" if self.left_out else ""
        return (
            f"{self.path}: {self.num_frames:,} frames in {self.num_episodes:,} episodes, "
            f"{self.num_bytes / max(1, self.num_frames):,.0f} bytes a frame; {frames}{missing}."
        )


class SquaredError:
    """Gathers the squared error between frames and what a decoder made of them."""

    def __init__(self) -> None:
        self._sum = 0
        self._count = 0

    def add(self, frames: np.ndarray, decoded: np.ndarray) -> None:
        """uint8 arrays of one shape. Raises RuntimeError if the shapes differ: the decoder lost frames."""
        if frames.shape != decoded.shape:
            raise RuntimeError(f"Frames {list(frames.shape)} came back from the encoder as {list(decoded.shape)}.")
        if not np.array_equal(frames, decoded):
            self._sum += int(np.square(frames.astype(np.int32) - decoded).sum(dtype=np.int64))
        self._count += frames.size

    @property
    def psnr(self) -> float:
        """10 log10(255^2 / MSE) in dB; infinite without any error."""
        return 10 * math.log10(255**2 * self._count / self._sum) if self._sum else math.inf


def episodes_of(store: EpisodeStore) -> Iterator[tuple[str, Episode]]:
    """Every episode with its split, by split and seed. Raises ValueError for a damaged one."""
    for split in SPLITS:
        for seed in store.seeds(split):
            yield split, store.read(seed, split)


def accuracy_to_json(psnr: float) -> dict[str, Any]:
    """What the metadata of a format say about its frames."""
    return {"lossless": math.isinf(psnr), "psnr_db": None if math.isinf(psnr) else round(psnr, 3)}


def with_accuracy(attributes: dict[str, Any], source: str, accuracy: dict[str, Any]) -> dict[str, Any]:
    """Attributes for an imported episode, which say so if its frames are not the original ones."""
    return attributes if accuracy.get("lossless") else {**attributes, "lossy_source": {"format": source, **accuracy}}


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which gets the name `path` when the block ends well and vanishes when it does not.

    Raises ValueError if something is at `path` already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists already; choose another path or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def first_seed_of(split: str) -> int:
    """The first seed that a split allows."""
    return 0 if split == "train" else FIRST_EVALUATION_SEED


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
