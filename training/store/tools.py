"""What can be asked of a store and done with it as a whole: describe, validate, merge, move episodes between splits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from training.store.episode import SPLITS, Episode, StoreHeader, check_seed
from training.store.episode_files import ARRAYS, CLAIMS_NAME, EPISODE_NAME, is_abandoned, rename_if_new
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store, open_store

_ROOT_FILES = ("zarr.json", *SPLITS)
_EPISODE_FILES = ("zarr.json", *ARRAYS, "pose")


@dataclass(frozen=True)
class SplitSummary:
    """Totals over the episodes of one split."""

    seeds: list[int]
    num_frames: int
    num_rewards: int  # transitions with a reward other than 0
    total_reward: float
    num_bytes: int  # on the disk, of everything

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.seeds)


def summarize(store: EpisodeStore, split: str) -> SplitSummary:
    """Reads attributes and rewards of every episode, not the frames. Raises ValueError for a damaged one."""
    seeds = store.seeds(split)
    num_frames = num_rewards = num_bytes = 0
    total_reward = 0.0
    for seed in seeds:
        path = store.episode_path(seed, split)
        rewards = store.read_rewards(seed, split)
        num_frames += store.num_frames(seed, split)
        num_rewards += int(np.count_nonzero(rewards))
        total_reward += float(rewards.sum(dtype=np.float64))
        num_bytes += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return SplitSummary(seeds, num_frames, num_rewards, total_reward, num_bytes)


def problems(store: EpisodeStore) -> Iterator[str]:
    """One sentence for each thing that is wrong in a store, with file and episode; reads every chunk of it.

    What a live writer is at is no problem. What a dead one left is one, though readers do not see it.
    """
    for path in sorted(store.path.iterdir()):
        if path.name not in _ROOT_FILES:
            yield f"{path} does not belong to an episode store."
    for split in SPLITS:
        folder = store.split_path(split)
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.name == "zarr.json":
                try:
                    zarr.open_group(folder, mode="r")
                except Exception as error:  # whatever zarr makes of a damaged file
                    yield f"{path} is damaged ({error})."
            elif EPISODE_NAME.fullmatch(path.name):
                yield from _episode_problems(store, path, split)
            elif path.name.startswith(".writing-"):
                if is_abandoned(path):
                    yield f"{path} is half-written, and its writer is dead; training.collect removes it, or you can."
            elif path.name != CLAIMS_NAME:
                yield f"{path} does not belong to an episode store."


def _episode_problems(store: EpisodeStore, path: Path, split: str) -> Iterator[str]:
    seed = int(path.name.rpartition("_")[2])
    try:
        check_seed(seed, split)
    except ValueError as error:
        yield f"Episode {path} is in the wrong split: {error}"
    try:
        episode = store.read(seed, split)
    except (ValueError, FileNotFoundError) as error:
        yield str(error)
        return
    if (episode.terminations | episode.truncations)[:-1].any():
        yield f"Episode {path} goes on after its end: terminations or truncations are set before the last transition."
    for entry in sorted(path.iterdir()):
        if entry.name not in _EPISODE_FILES:
            yield f"Episode {path} has a foreign file: {entry.name}."


def merged_header(a: StoreHeader, b: StoreHeader) -> StoreHeader:
    """What the episodes of both have in common. Policies may differ, and limits of the number of steps.

    Raises ValueError if anything else does.
    """
    free = ("policy", "max_episode_steps")
    for name in (field.name for field in dataclasses.fields(StoreHeader) if field.compare and field.name not in free):
        left, right = getattr(a, name), getattr(b, name)
        if not (a.is_of(right) if name == "env_id" else left == right):
            raise ValueError(f"Only stores of the same environment can be merged, but {name} is {left} and {right}.")
    policies = dict.fromkeys([*a.policy.split(" + "), *b.policy.split(" + ")])
    limits = (a.max_episode_steps, b.max_episode_steps)
    known = [limit for limit in limits if limit is not None]
    return dataclasses.replace(
        a,
        policy=" + ".join(policies),
        max_episode_steps=max(known) if len(known) == len(limits) else None,
        packages=a.packages if a.packages == b.packages else {},
    )


def merge(paths: Iterable[Path], out: Path) -> EpisodeStore:
    """Copies the episodes of all stores into the one at `out`, each atomically; the same call goes on where it stopped.

    An episode that is in several of them, bit for bit, is copied once.

    Raises:
        FileNotFoundError: one of the stores is not there.
        ValueError: stores of different environments, two different episodes of one seed (nothing is copied then), or a
            damaged episode.
    """
    stores = [open_store(path) for path in paths]
    if not stores:
        raise ValueError("Name at least one store to merge.")
    if out.exists() and any(out.resolve() == store.path.resolve() for store in stores):
        raise ValueError(f"{out} cannot be merged into itself; choose another path.")
    header = stores[0].header
    for store in stores[1:]:
        header = merged_header(header, store.header)
    origins = _origins(stores)
    target = create_store(out, header)
    for split in sorted({split for split, _ in origins}):
        writer = EpisodeWriter(target, split)
        writer.remove_abandoned()
        for (part, seed), source in origins.items():
            if part == split and not writer.copy(source, seed, split):
                _check_same(target, source, seed, split)
    return target


def _origins(stores: list[EpisodeStore]) -> dict[tuple[str, int], EpisodeStore]:
    """The store from which each (split, seed) is taken. Raises ValueError if two of them differ."""
    origins: dict[tuple[str, int], EpisodeStore] = {}
    for store in stores:
        for split in SPLITS:
            for seed in store.seeds(split):
                first = origins.setdefault((split, seed), store)
                if first is not store:
                    _check_same(first, store, seed, split)
    return origins


def _check_same(a: EpisodeStore, b: EpisodeStore, seed: int, split: str) -> None:
    if difference := differing_part(a.read(seed, split), b.read(seed, split)):
        raise ValueError(
            f"{a.episode_path(seed, split)} and {b.episode_path(seed, split)} have the same seed, but {difference} "
            "differ; remove one of them."
        )


def differing_part(a: Episode, b: Episode) -> str | None:
    """Name of the first part in which two episodes differ, None if they are the same."""
    for name in (*ARRAYS, "pose"):
        if not np.array_equal(getattr(a, name), getattr(b, name)):
            return name
    return None if a.attributes == b.attributes else "attributes"


def choose_seeds(seeds: Iterable[int], fraction: float) -> list[int]:
    """About this fraction of the seeds, ascending, by a hash: a seed stays chosen when a store grows.

    Whole mazes are chosen, never parts of episodes, so that nothing of a held-out maze is trained on.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction must be from 0 to 1, got {fraction}.")
    return [seed for seed in sorted(seeds) if _unit_hash(seed) < fraction]


def _unit_hash(seed: int) -> float:
    digest = hashlib.sha256(f"split {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def move(store: EpisodeStore, seeds: Iterable[int], source: str, target: str) -> int:
    """Moves episodes from one split to another, each atomically; returns how many.

    Raises:
        ValueError: a seed that is not for `target` (then nothing is moved), or one that `target` has already.
        FileNotFoundError: an episode that is not in `source`.
    """
    seeds = sorted(seeds)
    for seed in seeds:
        check_seed(seed, target)
        if not store.episode_path(seed, source).is_dir():
            raise FileNotFoundError(f"{store.path} has no episode of seed {seed} in split {source!r}.")
        if store.episode_path(seed, target).exists():
            raise ValueError(f"Split {target!r} of {store.path} has an episode of seed {seed} already.")
    EpisodeWriter(store, target)  # makes the split
    for seed in seeds:
        if not rename_if_new(store.episode_path(seed, source), store.episode_path(seed, target)):
            raise ValueError(f"Split {target!r} of {store.path} has an episode of seed {seed} already.")
    return len(seeds)
