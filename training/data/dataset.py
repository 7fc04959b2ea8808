"""Random windows of recorded episodes, from memory or, where they do not fit, from the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.data.windows import Place, Windows, WindowTable, make_window_table
from training.store.episode import Episode, check_episode
from training.store.episode_files import damage_as_value_error, read_array
from training.store.episode_store import open_store
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


class EpisodeDataset:
    """All episodes of one split of a store, one after the other in one tensor per array, on `device`.

    N frames, M = N - num_episodes transitions: `frames` uint8 [N, H, W, C], `pose` float32 [N, P], `actions` int64 [M]
    or float32 [M, A], `rewards` float32 [M], `terminations` bool [M]. A streamed dataset has no `frames` (N = 0): it
    reads those of a batch from the store, by several threads, into memory that a GPU copies from (pinned).

    Args:
        path: the store.
        split: "train", "test" or "eval".
        device: of the tensors and of the batches.
        max_bytes: limit for the frames; episodes are loaded in the order of their seeds as long as they fit.
        num_threads: for reading.
        env_id: if given, the environment that the store must be from.
        seeds: if given, only these episodes are loaded now, which makes again the dataset that somebody had while the
            store was being written.
        streamed: leaves the frames in the store; device must be "cpu".

    Raises:
        FileNotFoundError: no store at `path`.
        ValueError: no episodes, one that is damaged or missing, a store of another environment, or no such device.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        device: torch.device | str = "cpu",
        max_bytes: int | None = None,
        num_threads: int = 8,
        env_id: str | None = None,
        seeds: Iterable[int] | None = None,
        streamed: bool = False,
    ) -> None:
        self._store = open_store(path)
        header = self._store.header
        if env_id is not None and not header.is_of(env_id):
            raise ValueError(f"{path} is a store of {header.env_id}, expected {env_id}.")
        self._split, self._max_bytes, self._num_threads = split, max_bytes, num_threads
        self._places: dict[int, Place] = {}  # by seed
        self._tables: dict[int, WindowTable] = {}  # by length
        self._num_frames = 0
        self.device = resolve_device(device)
        self.streamed = streamed
        if streamed and self.device.type != "cpu":
            raise ValueError(
                f"A streamed dataset is on the CPU, not on {device}; training.data.loader brings it to a GPU."
            )
        self._pool = ThreadPoolExecutor(num_threads) if streamed else None
        self._first_frames, self._order = np.zeros(0, np.int64), np.zeros(0, np.int64)  # seeds by place
        self.env_id: str = header.env_id
        self.observation_space: gym.Space[Any] = header.observation_space
        self.action_space: gym.Space[Any] = header.action_space
        action_dtype = torch.int64 if header.action_dtype == np.int64 else torch.float32
        self.frames = torch.empty((0, *header.frame_shape), dtype=torch.uint8, device=self.device)
        self.pose = torch.empty((0, 0), dtype=torch.float32, device=self.device)
        self.actions = torch.empty((0, *header.action_shape), dtype=action_dtype, device=self.device)
        self.rewards = torch.empty(0, dtype=torch.float32, device=self.device)
        self.terminations = torch.empty(0, dtype=torch.bool, device=self.device)
        self._load(self._new_places(seeds))
        if not self._places:
            fitting = "" if max_bytes is None else f" that fits into {max_bytes} bytes"
            raise ValueError(f"{path} has no episode{fitting} in split {split!r}.")

    @property
    def seeds(self) -> list[int]:
        """Seeds of the loaded episodes, ascending."""
        return sorted(self._places)

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self._places)

    @property
    def num_frames(self) -> int:
        """Number of frames of all episodes."""
        return self._num_frames

    @property
    def recorded_seeds(self) -> list[int]:
        """Seeds of the episodes that the split has by now, ascending."""
        return self._store.seeds(self._split)

    def refresh(self, seeds: Iterable[int] | None = None) -> int:
        """Loads the episodes that the store got since, or those of them that have these seeds; returns their number.

        For a moment there must be room for the old and the new frames. Raises ValueError for an episode that is damaged
        or missing; the dataset then stays as it was.
        """
        return self._load(self._new_places(seeds))

    def _load(self, places: dict[int, Place]) -> int:
        if not places:
            return 0
        num_new_frames = sum(place.num_frames for place in places.values())
        num_kept = 0 if self.streamed else self._num_frames + num_new_frames
        frames = torch.empty((num_kept, *self.frames.shape[1:]), dtype=torch.uint8, device=self.device)
        frames[: len(self.frames)] = self.frames
        episodes = self._read(places, frames)
        pose_sizes = {episode.pose.shape[1] for episode in episodes} | ({self.pose.shape[1]} if self._places else set())
        if len(pose_sizes) > 1:
            raise ValueError(f"Episodes in {self._store.path} have poses of different sizes: {sorted(pose_sizes)}.")
        self.frames = frames
        self.pose = _extended(self.pose.reshape(len(self.pose), *pose_sizes), [episode.pose for episode in episodes])
        self.actions = _extended(self.actions, [episode.actions for episode in episodes])
        self.rewards = _extended(self.rewards, [episode.rewards for episode in episodes])
        self.terminations = _extended(self.terminations, [episode.terminations for episode in episodes])
        self._places.update(places)
        self._num_frames += num_new_frames
        self._order = np.array(list(self._places), np.int64)
        self._first_frames = np.array([place.first_frame for place in self._places.values()], np.int64)
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
        return self.read_windows(self.draw_windows(batch_size, length, generator, reward_window_fraction), length)

    def draw_windows(
        self, batch_size: int, length: int, generator: torch.Generator, reward_window_fraction: float = 0.0
    ) -> Windows:
        """The windows that `sample` reads, on the dataset's device."""
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
        return Windows(table.seeds[episode], numbers - table.begins[episode])

    def read_windows(self, windows: Windows, length: int) -> Batch:
        """Windows of `length` frames that `draw_windows` gave, of this dataset or of one of the same store."""
        table = self._window_table(length)
        episode = torch.searchsorted(table.seeds, windows.seeds)
        first_frame = table.first_frames[episode] + windows.starts
        first_transition = table.first_transitions[episode] + windows.starts
        steps = torch.arange(length, device=self.device)
        frame_rows = first_frame[:, None] + steps
        transition_rows = first_transition[:, None] + steps[:-1]
        return Batch(
            frames=self._streamed_frames(first_frame, length) if self.streamed else _rows(self.frames, frame_rows),
            actions=_rows(self.actions, transition_rows),
            rewards=_rows(self.rewards, transition_rows),
            terminations=_rows(self.terminations, transition_rows),
            pose=_rows(self.pose, frame_rows),
        )

    def _streamed_frames(self, first_frame: Tensor, length: int) -> Tensor:
        """uint8 [B, length, H, W, C] from the store, for windows that begin at these rows of all frames."""
        pinned = torch.cuda.is_available()
        shape = (len(first_frame), length, *self.frames.shape[1:])
        frames = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        rows = first_frame.numpy()
        places = np.searchsorted(self._first_frames, rows, side="right") - 1
        starts = rows - self._first_frames[places]
        room = frames.numpy()

        def read(index: int) -> None:
            seed, start = int(self._order[places[index]]), int(starts[index])
            self._store.read_frames(seed, start, start + length, self._split, out=room[index])

        assert self._pool is not None
        for _ in self._pool.map(read, range(len(rows))):
            pass
        return frames

    def _draw(self, generator: torch.Generator, size: int, limit: int) -> Tensor:
        """int64 [size] in [0, limit), on the dataset's device; without waiting for it."""
        drawn = torch.randint(limit, (size,), generator=generator, device=generator.device)
        return drawn.to(self.device, non_blocking=True)

    def _window_table(self, length: int) -> WindowTable:
        if length not in self._tables:
            self._tables[length] = self._new_window_table(length)
        return self._tables[length]

    def _new_window_table(self, length: int) -> WindowTable:
        places = {seed: self._places[seed] for seed in self.seeds}
        rewarded = self.rewards.cpu().numpy() != 0
        return make_window_table(places, rewarded, length, self.device, self._store.path)

    def _new_places(self, only: Iterable[int] | None = None) -> dict[int, Place]:
        """Places behind what is loaded for the episodes that are not, as far as they fit, in the order of seeds."""
        recorded = self.recorded_seeds
        if only is not None:
            if missing := sorted((only := set(only)) - set(recorded)):
                raise ValueError(f"{self._store.path} has no episode of seed {missing[0]} in split {self._split!r}.")
            recorded = sorted(only)
        seeds = [seed for seed in recorded if seed not in self._places]
        frame_bytes = 0 if self.streamed else int(np.prod(self.frames.shape[1:]))
        frame, transition = self.num_frames, len(self.rewards)
        places: dict[int, Place] = {}
        for seed in seeds:
            num_frames = self._store.num_frames(seed, self._split)
            if (
                self._max_bytes is not None
                and not self.streamed
                and (frame + num_frames) * frame_bytes > self._max_bytes
            ):
                break
            places[seed] = Place(frame, transition, num_frames)
            frame, transition = frame + num_frames, transition + num_frames - 1
        return places

    def _read(self, places: dict[int, Place], frames: Tensor) -> list[Episode]:
        """Reads episodes, their frames into `frames`; the frames of the episodes returned must not be used."""
        staged = self.device.type != "cpu"
        total = sum(place.num_frames for place in places.values())

        def read(seed: int) -> Episode:
            place = places[seed]
            if self.streamed:
                return self._read_without_frames(seed, place.num_frames)
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
            tqdm(total=total, unit=" frames", desc="loading", disable=None) as progress,
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

    def _read_without_frames(self, seed: int, num_frames: int) -> Episode:
        """An episode whose frames are empty; the rest is checked against the header and the number of frames."""
        path, shape = self._store.episode_path(seed, self._split), (num_frames, *self.frames.shape[1:])
        with damage_as_value_error(path):
            has_pose = (path / "pose").is_dir()
            episode = Episode(
                seed=seed,
                frames=np.broadcast_to(np.uint8(0), shape),
                actions=read_array(path / "actions"),
                rewards=read_array(path / "rewards"),
                terminations=read_array(path / "terminations"),
                truncations=read_array(path / "truncations"),
                pose=read_array(path / "pose") if has_pose else np.zeros((num_frames, 0), np.float32),
            )
            check_episode(episode, self._store.header)
        return dataclasses.replace(episode, frames=episode.frames[:0])


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """tensor[rows]; index_select copies whole rows, several times faster than indexing by a tensor."""
    return tensor.index_select(0, rows.flatten()).reshape(*rows.shape, *tensor.shape[1:])


def _extended(tensor: Tensor, arrays: list[np.ndarray]) -> Tensor:
    return torch.cat([tensor, torch.from_numpy(np.concatenate(arrays)).to(tensor)])
