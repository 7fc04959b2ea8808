"""What a comparison saw in one episode, and the folder that keeps it so that a run can be taken up again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from wm_gym.files import atomic_path, write_json

# Entries of info that draw the map: see `MemoryMazeEnv`.
MAP_ENTRIES = ("pose", "layout", "targets", "target_index", "target_color")
STATIC_ENTRIES = ("layout", "targets")


@dataclass(frozen=True)
class Record:
    """One episode of both sides: C context frames, then S steps under the same actions.

    S is smaller than asked for if an episode ended before; `end` and `reference_end` say which and how.
    """

    seed: int
    reference_frames: np.ndarray  # uint8 [C + S, H, W, 3]; real, or of the side that is compared against
    frames: np.ndarray  # uint8 [S, H, W, 3]; of the environment under test
    actions: np.ndarray  # [C + S - 1] or [C + S - 1, A]; actions[t] leads from reference frame t to t + 1
    reference_rewards: np.ndarray  # float64 [S]
    rewards: np.ndarray  # float64 [S]
    reference_end: str  # "terminated" or "truncated" at step S, else ""
    end: str
    seconds: float  # that the environment under test took for its S steps, its share of the batch
    reference_seconds: float
    hardware: str = "unknown"  # where it was played
    map: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # `MAP_ENTRIES` that the reference told, pose as [C + S, 4]

    @property
    def num_steps(self) -> int:
        """Steps of the episode after the context."""
        return len(self.frames)

    @property
    def num_context_frames(self) -> int:
        """Frames of the context."""
        return len(self.reference_frames) - len(self.frames)


def map_entries(infos: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What the infos of C + S frames tell for a map: `layout` and `targets` once, the others for each frame.

    Empty unless there are a layout [n, n] and a pose (grid_x, grid_y, heading_x, heading_y) for every frame.
    """
    if not all("pose" in info for info in infos) or "layout" not in infos[-1]:
        return {}
    if np.shape(infos[-1]["pose"]) != (4,) or np.ndim(infos[-1]["layout"]) != 2:
        return {}
    entries = {}
    for name in MAP_ENTRIES:
        if all(name in info for info in infos):
            values = infos[-1][name] if name in STATIC_ENTRIES else [info[name] for info in infos]
            entries[name] = np.asarray(values)
    return entries


class RecordFolder:
    """Finished episodes under OUT/episodes, one file each, and the settings that they were made with.

    Args:
        path: the folder of the whole comparison.
        settings: JSON types; everything that decides what an episode looks like.

    Raises:
        ValueError: the folder holds episodes of other settings, or is no comparison at all.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path / "episodes"
        self._settings_file = self._path / "settings.json"
        self._settings = json.loads(json.dumps(settings))
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; --out takes a folder.")
        if self._settings_file.is_file():
            _check_same(path, json.loads(self._settings_file.read_text()), self._settings)

    def has(self, seed: int) -> bool:
        """Whether the episode of this seed is finished."""
        return self._file(seed).is_file()

    def write(self, record: Record) -> None:
        """Keeps an episode, atomically."""
        if not self._settings_file.is_file():
            write_json(self._settings_file, self._settings)
        scalars = {name: getattr(record, name) for name in _SCALARS}
        arrays: dict[str, Any] = {name: getattr(record, name) for name in _ARRAYS}
        maps: dict[str, Any] = {f"map_{name}": array for name, array in record.map.items()}
        with atomic_path(self._file(record.seed)) as temporary:
            np.savez_compressed(temporary, scalars=json.dumps(scalars), **arrays, **maps)

    def read(self, seed: int) -> Record:
        """A finished episode. Raises ValueError if its file is damaged."""
        path = self._file(seed)
        try:
            with np.load(path, allow_pickle=False) as file:
                maps = {name[4:]: file[name] for name in file.files if name.startswith("map_")}
                return Record(**json.loads(str(file["scalars"])), **{name: file[name] for name in _ARRAYS}, map=maps)
        except (KeyError, ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged; remove it, and its episode is played again ({error}).") from error

    def _file(self, seed: int) -> Path:
        return self._path / f"{seed:010d}.npz"


_SCALARS = ("seed", "reference_end", "end", "seconds", "reference_seconds", "hardware")
_ARRAYS = tuple(entry.name for entry in fields(Record) if entry.name not in (*_SCALARS, "map"))


def _check_same(path: Path, there: dict[str, Any], given: dict[str, Any]) -> None:
    for name in sorted({*there, *given}):
        if there.get(name) != given.get(name):
            raise ValueError(
                f"{path} holds a comparison with another {name}: {there.get(name)!r}, now {given.get(name)!r}. "
                "Choose another --out, or remove that folder."
            )
