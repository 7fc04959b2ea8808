"""Random windows of recorded episodes, from memory."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.episode import Episode
from training.store import open_store
from wm_gym.array_typing import Frames, Poses
from wm_gym.checkpoint import resolve_device


@dataclass(frozen=True)
class Batch:
    """Windows of episodes, on the dataset's device; actions[:, t] leads from frames[:, t] to frames[:, t+1]."""

    frames: Frames  # uint8 [B, T, H, W, C]
    actions: Tensor  # int64 [B, T-1], or float32 [B, T-1, A]
    rewards: Tensor  # float32 [B, T-1]
    terminations: Tensor  # bool [B, T-1]
    pose: Poses  # float32 [B, T, P]; P = 0 if the environment tells none


class _Place(NamedTuple):
    """Where an episode lies in the dataset's tensors."""

    first_frame: int
    first_transition: int
    num_frames: int

    @property
    def frames(self) -> slice:
        return slice(self.first_frame, self.first_frame + self.num_frames)

    @property
    def transitions(self) -> slice:
        return slice(self.first_transition, self.first_transition + self.num_frames - 1)


@dataclass(frozen=True)
class _WindowTable:
    """The windows of one length, numbered through the E episodes that are long enough, in the order of their seeds."""

    total: int
    ends: Tensor  # int64 [E], number of the last window + 1
    frame_shifts: Tensor  # int64 [E], first frame of a window = its number + shift of its episode
    transition_shifts: Tensor  # int64 [E]
    reward_starts: Tensor  # int64 [R], for each of R rewarded transitions the first window that contains it
    reward_counts: Tensor  # int64 [R], and the number of windows that do


