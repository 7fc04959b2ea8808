"""Feeds a GPU: batches that are ready before they are asked for, and that depend on (seed, step) alone.

Frames are kept where they fit: on the GPU, else in the store, from where threads read the windows of the next batches
into pinned memory while the GPU computes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from training.data.dataset import Batch, EpisodeDataset
from training.data.windows import Windows
from training.store.episode_store import open_store
from wm_gym.checkpoint import resolve_device

LOADER_STREAM = 2  # keeps the numbers that choose windows apart from others that come from the same seed


class _Request(NamedTuple):
    step: int
    batch_size: int
    length: int


class BatchLoader:
    """Batches of a dataset on `device`.

    The batch of a step is a function of seed, rank, step, batch_size, length and the set of loaded episodes: not of the
    number of threads, of what was asked for before, or of when. So a run that goes on at step n needs no other state
    than n, and, where the store grows, `dataset.seeds`.

    Args:
        dataset: in the memory of `device`, in that of the host, or streamed.
        device: where batches are wanted.
        seed, rank: of the run and of the process in it; processes of different rank get different batches.
        reward_window_fraction: see `EpisodeDataset.sample`.
        num_prefetched: batches that are made ahead; 0 makes each when it is asked for. Frames that are on a GPU
            already need no more, so nothing is made ahead then.

    Raises:
        ValueError: no such device, a dataset on another GPU, or a negative number.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        device: torch.device | str = "cpu",
        seed: int = 0,
        rank: int = 0,
        reward_window_fraction: float = 0.0,
        num_prefetched: int = 3,
    ) -> None:
        self.device = torch.empty(0, device=resolve_device(device)).device  # with its index, also for "cuda"
        if dataset.frames.is_cuda and dataset.frames.device != self.device:
            raise ValueError(f"The dataset is on {dataset.frames.device}, batches are wanted on {self.device}.")
        if min(seed, rank, num_prefetched) < 0:
            raise ValueError(f"seed {seed}, rank {rank} and num_prefetched {num_prefetched} must not be negative.")
        self.dataset = dataset
        self._seed, self._rank = seed, rank
        self._reward_window_fraction = reward_window_fraction
        self._num_prefetched = num_prefetched if dataset.device.type == "cpu" else 0
        self._pending: dict[_Request, Future[tuple[Batch, torch.cuda.Event | None]]] = {}
        self._thread = ThreadPoolExecutor(min(self._num_prefetched, 2) or 1, "loader")
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def batch(self, step: int, batch_size: int, length: int) -> Batch:
        """The batch of a step; those of the next steps are begun, as if they had the same size.

        Raises ValueError as `EpisodeDataset.sample`, and for an episode that is damaged.
        """
        if self._num_prefetched == 0:
            return self._made(_Request(step, batch_size, length))
        wanted = [_Request(step + ahead, batch_size, length) for ahead in range(self._num_prefetched + 1)]
        self._drop(self._pending.keys() - set(wanted))
        for request in wanted:
            if request not in self._pending:
                self._pending[request] = self._thread.submit(self._made_on_device, request)
        batch, copied = self._pending.pop(wanted[0]).result()
        if copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(copied)
            for tensor in vars(batch).values():
                tensor.record_stream(stream)  # its memory is not to be used again before this stream is done with it
        return batch

    def windows(self, step: int, batch_size: int, length: int) -> Windows:
        """Which windows `batch` gives for a step, on the dataset's device."""
        request = _Request(step, batch_size, length)
        return self.dataset.draw_windows(batch_size, length, self._generator(request), self._reward_window_fraction)

    def read(self, windows: Windows, length: int) -> Batch:
        """These windows, of `length` frames, on `device`; read when asked for, on whatever device they are named."""
        place = self.dataset.device
        batch = self.dataset.read_windows(Windows(windows.seeds.to(place), windows.starts.to(place)), length)
        return Batch(**{name: tensor.to(self.device) for name, tensor in vars(batch).items()})

    def refresh(self, seeds: Iterable[int] | None = None) -> int:
        """Takes the episodes that the store got since, for all batches that are asked for from now on.

        Args, returns and raises as `EpisodeDataset.refresh`; after an error the loader stays as it was.
        """
        self._drop(set(self._pending))
        return self.dataset.refresh(seeds)

    def close(self) -> None:
        """Ends the threads."""
        self._drop(set(self._pending))
        self._thread.shutdown()

    def _drop(self, requests: set[_Request]) -> None:
        futures = [self._pending.pop(request) for request in requests]
        for future in futures:
            future.cancel()
        wait(futures)  # what runs reads the dataset

    def _made(self, request: _Request) -> Batch:
        generator = self._generator(request)
        return self.dataset.sample(request.batch_size, request.length, generator, self._reward_window_fraction)

    def _generator(self, request: _Request) -> torch.Generator:
        seeds = np.random.SeedSequence((self._seed, self._rank, request.step, LOADER_STREAM))
        return torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0]))

    def _made_on_device(self, request: _Request) -> tuple[Batch, torch.cuda.Event | None]:
        batch = self._made(request)
        if self._copies is None:
            return batch, None
        with torch.cuda.stream(self._copies):
            tensors = {name: tensor.pin_memory() for name, tensor in vars(batch).items()}
            batch = Batch(**{name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()})
            copied = torch.cuda.Event()
            copied.record(self._copies)
        return batch, copied


def open_dataset(
    path: str | Path,
    device: torch.device | str,
    max_bytes: int | None = None,
    split: str = "train",
    num_threads: int = 8,
    room_to_grow: float = 2.0,
    seeds: Iterable[int] | None = None,
) -> EpisodeDataset:
    """A dataset whose frames are in the memory of `device` if all of the split fits there, else streamed.

    Args:
        path, split: of the store.
        device: where batches are wanted.
        max_bytes: memory that frames may take; None is what `bytes_for_frames` tells.
        num_threads: for reading.
        room_to_grow: frames count so many times: a store that is still being written gets more of them, and `refresh`
            needs room for the old and the new ones.
        seeds: as of `EpisodeDataset`.

    Raises:
        FileNotFoundError, ValueError: as `EpisodeDataset`.
    """
    store = open_store(path)
    max_bytes = bytes_for_frames(device) if max_bytes is None else max_bytes
    num_frames = sum(store.num_frames(seed, split) for seed in store.seeds(split))
    num_bytes = num_frames * int(np.prod(store.header.frame_shape))
    if num_bytes * room_to_grow <= max_bytes:
        return EpisodeDataset(path, split, device, max_bytes, num_threads, seeds=seeds)
    return EpisodeDataset(path, split, "cpu", num_threads=num_threads, seeds=seeds, streamed=True)


def bytes_for_frames(device: torch.device | str) -> int:
    """Two fifths of the memory of a GPU, or of this process's share of the host's: the rest is for training."""
    device = resolve_device(device)
    if device.type == "cuda":
        num_bytes = torch.cuda.get_device_properties(device).total_memory
    else:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
        num_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes
    return num_bytes * 2 // 5
