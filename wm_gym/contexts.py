"""Contexts: the real frames and actions that a dream is started from, and the clips that come with the package."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from wm_gym.files import atomic_path

_CLIPS_DIR = Path(__file__).parent / "clips"


@dataclass(frozen=True)
class Context:
    """Consecutive frames of a real episode; `actions[t]` was taken at frame t and led to frame t + 1."""

    frames: np.ndarray  # uint8 [T, H, W, C], T >= 1
    actions: np.ndarray  # [T - 1], or [T - 1, A] for a Box action space

    @property
    def num_frames(self) -> int:
        """Frames of the context, T."""
        return len(self.frames)


@dataclass(frozen=True)
class Clips:
    """Recordings of equal length from real episodes."""

    frames: np.ndarray  # uint8 [N, T, H, W, C]
    actions: np.ndarray  # [N, T - 1], or [N, T - 1, A]
    seeds: np.ndarray  # int64 [N], the seed of each real episode

    def __len__(self) -> int:
        return len(self.frames)

    def context(self, index: int, num_frames: int, start: int = 0) -> Context:
        """`num_frames` frames of a clip from frame `start` on. Raises ValueError if the clip is shorter."""
        length = self.frames.shape[1]
        if not (num_frames >= 1 and 0 <= start <= length - num_frames):
            part = f"{num_frames} frames" + (f" from frame {start} on" if start else "")
            raise ValueError(f"A context of {part} was asked for; the clips have 1 to {length}.")
        end = start + num_frames
        return Context(self.frames[index, start:end], self.actions[index, start : end - 1])


def make_context(context: Any, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> Context:
    """Checks a pair (frames, actions) given by a user against the spaces of the environment.

    Raises:
        TypeError: if it is no pair, or an array has the wrong dtype.
        ValueError: if a shape, the length or an action does not fit.
    """
    if isinstance(context, Context):
        context = (context.frames, context.actions)
    if not isinstance(context, (tuple, list)) or len(context) != 2:
        raise TypeError(f"A context is a pair (frames, actions), got {type(context).__name__}.")
    frames, actions = (np.asarray(part) for part in context)
    if frames.dtype != np.uint8:
        raise TypeError(f"The frames of a context must be uint8, got {frames.dtype}.")
    if frames.ndim != 4 or frames.shape[1:] != observation_space.shape or len(frames) == 0:
        raise ValueError(
            f"The frames of a context must have shape [T, {', '.join(map(str, observation_space.shape or ()))}] "
            f"with T >= 1, got {list(frames.shape)}."
        )
    return Context(frames, _check_actions(actions, len(frames) - 1, action_space))


def _check_actions(actions: np.ndarray, length: int, space: gym.Space[Any]) -> np.ndarray:
    discrete = isinstance(space, gym.spaces.Discrete)
    kind = np.integer if discrete else np.floating
    if actions.size > 0 and not np.issubdtype(actions.dtype, kind):
        raise TypeError(f"The actions of a context must be {kind.__name__} numbers for {space}, got {actions.dtype}.")
    if actions.shape != (length, *(space.shape or ())):
        raise ValueError(
            f"A context of {length + 1} frames needs actions of shape {[length, *(space.shape or ())]}, "
            f"got {list(actions.shape)}."
        )
    actions = actions.astype(np.int64 if discrete else space.dtype)
    if not all(space.contains(action) for action in actions):
        raise ValueError(f"The context has actions that are not in {space}.")
    return actions


def packaged_clips() -> list[str]:
    """Names of the clips that come with the package."""
    return sorted(path.stem for path in _CLIPS_DIR.glob("*.npz"))


def load_clips(name_or_path: str | Path = "memory-maze") -> Clips:
    """Reads packaged clips by name, or a file that `save_clips` wrote.

    Raises FileNotFoundError if there is none, and ValueError if the file is damaged or holds something else.
    """
    path = _CLIPS_DIR / f"{name_or_path}.npz" if str(name_or_path) in packaged_clips() else Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No clips {str(name_or_path)!r}: expected the path of a file, or one of the packaged names "
            f"({', '.join(packaged_clips()) or 'none in this installation'})."
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            clips = Clips(arrays["frames"], arrays["actions"], arrays["seeds"])
    except (KeyError, ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, truncated or holds no clips ({error}).") from error
    _check_clips(clips, path)
    return clips


def save_clips(path: str | Path, clips: Clips, compress: bool = True) -> None:
    """Writes clips as an npz, atomically. Raises ValueError if the arrays do not fit together."""
    _check_clips(clips, path)
    with atomic_path(path) as temporary:
        save = np.savez_compressed if compress else np.savez
        save(temporary, frames=clips.frames, actions=clips.actions, seeds=clips.seeds)


def _check_clips(clips: Clips, path: str | Path) -> None:
    frames, actions, seeds = clips.frames, clips.actions, clips.seeds
    if frames.dtype != np.uint8 or frames.ndim != 5 or 0 in frames.shape:
        raise ValueError(f"The clips in {path} need uint8 frames [N, T, H, W, C], got {frames.dtype} {frames.shape}.")
    if actions.shape[:2] != (len(frames), frames.shape[1] - 1) or seeds.shape != (len(frames),):
        raise ValueError(
            f"The clips in {path} have frames {frames.shape}, actions {actions.shape} and seeds {seeds.shape}, "
            "which do not fit together."
        )
