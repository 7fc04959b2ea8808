"""A probe reads walls and objects from a map in which they are planted, wherever it is asked, and else none."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.nn.test_map_memory import MAP, walk
from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, tiny_model
from training.probes.map_probe import MapProbe, written_map, written_middle
from training.probes.maze_labels import grid_around
from training.probes.memories import Walk, memories_after
from training.probes.probe_model import ProbeData, ProbeTraining, predict, train_probe
from training.probes.readouts import MapReading
from wm_gym.nn.map_memory import cells_at
from wm_gym.poses import moved

SIDE, CELL, VALUES = 24, 0.3, 3  # of the map
RADIUS = 2
GRID = torch.tensor(grid_around(RADIUS), dtype=torch.float32)
OPTIONS = ProbeTraining(width=24, dropout=0.1, learning_rate=3e-3, batch_size=8, max_epochs=12)
MAKE = partial(MapProbe, map_cell=CELL)


def planted(count: int, seed: int, hidden: bool = False) -> ProbeData:
    """Maps asked from anywhere, into which walls are written as one value and the object as another, unless hidden."""
    generator = torch.Generator().manual_seed(seed)
    motion = torch.rand(count, 3, generator=generator) * torch.tensor([4.0, 4.0, math.tau]) - 2
    seats = moved(torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(count, 4), motion)
    walls = torch.randint(0, 2, (count, len(GRID)), generator=generator).float()
    place = torch.randint(0, len(GRID), (count, 1), generator=generator)
    shown = torch.stack([2 * walls - 1, torch.zeros_like(walls).scatter_(1, place, 1.0), torch.ones_like(walls)], -1)
    numbers = torch.cat([torch.zeros_like(shown) if hidden else shown, torch.ones(count, len(GRID), 1)], -1)
    weight = 0.5 + 2 * torch.rand(count, len(GRID), 1, generator=generator)
    maps = torch.stack([written(*sample) for sample in zip(seats, numbers * weight, strict=True)])
    inside = torch.ones(count, len(GRID), dtype=torch.bool)
    return ProbeData((maps, seats), walls, inside, GRID[place], torch.zeros(count, 0))


def written(seat: Tensor, numbers: Tensor, grid: Tensor = GRID) -> Tensor:
    """A map with these numbers [P, V + 1] at the positions of a grid around a seat."""
    motions = torch.cat([grid, torch.zeros(len(grid), 1)], 1)
    places, shares = cells_at(moved(seat.expand(len(grid), 4), motions)[:, :2] / CELL, SIDE)
    portions = numbers[:, None] * shares[..., None]
    return torch.zeros(SIDE**2, VALUES + 1).index_add_(0, places.flatten(), portions.flatten(0, 1))


def test_a_probe_finds_walls_and_objects_that_are_written_and_none_where_nothing_is() -> None:
    test = planted(40, 2)
    walls, objects = predict(train_probe(planted(120, 0), planted(20, 1), OPTIONS, make=MAKE), test, 16)
    assert (walls == test.walls.bool()).float().mean() > 0.95
    assert (objects - test.objects).norm(dim=-1).mean() < 0.5

    test, few = planted(40, 2, hidden=True), replace(OPTIONS, max_epochs=2)
    walls, objects = predict(train_probe(planted(120, 0, True), planted(20, 1, True), few, make=MAKE), test, 16)
    assert 0.4 < (walls == test.walls.bool()).float().mean() < 0.6
    assert (objects - test.objects).norm(dim=-1).mean() > 1.5


@pytest.mark.parametrize("pose", [[0.0, 0.0, 1.0, 0.0], [-1.3, 2.2, math.cos(2.0), math.sin(2.0)]])
def test_what_is_written_at_one_place_is_found_in_every_patch_that_reaches_it(pose: list[float]) -> None:
    seat, asked = torch.tensor(pose), 8  # (forward, left) = (-1, 1)
    probe = MapProbe(planted(1, 0), OPTIONS, CELL)
    numbers = torch.zeros(len(GRID), VALUES + 1)
    numbers[asked] = 50.0
    weight = probe.around(written(seat, numbers)[None], seat[None])[0, ..., -1]  # [P, Q]
    found = weight - weight.min() > 1e-3
    distance = (GRID[:, None] + probe.patch - GRID[asked]).norm(dim=-1)
    assert found[distance < 0.1].all() and not found[distance > 2 * CELL * 2**0.5].any()
    assert weight[asked].argmax() == len(probe.patch) // 2  # the middle of its own patch


def test_an_answer_is_the_same_however_the_map_is_turned() -> None:
    """A quarter turn of the seat turns the answers: position (forward, left) becomes (-left, forward)."""
    data = planted(3, 0)
    torch.manual_seed(0)
    probe = MapProbe(data, OPTIONS, CELL).eval()
    maps, seats = data.inputs
    x, y, cos, sin = seats.unbind(-1)
    with torch.no_grad():
        upright, _ = probe((maps, seats), data.told)
        turned, _ = probe((maps, torch.stack([x, y, sin, -cos], -1)), data.told)
    side = 2 * RADIUS + 1
    torch.testing.assert_close(turned.unflatten(1, (side, side)), upright.unflatten(1, (side, side)).rot90(1, (1, 2)))
    assert upright.std() > 0


@pytest.mark.parametrize("turn", [0.0, 2.5])
def test_objects_are_looked_for_on_the_side_that_was_written_and_not_where_the_map_repeats_itself(turn: float) -> None:
    """What was written reaches from one cell behind the seat to five ahead; the map repeats itself every 7.2 cells."""
    reach = torch.tensor(grid_around(5), dtype=torch.float32)
    seat = torch.tensor([[0.4, -3.0, math.cos(turn), math.sin(turn)]])
    ahead = ((reach[:, 0] >= -1) & (reach[:, 1].abs() <= 2))[:, None].float().expand(-1, VALUES + 1)
    maps = written(seat[0], ahead, reach)[None]
    data = ProbeData((maps, seat), torch.zeros(1, 121), torch.ones(1, 121) > 0, torch.zeros(1, 1, 2), torch.zeros(1, 0))
    objects = MapProbe(data, OPTIONS, CELL).split(torch.zeros(1, 121, 2), data.inputs)[1][0, 0]
    looked_for = [tuple(place) for place in reach[objects == 0].int().tolist()]
    assert {(5, 0), (2, 0), (-1, 0)} <= set(looked_for)
    assert not {(-3, 0), (-4, 0), (-5, 0)} & set(looked_for)


def test_the_middle_of_a_map_that_is_written_across_its_edge_is_near_the_edge() -> None:
    weights = torch.zeros(1, SIDE, SIDE)
    weights[:, [22, 23, 0, 1, 2], 6] = torch.tensor([9.0, 1.0, 2.0, 1.0, 5.0])
    middle = written_middle(weights.flatten(1))[0] * SIDE
    torch.testing.assert_close(middle, torch.tensor([0.0, 6.0]), atol=0.5, rtol=0)


def test_the_newest_frame_is_on_the_map_that_is_read_and_the_state_stays_as_it_is() -> None:
    model = tiny_model(**MAP)
    frames, actions, pose = walk(frames=6)
    with torch.no_grad():
        state = model.prefill(model.initial_state(2), frames[:, :5], actions[:, :4], pose[:, :5])
        before = {name: value.clone() for name, value in state.to_tensors().items()}
        read = written_map(model, state)
        after = model.prefill(state, frames[:, 5:], actions[:, 4:], pose[:, 5:])
    torch.testing.assert_close(read, after.layers[1].place_map)
    assert all(torch.equal(value, before[name]) for name, value in state.to_tensors().items())
    assert not torch.equal(read, before["layers.1.place_map"])


def test_sources_hold_less_and_less_of_the_walk() -> None:
    model = tiny_model(**MAP)
    frames, actions, pose = walk(frames=12)
    inputs = MapReading(model.config, "start").inputs(model, Walk(frames, actions, pose), [6, 12])
    assert list(inputs) == ["state", "cleared_state", "last_frame", "weights"]
    total = {source: float(noted[12][0][..., -1].sum()) for source, noted in inputs.items()}
    assert total["state"] == total["weights"] > 2 * total["cleared_state"] > 4 * total["last_frame"] > 0
    assert inputs["state"][12][0][..., :-1].abs().sum() > 0
    assert inputs["weights"][12][0][..., :-1].abs().sum() == 0
    assert torch.equal(inputs["state"][6][1], torch.tensor([[0.0, 0.0, 1.0, 0.0]]).expand(2, 4))
    from_agent = MapReading(model.config, "agent").inputs(model, Walk(frames, actions, pose), [12])["state"][12]
    assert torch.equal(from_agent[1], pose[:, 11])


def test_a_map_told_by_odometry_is_read_at_the_poses_that_it_was_written_at() -> None:
    model = tiny_model(odometry=LEARNED_ODOMETRY, **MAP)
    frames, actions, _ = walk(frames=8)
    noted = MapReading(model.config, "agent").inputs(model, Walk(frames, actions, None), [8])
    told = memories_after(
        model, Walk(frames, actions, None), [8], "", note=lambda state, *_: (written_map(model, state),)
    )
    torch.testing.assert_close(noted["state"][8][0], told[8][0])
    cleared, whole = noted["cleared_state"][8], noted["state"][8]
    assert torch.equal(cleared[1], whole[1])  # its poses count from the first frame too


def test_a_model_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps no map"):
        MapReading(tiny_model(pose=PLANAR_POSE).config, "start")
