"""Probes find what is in a memory, and nothing where there is nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.probes.probe_model import Probe, ProbeData, ProbeTraining, predict, train_probe

OPTIONS = ProbeTraining(num_readouts=2, width=32, learning_rate=1e-3, batch_size=32, max_epochs=30, patience=30)
NUM_POSITIONS = 6


def samples(count: int, seed: int, hidden: bool = False) -> ProbeData:
    """States of one layer (two blocks, two heads) in whose entries the walls stand, unless they are hidden."""
    generator = torch.Generator().manual_seed(seed)
    walls = torch.randint(0, 2, (count, NUM_POSITIONS), generator=generator).float()
    state = torch.randn(count, 2, 2, 4, 4, generator=generator)
    if not hidden:
        state[:, 0, :, 0, :3] += (4 * walls - 2).reshape(count, 2, 3)
    objects = torch.stack([walls[:, :2], 1 - walls[:, :2]], 1)
    inside = torch.ones(count, NUM_POSITIONS, dtype=torch.bool)
    return ProbeData((state.bfloat16(),), walls, inside, objects, told=torch.zeros(count, 0))


def accuracy(hidden: bool) -> float:
    options = ProbeTraining(num_readouts=8, width=64, learning_rate=1e-3, batch_size=32, max_epochs=15)
    probe = train_probe(samples(384, 0, hidden), samples(64, 1, hidden), options)
    test = samples(200, 2, hidden)
    return float((predict(probe, test, 64)[0] == test.walls.bool()).float().mean())


def test_a_probe_reads_what_the_state_holds_and_guesses_what_it_does_not() -> None:
    assert accuracy(hidden=False) > 0.85
    assert 0.4 < accuracy(hidden=True) < 0.6


def test_the_same_seed_trains_the_same_probe_and_leaves_other_randomness_alone() -> None:
    data = samples(64, 0)
    torch.manual_seed(7)
    first = train_probe(data, data, OPTIONS)
    drawn = torch.rand(1)
    second = train_probe(data, data, OPTIONS)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_positions_outside_the_maze_do_not_count() -> None:
    data = samples(64, 0)
    inside = data.inside.clone()
    inside[:, 3:] = False
    noise = torch.where(inside, data.walls, 1 - data.walls)
    probes = [
        train_probe(replace(data, walls=walls, inside=inside), data.rows(torch.arange(8)), OPTIONS)
        for walls in (data.walls, noise)
    ]
    for a, b in zip(*(probe.parameters() for probe in probes), strict=True):
        assert torch.equal(a, b)


def test_a_probe_of_frames_has_their_pixels() -> None:
    frames = torch.randint(0, 255, (10, 8, 8, 3), dtype=torch.uint8)
    data = replace(samples(10, 0), inputs=(frames,))
    probe = Probe(data, OPTIONS)
    walls, objects = probe.readout(data.inputs), probe(data.inputs, data.told)[1]
    assert walls.shape == (10, 192)
    assert walls.min() >= -1 and walls.max() <= 1
    assert objects.shape == (10, 2, 2)


def test_what_a_probe_is_told_it_can_use() -> None:
    data = [replace(samples(200, seed, hidden=True), told=samples(200, seed, hidden=True).walls) for seed in range(3)]
    probe = train_probe(data[0], data[1], OPTIONS)
    assert (predict(probe, data[2], 64)[0] == data[2].walls.bool()).float().mean() > 0.75


def test_samples_are_joined_in_order() -> None:
    data = samples(6, 0)
    joined = ProbeData.joined([data.rows(torch.arange(2)), data.rows(torch.arange(2, 6))])
    assert len(joined) == 6
    assert torch.equal(joined.inputs[0], data.inputs[0]) and torch.equal(joined.objects, data.objects)


@pytest.mark.parametrize("count", [1, 5])
def test_readouts_are_bilinear_in_the_state(count: int) -> None:
    data = samples(count, 0)
    readout = Probe(data, replace(OPTIONS, num_readouts=3)).readout
    doubled = tuple(2 * part for part in data.inputs)
    with torch.no_grad():
        assert torch.allclose(readout(doubled), 2 * readout(data.inputs), atol=1e-5)
        assert readout(data.inputs).shape == (count, 2 * 2 * 3)
