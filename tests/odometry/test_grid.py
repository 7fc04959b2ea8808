"""Where walls stand on a grid, a dream reads from its map which cells are walls, and these push the agent out again."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import GRID_ODOMETRY, PLANAR_POSE, SMALL_MAP, tiny_model
from wm_gym.odometry.grid import AROUND, GridOdometry, in_cell, pushed_out, walls_around
from wm_gym.odometry.visual import VisualOdometry

MAP = {"pose": PLANAR_POSE, "hide_noise": True, "map": SMALL_MAP}
RADIUS = torch.tensor(0.1)


@pytest.fixture(scope="module")
def odometry() -> GridOdometry:
    torch.manual_seed(0)
    made = VisualOdometry(tiny_model(**MAP, odometry=GRID_ODOMETRY).config)
    assert isinstance(made.by_map, GridOdometry)
    return made.by_map.requires_grad_(False)


def pose(x: float, y: float, degrees: float) -> torch.Tensor:
    angle = math.radians(degrees)
    return torch.tensor([[[x, y, math.cos(angle), math.sin(angle)]]])


def inputs(odometry: GridOdometry, rows: int = 2):
    g = torch.Generator().manual_seed(3)
    place_map = torch.rand(rows, 24 * 24, 4, generator=g)
    poses = torch.stack([torch.cat([torch.randn(2, generator=g), torch.tensor([0.6, 0.8])]) for _ in range(rows)])
    size = odometry.straight.in_features - 6
    return place_map, poses[:, None], 0.1 * torch.randn(rows, 1, 6, generator=g), torch.rand(rows, 1, size, generator=g)


@pytest.mark.parametrize(
    ("x", "y", "degrees", "along", "across", "angle"),
    [
        (2.75, 4.5, 10, 0.25, 0.0, 10),
        (2.75, 4.5, 100, 0.0, -0.25, 10),
        (2.75, 4.5, -170, -0.25, 0.0, 10),
        (2.75, 4.25, -80, 0.25, 0.25, 10),
        (-0.25, 4.5, 44, 0.25, 0.0, 44),
        (-0.25, 4.5, 46, 0.0, -0.25, -44),
    ],
)
def test_a_place_is_told_in_directions_of_the_grid(
    x: float, y: float, degrees: float, along: float, across: float, angle: float
) -> None:
    place = in_cell(pose(x, y, degrees))
    told = [place.along.item(), place.across.item(), math.degrees(place.angle.item())]
    assert told == pytest.approx([along, across, angle], abs=1e-3)


def test_walls_are_those_of_the_layout_as_they_lie_around_the_heading() -> None:
    layout = (torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    for degrees in (5, 95, 185, 275, 40, -40):
        here = pose(2.3, 1.6, degrees)
        place = in_cell(here)
        told = walls_around(layout, here, place)[0, 0]
        axis = place.axis.item()
        for number, (ahead, left) in enumerate(AROUND):
            x = 2.5 + ahead * math.cos(axis) - left * math.sin(axis)
            y = 1.5 + ahead * math.sin(axis) + left * math.cos(axis)
            assert told[number] == layout[0, math.floor(y), math.floor(x)], (degrees, ahead, left)
    assert walls_around(layout, pose(0.5, 0.5, 180), in_cell(pose(0.5, 0.5, 180)))[0, 0, 0] == 1  # outside


def test_a_disc_is_pushed_out_of_every_wall_and_no_farther() -> None:
    g = torch.Generator().manual_seed(0)
    count = 4000
    walls = (torch.rand(count, 8, generator=g) < 0.4).float()
    along, across = torch.rand(2, count, generator=g) - 0.5
    at, by, depths = pushed_out(along, across, walls, RADIUS)
    for number, (ahead, left) in enumerate(AROUND):
        distance = torch.hypot(at - at.clamp(ahead - 0.5, ahead + 0.5), by - by.clamp(left - 0.5, left + 0.5))
        assert (distance[walls[:, number] > 0] > 0.1 - 1e-3).all(), (ahead, left)
    free = depths.sum(-1) == 0
    assert 0.2 < free.float().mean() < 0.9
    assert torch.equal(at[free], along[free]) and torch.equal(by[free], across[free])
    assert (torch.hypot(at - along, by - across) <= depths.sum(-1) + 1e-6).all()


def test_beside_a_corner_it_slides_and_does_not_stop() -> None:
    walls = torch.zeros(1, 8)
    walls[0, AROUND.index((1, 1))] = 1
    at, by, _ = pushed_out(torch.tensor([0.45]), torch.tensor([0.45]), walls, RADIUS)
    assert at.item() == pytest.approx(by.item()) and at.item() < 0.45
    assert math.hypot(0.5 - at.item(), 0.5 - by.item()) == pytest.approx(0.1, abs=1e-4)


def test_a_motion_slides_along_the_wall_that_it_meets_on_its_way() -> None:
    torch.manual_seed(0)
    made = VisualOdometry(tiny_model(**MAP, odometry=GRID_ODOMETRY).config).by_map
    assert isinstance(made, GridOdometry)
    with torch.no_grad():
        for layer in (made.straight, made.free, made.out):  # nothing learned: the motion is always the same
            layer.weight.zero_()
            layer.bias.zero_()
        made.straight.bias.copy_(torch.tensor([0.4, 0.2, 0.0]))
    place = in_cell(pose(2.5, 1.5, 0))
    recent, actions = torch.zeros(1, 1, 6), torch.zeros(1, 1, made.straight.in_features - 6)
    walls = torch.zeros(1, 1, 8)
    with torch.no_grad():
        told = made.moves(place, walls, recent, actions)[0, 0]
        assert told.tolist() == pytest.approx([0.4, 0.2, 0.0], abs=1e-6)
        walls[..., AROUND.index((1, 0))] = 1
        told = made.moves(place, walls, recent, actions)[0, 0]
        assert told.tolist() == pytest.approx([0.5 - made.radius.item(), 0.2, 0.0], abs=1e-6)
        made.straight.bias.copy_(torch.tensor([0.4, 0.0, math.pi / 2]))  # round a bend
        told = made.moves(place, torch.zeros(1, 1, 8), recent, actions)[0, 0]
        assert 0.1 < told[1] < told[0] < 0.4 and told[2].item() == pytest.approx(math.pi / 2, abs=1e-6)


def test_the_grid_may_be_turned_by_quarters_and_shifted_by_cells(odometry: GridOdometry) -> None:
    place_map, poses, recent, actions = inputs(odometry)
    known = torch.ones(2, 1, 1)
    turns = [pose(1.3, 2.2, degrees).expand(2, 1, 4) for degrees in (20, 110)]
    turns[1] = pose(-2.2, 1.3, 110).expand(2, 1, 4)  # the whole grid turned about a whole number
    shifted = turns[0] + torch.tensor([3.0, -5.0, 0.0, 0.0])
    told = [odometry(place_map, poses, recent, actions, grid=torch.cat([g, known], -1)) for g in (*turns, shifted)]
    torch.testing.assert_close(told[1], told[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(told[2], told[0], atol=1e-5, rtol=1e-4)
    other = turns[0] + torch.tensor([0.33, 0.0, 0.0, 0.0])
    assert not torch.allclose(odometry(place_map, poses, recent, actions, grid=torch.cat([other, known], -1)), told[0])


def test_where_the_grid_is_unknown_no_wall_is(odometry: GridOdometry) -> None:
    place_map, poses, recent, actions = inputs(odometry)
    unknown = torch.cat([poses, torch.zeros(2, 1, 1)], -1)
    place = in_cell(poses)
    free = odometry.moves(place, torch.zeros(2, 1, 8), recent, actions)
    assert torch.equal(odometry(place_map, poses, recent, actions, grid=unknown), free)
    assert torch.equal(odometry(place_map, poses, recent, actions), free)


def test_what_may_be_a_wall_or_not_is_free(odometry: GridOdometry, monkeypatch: pytest.MonkeyPatch) -> None:
    place_map, poses, recent, actions = inputs(odometry)
    grid = torch.cat([poses, torch.ones(2, 1, 1)], -1)
    free = odometry.moves(in_cell(poses), torch.zeros(2, 1, 8), recent, actions)
    walls = odometry.moves(in_cell(poses), torch.ones(2, 1, 8), recent, actions)
    for logit, expected in ((3.0, free), (5.0, walls)):
        monkeypatch.setattr(GridOdometry, "walls", lambda *_, logit=logit: torch.full((2, 1, 8), logit))
        assert torch.equal(odometry(place_map, poses, recent, actions, grid=grid), expected)


def test_walls_are_read_from_the_cells_around_and_nowhere_else(odometry: GridOdometry) -> None:
    cell = 0.3
    place_map = torch.zeros(1, 24, 24, 4)
    here = pose(0.2, -0.1, 30)
    place = in_cell(here)
    none = odometry.walls(place_map.flatten(1, 2), here, place)
    for number, (ahead, left) in enumerate(AROUND):
        # The middle of that cell on the map, whose axes are the grid's here.
        x = here[0, 0, 0] - place.along + ahead
        y = here[0, 0, 1] - place.across + left
        written = place_map.clone()
        written[0, round(x.item() / cell) % 24, round(y.item() / cell) % 24] = 1.0
        changed = (odometry.walls(written.flatten(1, 2), here, place) - none)[0, 0].abs()
        assert changed.argmax() == number and changed[number] > 0
    far = place_map.clone()
    far[0, 10:14, 10:14] = 1.0
    assert torch.equal(odometry.walls(far.flatten(1, 2), here, place), none)