class EpisodeDataset:
    """All episodes of one split of a store, one after the other in one tensor per array, on `device`.

    N frames, M = N - num_episodes transitions: `frames` uint8 [N, H, W, C], `pose` float32 [N, P], `actions` int64 [M]
    or float32 [M, A], `rewards` float32 [M], `terminations` bool [M].

    Args:
        path: the store.
        split: "train", "test" or "eval".
        device: of the tensors and of the batches.
        max_bytes: limit for the frames; episodes are loaded in the order of their seeds as long as they fit.
        num_threads: for reading.
        env_id: if given, the environment that the store must be from.

    Raises:
        FileNotFoundError: no store at `path`.
        ValueError: no episodes, a damaged one, a store of another environment, or no such device.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        device: torch.device | str = "cpu",
        max_bytes: int | None = None,
        num_threads: int = 8,
        env_id: str | None = None,
    ) -> None:
        self._store = open_store(path)
        header = self._store.header
        if env_id is not None and not header.is_of(env_id):
            raise ValueError(f"{path} is a store of {header.env_id}, expected {env_id}.")
        self._split, self._max_bytes, self._num_threads = split, max_bytes, num_threads
        self._places: dict[int, _Place] = {}  # by seed
        self._tables: dict[int, _WindowTable] = {}  # by length
        self.device = resolve_device(device)
        self.env_id: str = header.env_id
        self.observation_space: gym.Space[Any] = header.observation_space
        self.action_space: gym.Space[Any] = header.action_space
        action_dtype = torch.int64 if header.action_dtype == np.int64 else torch.float32
        self.frames = torch.empty((0, *header.frame_shape), dtype=torch.uint8, device=self.device)
        self.pose = torch.empty((0, 0), dtype=torch.float32, device=self.device)
        self.actions = torch.empty((0, *header.action_shape), dtype=action_dtype, device=self.device)
        self.rewards = torch.empty(0, dtype=torch.float32, device=self.device)
        self.terminations = torch.empty(0, dtype=torch.bool, device=self.device)
        self.refresh()
        if not self._places:
            fitting = "" if max_bytes is None else f" that fits into {max_bytes} bytes"
            raise ValueError(f"{path} has no episode{fitting} in split {split!r}.")

    @property
    def seeds(self) -> list[int]:
        """Seeds of the loaded episodes, ascending."""
        return sorted(self._places)

    @property
    def num_episodes(self) -> int:
        return len(self._places)

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def refresh(self) -> int:
        """Loads the episodes that the store got since; returns their number.

        For a moment there must be room for the old and the new frames. Raises ValueError for a damaged episode; the
        dataset then stays as it was.
        """
        places = self._new_places()
        if not places:
            return 0
        num_new_frames = sum(place.num_frames for place in places.values())
        frames = torch.empty(
            (self.num_frames + num_new_frames, *self.frames.shape[1:]), dtype=torch.uint8, device=self.device
        )
        frames[: self.num_frames] = self.frames
        episodes = self._read(places, frames)
        pose_sizes = {episode.pose.shape[1] for episode in episodes} | ({self.pose.shape[1]} if self._places else set())
        if len(pose_sizes) > 1:
            raise ValueError(f"Episodes in {self._store.path} have poses of different sizes: {sorted(pose_sizes)}.")
        self.frames = frames
        self.pose = _extended(self.pose.reshape(-1, *pose_sizes), [episode.pose for episode in episodes])
        self.actions = _extended(self.actions, [episode.actions for episode in episodes])
        self.rewards = _extended(self.rewards, [episode.rewards for episode in episodes])
        self.terminations = _extended(self.terminations, [episode.terminations for episode in episodes])
        self._places.update(places)
        self._tables.clear()
        return len(places)

    def sample(
        self, batch_size: int, length: int, generator: torch.Generator, reward_window_fraction: float = 0.0
    ) -> Batch:
        """Draws windows, with replacement and uniformly from all windows of `length` frames inside an episode.

        The batch depends only on the generator's state and on the set of loaded episodes. The generator may be on the
        CPU or on the dataset's device.

        Args:
            batch_size, length: B and T of the batch.
            generator: where the numbers come from.
            reward_window_fraction: probability of a window to be drawn so that it contains a reward other than 0:
                such a transition is drawn uniformly, then one of the windows around it.

        Raises:
            ValueError: no episode is long enough, or there is no reward although a fraction is asked for.
        """
        table = self._window_table(length)
        numbers = self._draw(generator, batch_size, table.total)
        if reward_window_fraction > 0:
            if len(table.reward_starts) == 0:
                raise ValueError(f"No window of {length} frames has a reward, so reward_window_fraction must be 0.")
            chosen = self._draw(generator, batch_size, len(table.reward_starts))
            uniform = torch.rand((2, batch_size), generator=generator, device=generator.device, dtype=torch.float64)
            where, which = uniform.to(self.device, non_blocking=True)
            around = table.reward_starts[chosen] + (which * table.reward_counts[chosen]).long()
            numbers = torch.where(where < reward_window_fraction, around, numbers)
        episode = torch.searchsorted(table.ends, numbers, right=True)
        return self._windows(numbers + table.frame_shifts[episode], numbers + table.transition_shifts[episode], length)

    def _windows(self, first_frame: Tensor, first_transition: Tensor, length: int) -> Batch:
        steps = torch.arange(length, device=self.device)
        frame_rows = first_frame[:, None] + steps
        transition_rows = first_transition[:, None] + steps[:-1]
        return Batch(
            frames=_rows(self.frames, frame_rows),
            actions=_rows(self.actions, transition_rows),
            rewards=_rows(self.rewards, transition_rows),
            terminations=_rows(self.terminations, transition_rows),
            pose=_rows(self.pose, frame_rows),
        )

    def _draw(self, generator: torch.Generator, size: int, limit: int) -> Tensor:
        """int64 [size] in [0, limit), on the dataset's device; without waiting for it."""
        drawn = torch.randint(limit, (size,), generator=generator, device=generator.device)
        return drawn.to(self.device, non_blocking=True)

    def _window_table(self, length: int) -> _WindowTable:
        if length not in self._tables:
            self._tables[length] = self._new_window_table(length)
        return self._tables[length]

    def _new_window_table(self, length: int) -> _WindowTable:
        longest = max(place.num_frames for place in self._places.values())
        if not 1 <= length <= longest:
            raise ValueError(
                f"A window has from 1 to {longest} frames, the length of the longest episode in {self._store.path}; "
                f"got {length}."
            )
        rewarded = self.rewards.cpu().numpy() != 0
        ends, frame_shifts, transition_shifts, reward_starts, reward_counts = [], [], [], [], []
        total = 0
        for place in (self._places[seed] for seed in self.seeds):
            num_windows = place.num_frames - length + 1
            if num_windows < 1:
                continue
            steps = np.flatnonzero(rewarded[place.transitions])
            first = np.maximum(steps - (length - 2), 0)
            last = np.minimum(steps, num_windows - 1)
            reward_starts.append(total + first[last >= first])
            reward_counts.append((last - first + 1)[last >= first])
            frame_shifts.append(place.first_frame - total)
            transition_shifts.append(place.first_transition - total)
            total += num_windows
            ends.append(total)
        columns = (ends, frame_shifts, transition_shifts, np.concatenate(reward_starts), np.concatenate(reward_counts))
        return _WindowTable(total, *(torch.as_tensor(column).to(self.device) for column in columns))

    def _new_places(self) -> dict[int, _Place]:
        """Places behind what is loaded for the episodes that are not, as far as they fit, in the order of seeds."""
        seeds = [seed for seed in self._store.seeds(self._split) if seed not in self._places]
        frame_bytes = int(np.prod(self.frames.shape[1:]))
        frame, transition = self.num_frames, len(self.rewards)
        places: dict[int, _Place] = {}
        for seed in seeds:
            num_frames = self._store.num_frames(seed, self._split)
            if self._max_bytes is not None and (frame + num_frames) * frame_bytes > self._max_bytes:
                break
            places[seed] = _Place(frame, transition, num_frames)
            frame, transition = frame + num_frames, transition + num_frames - 1
        return places

    def _read(self, places: dict[int, _Place], frames: Tensor) -> list[Episode]:
        """Reads episodes, their frames into `frames`; the frames of the episodes returned must not be used."""
        staged = self.device.type != "cpu"

        def read(seed: int) -> Episode:
            place = places[seed]
            room = (
                torch.empty((place.num_frames, *frames.shape[1:]), dtype=torch.uint8)
                if staged
                else frames[place.frames]
            )
            episode = self._store.read(seed, self._split, frames_out=room.numpy())
            if staged:
                frames[place.frames] = room.to(self.device)
            return dataclasses.replace(episode, frames=episode.frames[:0])

        with (
            ThreadPoolExecutor(self._num_threads) as pool,
            tqdm(total=len(frames) - self.num_frames, unit=" frames", desc="loading", disable=None) as progress,
        ):
            episodes = []
            try:
                for seed, episode in zip(places, pool.map(read, places), strict=True):
                    episodes.append(episode)
                    progress.update(places[seed].num_frames)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return episodes


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """tensor[rows]; index_select copies whole rows, several times faster than indexing by a tensor."""
    return tensor.index_select(0, rows.flatten()).reshape(*rows.shape, *tensor.shape[1:])


def _extended(tensor: Tensor, arrays: list[np.ndarray]) -> Tensor:
    return torch.cat([tensor, torch.from_numpy(np.concatenate(arrays)).to(tensor)])
