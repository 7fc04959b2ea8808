"""How fast windows of frames are read: ``python -m training.benchmarks.store --out docs/results/store.json``.

Random windows of real Memory Maze frames, by one thread on one core, from the store, from a raw memory map of the same
frames, through zarr's own arrays, and zstd alone on the chunks that a window touches, which is what the store cannot
beat with this compression. All files are in the page cache: this measures the processor, not the disk.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import zarr
from numcodecs.zstd import Zstd
from tqdm import tqdm

from training.recording.config import CollectConfig
from training.recording.workers import collect
from training.store.episode_files import COMPRESSOR, FRAMES_PER_CHUNK
from training.store.episode_store import EpisodeStore, open_store
from training.store.tools import summarize
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance

REQUIRED_FRAMES_PER_SECOND = 40_000


@dataclass(frozen=True)
class BenchStore:
    """Measures reading from a store."""

    out: Path
    """JSON file of the results."""
    store: Path | None = None
    """A store to read; None records one first."""
    env: str = "wm_gym/MemoryMaze-9x9-v0"
    """Environment to record."""
    frames: int = 20_000
    """Number of frames to record."""
    windows: tuple[int, ...] = (200, 400, 1000)
    """Frames in a window."""
    frames_per_round: int = 40_000
    """Frames that each way reads in a round."""
    rounds: int = 7
    """Rounds, in which the ways take turns; the median counts."""
    seed: int = 0
    """Of the choice of windows."""


Window = tuple[int, int, int]  # episode, first frame, end


def main(config: BenchStore) -> None:
    """The command."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = config.store
        if path is None:
            path = folder / "store"
            collect(CollectConfig(env=config.env, out=path, frames=config.frames))
        store = open_store(path)
        affinity = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(affinity)})
        stack.callback(os.sched_setaffinity, 0, affinity)
        zarr.config.set({"threading.max_workers": 1})
        load_before = os.getloadavg()
        results = measure(config, store, folder)
        summary = summarize(store, "train")
    report = {
        **provenance("training.benchmarks.store", command_arguments()),
        "seed": config.seed,
        "threads": 1,
        "niceness": os.nice(0),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "store": {
            "env_id": store.header.env_id,
            "num_episodes": summary.num_episodes,
            "num_frames": summary.num_frames,
            "bytes_per_frame": summary.num_bytes / summary.num_frames,
            "raw_bytes_per_frame": int(np.prod(store.header.frame_shape)),
            "frames_per_chunk": FRAMES_PER_CHUNK,
            "zstd_level": COMPRESSOR.level,
        },
        "required_frames_per_second": REQUIRED_FRAMES_PER_SECOND,
        "windows": results,
        "limit": "zstd: what it takes alone for the chunks that a window touches is under zstd_only.",
    }
    write_json(config.out, report)
    for result in results:
        rates = {name: f"{result[name]['frames_per_second']:,.0f}" for name in ("store", "memmap", "zarr", "zstd_only")}
        print(f"windows of {result['window']}: frames/s " + ", ".join(f"{name} {rate}" for name, rate in rates.items()))
    print(f"{config.out}")


def measure(config: BenchStore, store: EpisodeStore, folder: Path) -> list[dict[str, Any]]:
    """One result per length of windows."""
    seeds = store.seeds()
    lengths = [store.num_frames(seed) for seed in seeds]
    raw = _write_raw(folder / "frames.raw", store, seeds)
    starts = np.cumsum([0, *lengths])
    arrays = [zarr.open_array(store.episode_path(seed) / "frames", mode="r") for seed in seeds]
    encoder, decoder = Zstd(level=COMPRESSOR.level), Zstd()
    chunks = [
        [encoder.encode(_padded(raw[starts[i] + low : min(starts[i] + low + FRAMES_PER_CHUNK, starts[i + 1])]))
         for low in range(0, lengths[i], FRAMES_PER_CHUNK)]
        for i in range(len(seeds))
    ]  # fmt: skip
    room = np.empty((FRAMES_PER_CHUNK, *store.header.frame_shape), np.uint8)
    results = []
    for window in tqdm(config.windows, desc="measuring"):
        out = np.empty((window, *store.header.frame_shape), np.uint8)

        def from_store(i: int, low: int, high: int, out: np.ndarray = out) -> None:
            store.read_frames(seeds[i], low, high, out=out)

        def from_memmap(i: int, low: int, high: int, out: np.ndarray = out) -> None:
            np.copyto(out, raw[starts[i] + low : starts[i] + high])

        def from_zarr(i: int, low: int, high: int, out: np.ndarray = out) -> None:
            out[...] = arrays[i][low:high]

        def zstd_only(i: int, low: int, high: int) -> None:
            for chunk in chunks[i][low // FRAMES_PER_CHUNK : -(-high // FRAMES_PER_CHUNK)]:
                decoder.decode(chunk, room)

        ways = {"store": from_store, "memmap": from_memmap, "zarr": from_zarr, "zstd_only": zstd_only}
        places = _windows(config, lengths, window)
        _check_same(out, places[:5], from_memmap, from_store)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(config.rounds):
            for name, read in ways.items():
                rates[name].append(_frames_per_second(read, places))
        result: dict[str, Any] = {"window": window}
        for name, values in rates.items():
            result[name] = {"frames_per_second": statistics.median(values), "min": min(values), "max": max(values)}
        result["ratio_to_memmap"] = result["store"]["frames_per_second"] / result["memmap"]["frames_per_second"]
        results.append(result)
    return results


def _windows(config: BenchStore, lengths: list[int], window: int) -> list[Window]:
    generator = np.random.default_rng(config.seed)
    long_enough = [i for i, length in enumerate(lengths) if length >= window]
    if not long_enough:
        raise ValueError(f"No episode has {window} frames; the longest has {max(lengths)}.")
    places = []
    for _ in range(max(1, config.frames_per_round // window)):
        i = int(generator.choice(long_enough))
        low = int(generator.integers(lengths[i] - window + 1))
        places.append((i, low, low + window))
    return places


def _frames_per_second(read: Callable[[int, int, int], None], places: list[Window]) -> float:
    start = time.perf_counter()
    for place in places:
        read(*place)
    return sum(high - low for _, low, high in places) / (time.perf_counter() - start)


def _check_same(
    out: np.ndarray,
    places: list[Window],
    one: Callable[[int, int, int], None],
    other: Callable[[int, int, int], None],
) -> None:
    for place in places:
        one(*place)
        expected = out.copy()
        other(*place)
        np.testing.assert_array_equal(out, expected)


def _write_raw(path: Path, store: EpisodeStore, seeds: list[int]) -> np.ndarray:
    """All frames in one file, mapped into memory."""
    with path.open("wb") as file:
        for seed in seeds:
            file.write(store.read(seed).frames.data)
    return np.memmap(path, np.uint8, mode="r").reshape(-1, *store.header.frame_shape)


def _padded(frames: np.ndarray) -> np.ndarray:
    """A whole chunk, as zarr pads it."""
    chunk = np.zeros((FRAMES_PER_CHUNK, *frames.shape[1:]), np.uint8)
    chunk[: len(frames)] = frames
    return chunk


if __name__ == "__main__":
    main(tyro.cli(BenchStore))
