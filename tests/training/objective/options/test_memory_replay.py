"""Memory replay: what comes again was there before, hard segments come more often, old ones are forgotten."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.toy_store import make_toy_store
from training.data.dataset import Batch, EpisodeDataset
from training.data.loader import BatchLoader
from training.data.windows import Windows
from training.objective.options.memory_replay import MemoryReplay, Origin

LENGTH = 9


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    make_toy_store(path, range(4))
    return path


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def memory(num_segments: int, fraction: float) -> MemoryReplay:
    return MemoryReplay(num_segments, fraction, seeded(1))


def run(replay: MemoryReplay, store: Path, num_steps: int, streamed: bool = False) -> list[Batch]:
    """Batches of 6 segments, whose losses are their mean brightness."""
    loader, batches = BatchLoader(EpisodeDataset(store, streamed=streamed)), []
    for step in range(num_steps):
        batch = replay.batch(loader, step, 6, LENGTH)
        replay.after_loss(batch.frames.float().mean((2, 3, 4)), torch.ones(6, LENGTH, dtype=torch.bool))
        batches.append(batch)
    loader.close()
    return batches


def segments(batch: Batch, rows: slice) -> list[tuple[bytes, bytes, bytes]]:
    return [
        (frames.numpy().tobytes(), actions.numpy().tobytes(), pose.numpy().tobytes())
        for frames, actions, pose in zip(batch.frames[rows], batch.actions[rows], batch.pose[rows], strict=True)
    ]


def test_the_first_segments_of_a_batch_were_in_the_batches_before(store: Path) -> None:
    batches = run(memory(64, 1 / 3), store, 5)
    seen = set(segments(batches[0], slice(None)))
    for batch in batches[1:]:
        assert set(segments(batch, slice(0, 2))) <= seen
        seen |= set(segments(batch, slice(2, 6)))
    assert {len(batch.frames) for batch in batches} == {6}


def test_the_other_segments_are_those_of_the_loader(store: Path) -> None:
    batches, loader = run(memory(64, 1 / 3), store, 3), BatchLoader(EpisodeDataset(store))
    for step, batch in enumerate(batches[1:], 1):
        assert segments(batch, slice(2, 6)) == segments(loader.batch(step, 4, LENGTH), slice(None))
    loader.close()


def test_only_the_newest_segments_are_remembered(store: Path) -> None:
    batches = run(memory(6, 1 / 3), store, 8)
    fresh = segments(batches[0], slice(None))
    for batch in batches[1:]:
        assert set(segments(batch, slice(0, 2))) <= set(fresh[-6:])
        fresh += segments(batch, slice(2, 6))


def test_a_streamed_dataset_gives_the_same(store: Path) -> None:
    for resident, streamed in zip(run(memory(64, 0.5), store, 4), run(memory(64, 0.5), store, 4, True), strict=True):
        assert segments(resident, slice(None)) == segments(streamed, slice(None))


def remembering(losses: list[float]) -> MemoryReplay:
    replay = memory(8, 0.2)
    windows = Windows(torch.zeros(len(losses), dtype=torch.int64), torch.arange(len(losses)))
    replay._length = LENGTH
    replay.remember(Origin(torch.zeros(0, dtype=torch.int64), windows), torch.tensor(losses))
    return replay


def drawn(replay: MemoryReplay, store: Path, num_draws: int) -> Counter[int]:
    loader, slots = BatchLoader(EpisodeDataset(store)), []
    for _ in range(num_draws):
        replay.batch(loader, 0, 5, LENGTH)
        assert replay._origin is not None
        slots.append(replay._origin.slots)
    loader.close()
    return Counter(torch.cat(slots).tolist())


def test_segments_are_drawn_by_their_loss_to_the_power_of_three_fifths(store: Path) -> None:
    counts = drawn(remembering([0.1, 0.2, 0.4, 0.0, float("nan")]), store, 1500)
    shares = torch.tensor([0.1, 0.2, 0.4]).pow(0.6)
    expected = (shares / shares.sum()).tolist()
    assert [counts[slot] / 1500 for slot in range(3)] == pytest.approx(expected, abs=0.04)
    assert counts[5] == counts[6] == counts[7] == 0, "nothing was put there yet"


def test_a_segment_that_was_drawn_again_gets_its_new_loss(store: Path) -> None:
    replay = remembering([0.1, 0.4])
    nothing = torch.zeros(0, dtype=torch.int64)
    replay.remember(Origin(torch.tensor([1]), Windows(nothing, nothing)), torch.tensor([0.0]))
    assert drawn(replay, store, 100)[0] == 100


def test_segments_of_another_length_are_forgotten(store: Path) -> None:
    replay, loader = remembering([0.1, 0.4, 0.2]), BatchLoader(EpisodeDataset(store))
    batch = replay.batch(loader, 0, 5, LENGTH + 1)
    assert replay._origin is not None and len(replay._origin.slots) == 0
    assert batch.frames.shape[:2] == (5, LENGTH + 1)
    loader.close()


def test_what_was_saved_goes_on_as_it_would_have(store: Path) -> None:
    replay, other = memory(64, 0.5), memory(64, 0.5)
    run(replay, store, 3)
    other.load_state_dict({name: tensor.clone() for name, tensor in replay.state_dict().items()})
    other._generator.set_state(replay._generator.get_state())
    for one, twin in zip(run(replay, store, 3), run(other, store, 3), strict=True):
        assert segments(one, slice(None)) == segments(twin, slice(None))
