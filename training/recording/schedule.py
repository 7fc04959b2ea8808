"""Which episodes are recorded next, also where several collectors write to one store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from training.store.episode_files import CLAIMS_NAME
from training.store.episode_store import EpisodeStore, check_seed


class Claims:
    """Seeds whose episodes this process records, so that no other one does: locks on the bytes of an empty file.

    The kernel drops them when the process ends, however it ends. Where a file system has no locks, every claim is
    granted, and an episode may then be recorded twice and stored once.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CLAIMS_NAME
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def take(self, seed: int) -> bool:
        """False if another process has this seed."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, seed)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
        return True

    def release(self, seed: int) -> None:
        """Gives a claim up."""
        with contextlib.suppress(OSError):  # of a file system without locks
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, seed)

    def close(self) -> None:
        """Gives all claims up; the last one to do so removes the file."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink()
        os.close(self._file)


class Schedule:
    """Gives out seeds, the next one only if the episodes before it cannot have enough frames. So a finished run has
    the same episodes whatever the number of workers: the shortest row of seeds that is long enough.

    Args:
        store, split: where episodes that are there already are looked up.
        first_seed: start of the row.
        num_frames: what the row must have.
        max_frames: the most that an episode can have. If None, the longest one so far stands in, and the episodes that
            are started before any has finished may be more than are needed.
        claims: keeps other collectors from recording the same; what they record counts when it is there.
    """

    def __init__(
        self,
        store: EpisodeStore,
        split: str,
        first_seed: int,
        num_frames: int,
        max_frames: int | None,
        claims: Claims | None = None,
    ) -> None:
        self._store, self._split, self._claims = store, split, claims
        recorded = [store.num_frames(seed, split) for seed in store.seeds(split)]
        self._next_seed = first_seed
        self._num_frames = num_frames
        self._max_frames = max_frames
        self._longest = max(recorded, default=1)
        self._running: set[int] = set()
        self._elsewhere: set[int] = set()  # what another collector has claimed
        self.finished_frames = 0
        self.num_recorded = 0  # episodes, by this collector

    @property
    def done(self) -> bool:
        """Whether all frames are recorded."""
        return not self._running and not self._elsewhere and self.finished_frames >= self._num_frames

    @property
    def waits_for_others(self) -> bool:
        """Whether another collector records what is missing."""
        return bool(self._elsewhere)

    def next_seed(self) -> int | None:
        """Seed of an episode that is needed for certain, or None: ask again when another one has finished.

        Raises ValueError if the row runs into the seeds of another split.
        """
        for seed in sorted(self._elsewhere):
            if self._begin(seed):
                return seed
        expected = self._max_frames or self._longest
        while self.finished_frames + (len(self._running) + len(self._elsewhere)) * expected < self._num_frames:
            seed = self._next_seed
            check_seed(seed, self._split)
            self._next_seed += 1
            if self._begin(seed):
                return seed
        return None

    def finish(self, seed: int, num_frames: int) -> None:
        """Counts an episode of `num_frames` frames as recorded."""
        self._running.remove(seed)
        self.num_recorded += 1
        self._count(num_frames)
        if self._claims is not None:
            self._claims.release(seed)

    def _begin(self, seed: int) -> bool:
        """Whether this episode is to be recorded here. If not, it is there, or somebody else records it."""
        self._elsewhere.discard(seed)
        if self._claims is not None and not self._claims.take(seed):
            self._elsewhere.add(seed)
            return False
        if self._store.episode_path(seed, self._split).is_dir():  # asked after the claim: its owner may just be done
            self._count(self._store.num_frames(seed, self._split))
            if self._claims is not None:
                self._claims.release(seed)
            return False
        self._running.add(seed)
        return True

    def _count(self, num_frames: int) -> None:
        self._longest = max(self._longest, num_frames)
        self.finished_frames += num_frames
