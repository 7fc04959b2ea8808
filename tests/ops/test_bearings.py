"""Sights of the grid undo what adds up along a walk, wherever on the grid it begins."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from wm_gym.ops.odometry.bearings import (
    GRID_STATE_SIZE,
    SIGHT_SIZE,
    counted_angles,
    filtered_poses,
    grid_angles,
    grid_pose,
)
from wm_gym.poses import motion_between, motion_sizes, moved, placed, relative_to_first

HEADINGS = range(0, 360, 15)  # degrees, of the first frame
STEPS = 300
BIAS = 0.002  # radians, of each motion
CERTAIN = 1e5  # concentration


class Walk(NamedTuple):
    """Walks of `HEADINGS`, one a row: where they are on the grid, as seen from the first frame, and as motions say."""

    on_grid: Tensor
    true: Tensor
    followed: Tensor


@pytest.fixture(scope="module")
def walk() -> Walk:
    g = torch.Generator().manual_seed(2)
    heading = torch.tensor(HEADINGS).double().deg2rad()
    turn = torch.zeros(len(heading))
    on_grid = [some_poses(len(heading), g, heading)]
    for _ in range(STEPS):
        turn = 0.8 * turn + 0.08 * torch.randn(len(heading), generator=g)
        forward, left = 0.12 * torch.rand(len(heading), generator=g), 0.02 * torch.randn(len(heading), generator=g)
        on_grid.append(moved(on_grid[-1], torch.stack([forward, left, turn], dim=-1).double()))
    poses = torch.stack(on_grid, dim=1)
    motions = motion_between(poses[:, :-1], poses[:, 1:])
    wrong = 0.001 * torch.randn(motions.shape, generator=g) + torch.tensor([0.0, 0.0, BIAS])
    return Walk(poses, relative_to_first(poses).float(), along(relative_to_first(poses)[:, 0], motions + wrong))


def some_poses(count: int, g: torch.Generator, heading: Tensor | None = None) -> Tensor:
    """Anywhere on a grid, float64 ``[count, 4]``."""
    if heading is None:
        heading = math.tau * torch.rand(count, generator=g, dtype=torch.float64)
    place = 8 * torch.rand(count, 2, generator=g, dtype=torch.float64) - 4
    return torch.cat([place, heading.cos()[:, None], heading.sin()[:, None]], dim=-1)


def along(first: Tensor, motions: Tensor) -> Tensor:
    """The poses that motions lead to, the first one included, float32."""
    poses = [first]
    for motion in motions.unbind(1):
        poses.append(moved(poses[-1], motion))
    return torch.stack(poses, dim=1).float()


def sights_of(on_grid: Tensor, certain: float, seed: int | None = None) -> Tensor:
    """What can be told of poses, and nothing of the rest; drawn with this concentration, or exact without a seed."""
    angles = grid_angles(on_grid)
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            angles = torch.distributions.VonMises(angles, torch.tensor(certain).double()).sample()
    vectors = certain * torch.stack([angles.cos(), angles.sin()], dim=-1) * counted_angles(on_grid)[..., None]
    return vectors.flatten(-2).float()


def read(walk: Walk, sights: Tensor) -> tuple[Tensor, Tensor]:
    return filtered_poses(nothing_seen(len(sights)), walk.true[:, 0], walk.followed[:, : sights.shape[1] + 1], sights)


def nothing_seen(batch: int) -> Tensor:
    return torch.zeros(batch, GRID_STATE_SIZE)


def errors(walk: Walk, poses: Tensor) -> Tensor:
    """Cells and degrees of the poses after the first one, ``[B, T, 2]``."""
    return motion_sizes(motion_between(walk.true[:, 1 : poses.shape[1] + 1], poses))


def apart(angles: Tensor, others: Tensor) -> Tensor:
    return ((angles - others + math.pi).remainder(math.tau) - math.pi).abs()


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("around", [(0, 0), (3, -2)])
def test_a_quarter_turn_about_a_crossing_of_the_grid_changes_no_angle(quarters: int, around: tuple[int, int]) -> None:
    poses = some_poses(2000, torch.Generator().manual_seed(0))
    turn = torch.tensor(quarters * math.pi / 2, dtype=torch.float64)
    centre = torch.tensor(around).double()
    origin = torch.stack([turn * 0, turn * 0, turn.cos(), turn.sin()]).expand_as(poses)
    turned = placed(origin, poses - torch.nn.functional.pad(centre, (0, 2)))
    turned = turned + torch.nn.functional.pad(centre, (0, 2))
    assert torch.equal(counted_angles(poses), counted_angles(turned))
    assert (apart(grid_angles(poses), grid_angles(turned)) * counted_angles(poses)).max() < 1e-9


def test_whole_cells_change_no_angle_and_parts_of_one_do() -> None:
    poses = some_poses(2000, torch.Generator().manual_seed(0))
    for shift, same in (((5.0, -3.0), True), ((0.3, 0.0), False), ((0.0, 0.3), False)):
        shifted = poses + torch.tensor([*shift, 0.0, 0.0])
        assert torch.equal(counted_angles(poses), counted_angles(shifted))
        off = (apart(grid_angles(poses), grid_angles(shifted)) * counted_angles(poses)).amax(1)
        assert off.max() < 1e-9 if same else off.min() > 0.1


def test_counted_angles_of_poses_that_are_near_are_near() -> None:
    g = torch.Generator().manual_seed(1)
    heading = torch.arange(0, 360, 0.05, dtype=torch.float64).deg2rad()  # over every axis and diagonal
    poses = some_poses(len(heading), g, heading)
    cells, turn = 0.004, 0.003
    near = moved(poses, torch.tensor([cells, cells, turn]).double() * (2 * torch.rand(len(poses), 3, generator=g) - 1))
    off, both = apart(grid_angles(poses), grid_angles(near)), counted_angles(poses) & counted_angles(near)
    most = torch.tensor([4 * turn] + 4 * [math.tau * 2**0.5 * cells])
    assert ((off <= most + 1e-9) | ~both).all()
    assert (off[:, 1:] > 1).any(0).all()  # each of the others jumps where it is not counted


def test_of_the_two_conventions_each_pose_is_told_the_one_that_is_used_of_it() -> None:
    poses = some_poses(5000, torch.Generator().manual_seed(1))
    used, told = counted_angles(poses, margin=0.0), counted_angles(poses)
    assert used[:, 0].all()
    assert torch.equal(used[:, 1], ~used[:, 3])  # one of them, and only one
    assert not (used & ~told).any()
    assert (told[:, 1] & told[:, 3]).float().mean() == pytest.approx(2 * 12.5 / 45, abs=0.03)  # where one takes over


def test_sights_that_tell_nothing_leave_what_motions_tell(walk: Walk) -> None:
    first = some_poses(len(walk.true), torch.Generator().manual_seed(4)).float()
    none = torch.zeros(len(first), 100, SIGHT_SIZE)
    poses, state = filtered_poses(nothing_seen(len(first)), first, walk.followed[:, :101], none)
    torch.testing.assert_close(poses, placed(first[:, None], walk.followed[:, 1:101]), rtol=0, atol=1e-4)
    assert not state.any()


def test_a_grid_that_is_known_but_not_seen_moves_nothing(walk: Walk) -> None:
    poses, state = read(walk, sights_of(walk.on_grid[:, :20], 300.0))
    motions = motion_between(walk.followed[:, 20:80], walk.followed[:, 21:81])
    none = torch.zeros(len(poses), 60, SIGHT_SIZE)
    unseen, later = filtered_poses(state, poses[:, -1], walk.followed[:, 20:81], none)
    torch.testing.assert_close(unseen, along(poses[:, -1], motions)[:, 1:], rtol=0, atol=1e-3)
    torch.testing.assert_close(later[:, :3], state[:, :3], rtol=0, atol=1e-4)


def test_certain_sights_undo_the_drift_of_a_long_walk_from_any_first_pose(walk: Walk) -> None:
    alone = errors(walk, walk.followed[:, 1:])[:, -1]
    assert alone[:, 0].min() > 0.5 and alone[:, 1].min() > 20
    seen = errors(walk, read(walk, sights_of(walk.on_grid[:, :-1], CERTAIN))[0])
    assert seen[:, -1, 0].max() < 0.05 and seen[:, -1, 1].max() < 1
    assert seen[..., 0].max() < 0.05 and seen[..., 1].max() < 1  # nor are they off on the way


def test_uncertain_sights_that_say_how_uncertain_they_are_beat_none(walk: Walk) -> None:
    alone = errors(walk, walk.followed[:, 1:])[:, -1]
    seen = errors(walk, read(walk, sights_of(walk.on_grid[:, :-1], 30.0, seed=0))[0])[:, -1]
    assert (seen.median(0).values < alone.median(0).values / 4).all()
    assert (seen < alone).all()


def test_a_certain_sight_undoes_a_motion_that_was_off_in_any_direction(walk: Walk) -> None:
    seen = sights_of(walk.on_grid[:, :6], CERTAIN)
    poses, state = filtered_poses(nothing_seen(len(seen)), walk.true[:, 0], walk.true[:, :7], seen)
    for off in ([0.008, 0.0, 0.0], [0.0, 0.008, 0.0], [0.0, 0.0, 0.008]):
        wrong = moved(poses[:, -1], torch.tensor(off))
        followed = wrong[:, None].expand(-1, 2, -1)  # stays where it is, as the next sight tells as well
        told = filtered_poses(state, wrong, followed, sights_of(walk.on_grid[:, 6:7], CERTAIN))[0]
        assert motion_between(walk.true[:, 6], told[:, 0]).abs().max() < 0.002


def test_places_alone_tell_how_the_grid_is_turned_once_they_are_apart() -> None:
    """The first sight is uncertain of the heading, and no other tells it; motions are as good as exact."""
    heading = torch.tensor(HEADINGS).double().deg2rad()
    first = some_poses(len(heading), torch.Generator().manual_seed(3), heading)
    steps = torch.tensor([0.1, 0.0, 0.02]).double().expand(len(first), 60, 3)
    true = along(torch.zeros_like(first) + torch.tensor([0.0, 0.0, 1.0, 0.0]), steps)
    sights = sights_of(placed(first[:, None], true.double()), 1e4).unflatten(-1, (-1, 2))
    sights[:, 1:, 0] = 0
    off = 4 * math.radians(4)
    turn = torch.tensor([[math.cos(off), math.sin(off)], [-math.sin(off), math.cos(off)]])
    sights[:, 0, 0] = sights[:, 0, 0] @ turn * 0.003
    sights = sights.flatten(-2)
    state, pose = nothing_seen(len(first)), true[:, 0]
    poses, begun = filtered_poses(state, pose, true[:, :2], sights[:, :1])
    found = filtered_poses(begun, poses[:, 0], true[:, 1:], sights[:, 1:-1])[1]
    wrong = [apart(4 * heading, 4 * told[:, 2].double()).rad2deg() / 4 for told in (begun, found)]
    assert wrong[0].min() > 3.9
    assert wrong[1].max() < 1


@pytest.mark.parametrize("at", [5, 50])
def test_a_sight_that_is_wildly_wrong_hardly_moves_the_pose(walk: Walk, at: int) -> None:
    sights = sights_of(walk.on_grid[:, :60], 300.0, seed=1)
    fine = read(walk, sights)[0]
    for off in (1.0, 2.5):
        turn = torch.tensor([[math.cos(off), math.sin(off)], [-math.sin(off), math.cos(off)]])
        wrong = sights.clone()
        wrong[:, at] = (sights[:, at].unflatten(-1, (-1, 2)) @ turn).flatten(-2)
        moved_by = motion_sizes(motion_between(fine[:, at:], read(walk, wrong)[0][:, at:]))
        # Off by 0.16 to 0.4 cells and 14 to 36 degrees.
        assert moved_by[..., 0].max() < 0.05 and moved_by[..., 1].max() < 1.5


def test_frames_at_once_tell_what_they_tell_one_by_one(walk: Walk) -> None:
    sights = sights_of(walk.on_grid[:, :40], 200.0, seed=3)
    poses, last = read(walk, sights)
    state, pose = nothing_seen(len(sights)), walk.true[:, 0]
    for t in range(40):
        followed = walk.followed[:, t : t + 2]
        told, state = filtered_poses(state, pose, followed, sights[:, t : t + 1])
        pose = told[:, -1]
        torch.testing.assert_close(pose, poses[:, t], rtol=0, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_from_where_the_followed_poses_are_seen_does_not_matter(walk: Walk) -> None:
    sights = sights_of(walk.on_grid[:, :40], 200.0, seed=3)
    poses, state = read(walk, sights)
    elsewhere = placed(some_poses(len(sights), torch.Generator().manual_seed(7)).float()[:, None], walk.followed)
    told, other = filtered_poses(nothing_seen(len(sights)), walk.true[:, 0], elsewhere[:, :41], sights)
    torch.testing.assert_close(told, poses, rtol=0, atol=1e-4)
    torch.testing.assert_close(other, state, rtol=1e-3, atol=1e-4)


def test_rows_are_filtered_each_by_itself(walk: Walk) -> None:
    sights = sights_of(walk.on_grid[:, :10], 200.0, seed=3)
    sights[::2, :4] = 0  # some see the grid later than others
    together, state = read(walk, sights)
    for row in (2, 3):
        part = Walk(*(poses[row : row + 1] for poses in walk))
        alone, own = read(part, sights[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)
        torch.testing.assert_close(own[0], state[row], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("from_elsewhere", [False, True])
def test_the_first_sight_places_the_pose_on_the_grid(from_elsewhere: bool) -> None:
    g = torch.Generator().manual_seed(6)
    heading = torch.arange(0, 360, 2.5, dtype=torch.float64).deg2rad()
    true = some_poses(len(heading), g, heading)
    pose = some_poses(len(true), g) if from_elsewhere else relative_to_first(true[:, None])[:, 0]
    pose = pose.float()
    _, state = filtered_poses(
        nothing_seen(len(true)), pose, pose[:, None].expand(-1, 2, -1), sights_of(true, 50.0)[:, None]
    )
    assert (state[:, -1] == 1).all()
    told = grid_pose(state, pose).double()
    off = torch.atan2(true[:, 3], true[:, 2]) - torch.atan2(told[:, 3], told[:, 2])
    quarters = (off / (math.pi / 2)).round()
    assert (off - quarters * math.pi / 2).abs().max() < 1e-4
    turn = quarters * math.pi / 2
    zero = torch.zeros_like(turn)
    turned = placed(torch.stack([zero, zero, turn.cos(), turn.sin()], dim=-1), told)
    cells = true[:, :2] - turned[:, :2]
    assert (cells - cells.round()).abs().max() < 1e-4
    assert len(set(quarters.tolist())) > 1 and cells.round().abs().max() > 1  # which it cannot tell


def test_a_sight_that_tells_next_to_nothing_is_no_first_sight() -> None:
    true = some_poses(8, torch.Generator().manual_seed(6))
    pose = relative_to_first(true[:, None]).float()
    faint = filtered_poses(nothing_seen(8), pose[:, 0], pose.expand(-1, 2, -1), sights_of(true, 5e-4)[:, None])[1]
    assert not faint.any()
    assert filtered_poses(faint, pose[:, 0], pose.expand(-1, 2, -1), sights_of(true, 1.0)[:, None])[1][:, -1].all()
