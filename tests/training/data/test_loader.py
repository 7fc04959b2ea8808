"""Batches that are ready in time are those that would have been made at once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toy_store import make_toy_store
from training.benchmarks.loader import BenchConfig, run
from training.data.dataset import Batch, EpisodeDataset
from training.data.loader import BatchLoader, bytes_for_frames, open_dataset

FRAME_BYTES = 16 * 16 * 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    make_toy_store(path, range(4), max_episode_steps=120)
    make_toy_store(path, [4], max_episode_steps=60)
    return path


@pytest.fixture(params=["resident", "streamed"])
def dataset(request: pytest.FixtureRequest, store: Path) -> EpisodeDataset:
    return EpisodeDataset(store, streamed=request.param == "streamed")


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(left, right) for left, right in zip(vars(a).values(), vars(b).values(), strict=True))


def batches(loader: BatchLoader, steps: range | list[int], length: int = 70) -> Iterator[Batch]:
    for step in steps:
        yield loader.batch(step, 6, length)
    loader.close()


def assert_equal_batches(first: Iterator[Batch], second: Iterator[Batch]) -> None:
    assert all(equal(left, right) for left, right in zip(first, second, strict=True))


def test_a_streamed_dataset_gives_the_batches_of_one_in_memory(store: Path) -> None:
    in_memory, streamed = EpisodeDataset(store), EpisodeDataset(store, streamed=True)
    assert len(streamed.frames) == 0
    assert (streamed.num_frames, streamed.seeds) == (in_memory.num_frames, in_memory.seeds)
    for length in (1, 7, 49, 50, 51, 61, 121):
        left, right = (d.sample(9, length, torch.Generator().manual_seed(length)) for d in (in_memory, streamed))
        assert equal(left, right)


def test_batches_depend_on_seed_and_step_whatever_the_number_of_threads(store: Path) -> None:
    one = BatchLoader(EpisodeDataset(store, streamed=True, num_threads=1), seed=3, num_prefetched=0)
    many = BatchLoader(EpisodeDataset(store, streamed=True, num_threads=7), seed=3, num_prefetched=5)
    in_memory = BatchLoader(EpisodeDataset(store), seed=3)
    expected = list(batches(one, range(12)))
    assert_equal_batches(iter(expected), batches(many, range(12)))
    assert_equal_batches(iter(expected), batches(in_memory, range(12)))
    assert not equal(expected[0], expected[1])


def test_other_seeds_and_ranks_give_other_batches(dataset: EpisodeDataset) -> None:
    first, *others = (
        next(batches(BatchLoader(dataset, seed=seed, rank=rank), [5])) for seed, rank in ((0, 0), (1, 0), (0, 1))
    )
    assert not any(equal(first, other) for other in others)


def test_a_loader_that_starts_in_the_middle_goes_on_as_the_first_would_have(dataset: EpisodeDataset) -> None:
    expected = list(batches(BatchLoader(dataset), range(8)))
    assert_equal_batches(iter(expected[5:]), batches(BatchLoader(dataset), range(5, 8)))


def test_a_change_of_size_or_a_jump_gives_what_was_asked_for(dataset: EpisodeDataset) -> None:
    direct = BatchLoader(dataset, num_prefetched=0)
    loader = BatchLoader(dataset)
    for step, size, length in ((0, 4, 20), (1, 4, 20), (2, 3, 40), (3, 3, 40), (9, 3, 40), (1, 4, 20)):
        assert equal(loader.batch(step, size, length), direct.batch(step, size, length))
    loader.close()


def test_refresh_follows_a_store_that_is_being_written(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", [1, 3])
    loader = BatchLoader(EpisodeDataset(tmp_path / "store", streamed=True))
    loader.batch(0, 8, 20)
    known = loader.dataset.seeds
    before = loader.batch(1, 8, 20)
    make_toy_store(tmp_path / "store", [0, 2])
    assert loader.refresh() == 2
    assert loader.refresh() == 0
    after = loader.batch(2, 8, 20)
    fresh = BatchLoader(EpisodeDataset(tmp_path / "store"))
    assert equal(after, fresh.batch(2, 8, 20))
    assert not equal(before, fresh.batch(1, 8, 20))
    as_then = BatchLoader(EpisodeDataset(tmp_path / "store", seeds=known))
    assert equal(before, as_then.batch(1, 8, 20)), "the seeds known then make the same batch again"


def test_batches_are_made_ahead_while_the_caller_is_busy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = EpisodeDataset(store)
    sample = dataset.sample

    def slow_sample(*arguments: object) -> Batch:
        time.sleep(0.2)
        return sample(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "sample", slow_sample)
    loader = BatchLoader(dataset, num_prefetched=2)
    loader.batch(0, 2, 10)
    time.sleep(0.6)
    started = time.perf_counter()
    loader.batch(1, 2, 10)
    loader.batch(2, 2, 10)
    assert time.perf_counter() - started < 0.15
    loader.close()


def test_damage_that_is_met_while_streaming_names_the_episode(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", [0])
    loader = BatchLoader(EpisodeDataset(tmp_path / "store", streamed=True))
    os.truncate(tmp_path / "store/train/episode_0000000000/frames/c/0/0/0/0", 100)
    with pytest.raises(ValueError, match=r"episode_0000000000 is damaged \(frames: "):
        loader.batch(0, 2, 10)
    loader.close()


def test_frames_are_kept_in_memory_only_if_they_fit_with_room_to_grow(store: Path) -> None:
    num_bytes = (4 * 121 + 61) * FRAME_BYTES
    assert not open_dataset(store, "cpu", max_bytes=2 * num_bytes).streamed
    streamed = open_dataset(store, "cpu", max_bytes=2 * num_bytes - 1)
    assert streamed.streamed
    assert streamed.num_frames == 4 * 121 + 61


def test_processes_of_one_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bytes_for_frames("cpu")
    assert 0 < whole < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert bytes_for_frames("cpu") == pytest.approx(whole / 4, rel=1e-6)


def test_bad_arguments_are_value_errors(store: Path) -> None:
    dataset = EpisodeDataset(store)
    with pytest.raises(ValueError, match="must not be negative"):
        BatchLoader(dataset, seed=-1)
    with pytest.raises(ValueError, match="cuda:99"):
        BatchLoader(dataset, "cuda:99")
    with pytest.raises(ValueError, match="has no episode of seed 77"):
        EpisodeDataset(store, seeds=[1, 77])
    loader = BatchLoader(dataset)
    with pytest.raises(ValueError, match="from 1 to 121 frames"):
        loader.batch(0, 2, 122)
    loader.close()


def test_the_benchmark_measures_all_ways_to_feed(store: Path) -> None:
    record = run(BenchConfig(store, device="cpu", batch_size=4, length=40, seconds=0.2))
    assert set(record["frames_per_second"]) == {"streamed", "resident"}
    assert all(rate > 0 for rate in record["frames_per_second"].values())
    assert np.isfinite(record["frames"])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["resident", "streamed", "on_gpu"])
def test_batches_on_a_gpu_are_those_of_the_cpu(store: Path, kind: str) -> None:
    on_cpu = EpisodeDataset(store)
    dataset = EpisodeDataset(store, device="cuda" if kind == "on_gpu" else "cpu", streamed=kind == "streamed")
    loader = BatchLoader(dataset, "cuda")
    for step, expected in enumerate(batches(BatchLoader(on_cpu), range(20))):
        batch = loader.batch(step, 6, 70)
        assert batch.frames.is_cuda
        assert equal(Batch(**{name: tensor.cpu() for name, tensor in vars(batch).items()}), expected)
    loader.close()
