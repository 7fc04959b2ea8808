"""Planar poses: seen from another pose, and moved on."""

import math

import torch

from wm_gym.poses import (
    drift_steps,
    motion_between,
    motion_sizes,
    moved,
    placed,
    relative_to,
    relative_to_first,
    size_quantiles,
)


def _random_poses(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(*shape, 1, generator=generator) * math.tau
    return torch.cat([torch.randn(*shape, 2, generator=generator) * 5, angle.cos(), angle.sin()], -1)


def test_the_first_pose_is_the_origin() -> None:
    relative = relative_to_first(_random_poses(3, 7))
    torch.testing.assert_close(relative[:, 0], torch.tensor([[0.0, 0.0, 1.0, 0.0]]).expand(3, 4))


def test_forward_is_where_the_agent_looks_and_left_is_counter_clockwise() -> None:
    north = torch.tensor([2.0, 3.0, 0.0, 1.0])
    torch.testing.assert_close(
        relative_to(torch.tensor([2.0, 5.0, -1.0, 0.0]), north), torch.tensor([2.0, 0.0, 0.0, 1.0])
    )
    motion = motion_between(north, torch.tensor([1.0, 3.0, -1.0, 0.0]))
    torch.testing.assert_close(motion, torch.tensor([0.0, 1.0, math.pi / 2]))


def test_moving_by_the_motion_between_two_poses_leads_from_one_to_the_other() -> None:
    poses = _random_poses(50)
    torch.testing.assert_close(moved(poses[:-1], motion_between(poses[:-1], poses[1:])), poses[1:])


def test_relative_poses_do_not_depend_on_where_the_world_has_its_origin() -> None:
    poses, elsewhere = _random_poses(9), _random_poses(1)
    shifted = relative_to(poses, elsewhere)
    torch.testing.assert_close(relative_to_first(shifted), relative_to_first(poses), atol=1e-5, rtol=1e-5)


def test_poses_seen_from_an_origin_are_placed_where_they_were() -> None:
    angles = torch.linspace(0, 6, 7)
    poses = torch.stack([angles, 1 - angles.square(), angles.cos(), angles.sin()], dim=-1)
    torch.testing.assert_close(placed(poses[2], relative_to(poses, poses[2])), poses, atol=1e-5, rtol=1e-5)


def test_a_thousand_motions_leave_a_heading_of_unit_length() -> None:
    pose, motion = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.tensor([0.1, 0.0, 0.37])
    for _ in range(1000):
        pose = moved(pose, motion)
    torch.testing.assert_close(pose[2:].norm(), torch.tensor(1.0))


def test_sizes_are_cells_of_way_and_degrees_of_turn_either_way() -> None:
    sizes = motion_sizes(torch.tensor([[3.0, -4.0, math.pi / 2], [0.0, 0.0, -math.pi]]))
    torch.testing.assert_close(sizes, torch.tensor([[5.0, 90.0], [0.0, 180.0]]))
    found = size_quantiles(torch.arange(101.0)[:, None] * torch.tensor([0.1, 1.0]))
    assert found == {
        "cells": {"median": 5.0, "p90": 9.0, "p99": 9.9},
        "degrees": {"median": 50.0, "p90": 90.0, "p99": 99.0},
    }


def test_drift_is_told_after_no_more_steps_than_there_were() -> None:
    assert drift_steps(0) == [0] and drift_steps(19) == [0, 1, 10] and drift_steps(400)[-2:] == [200, 400]
