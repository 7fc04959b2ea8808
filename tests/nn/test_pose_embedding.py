"""Planar poses in the network: directions of tokens, and questions without noise."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.tiny import PLANAR_POSE, tiny_model
from wm_gym.nn.config import PoseConfig, WorldModelConfig
from wm_gym.nn.pose_embedding import RayEmbedding, line_of_sight


def _pose(x: float, y: float, angle: float) -> torch.Tensor:
    return torch.tensor([[[x, y, math.cos(angle), math.sin(angle)]]])


def test_what_is_seen_in_one_column_keeps_its_embedding_in_another_after_a_turn() -> None:
    ray = RayEmbedding(WorldModelConfig())
    angles = ray.column_angles
    turn = float((angles[2] - angles[5]).detach())
    assert turn > 0  # the left side of an image lies counter-clockwise
    before, after = ray(_pose(1.0, 2.0, 0.3)), ray(_pose(1.0, 2.0, 0.3 + turn))
    torch.testing.assert_close(after[:, :, :, 5], before[:, :, :, 2], atol=1e-4, rtol=1e-4)
    assert (after[:, :, :, 2] - before[:, :, :, 2]).abs().max() > 1e-2


def test_the_columns_share_the_cameras_field_of_view() -> None:
    angles = RayEmbedding(WorldModelConfig()).column_angles
    torch.testing.assert_close(angles, -angles.flip(0))
    assert math.radians(30) < float(angles.detach()[0]) < math.radians(40)


def test_all_poses_along_a_line_look_along_the_same_line() -> None:
    angle = torch.tensor(0.7)
    start = torch.tensor([1.0, -2.0])
    ahead = start + 3 * torch.stack([angle.cos(), angle.sin()])
    beside = start + 0.5 * torch.stack([-angle.sin(), angle.cos()])  # half a cell to the left
    here, there, left = (line_of_sight(position, angle) for position in (start, ahead, beside))
    torch.testing.assert_close(there - here, torch.tensor([0.0, 3.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(left - here, torch.tensor([-0.5, 0.0]), atol=1e-6, rtol=0)


def test_lines_are_told_in_addition_to_directions() -> None:
    config = WorldModelConfig(pose=PoseConfig(ray_lines=True))
    ray = RayEmbedding(config)
    assert ray.line is not None
    pose = _pose(1.0, 2.0, 0.3)
    with_lines = ray(pose)
    torch.nn.init.zeros_(ray.line.weight)
    assert (ray(pose) - with_lines).abs().max() > 1e-3


def test_a_pose_changes_what_is_seen() -> None:
    model = tiny_model(pose=PLANAR_POSE)
    frames, levels = torch.randn(1, 2, 3, 16, 16), torch.ones(1, 2)
    actions = torch.zeros(1, 1, dtype=torch.int64)
    here = torch.cat([_pose(0, 0, 0), _pose(0.1, 0, 0)], 1)
    there = torch.cat([_pose(0, 0, 0), _pose(3, 0, 1)], 1)
    with torch.no_grad():
        change = model(frames, levels, actions, there).frame - model(frames, levels, actions, here).frame
    assert change[:, 0].abs().max() == 0
    assert change[:, 1].abs().max() > 1e-3


@pytest.mark.parametrize("hide_actions", [True, False])
def test_actions_say_nothing_if_they_are_hidden_in_one_pass_and_in_steps(hide_actions: bool) -> None:
    model = tiny_model(pose=dataclasses.replace(PLANAR_POSE, hide_actions=hide_actions))
    frames, levels = torch.randn(1, 3, 3, 16, 16), torch.tensor([[0.0, 0.0, 1.0]])
    poses = torch.cat([_pose(0, 0, 0), _pose(0.2, 0, 0), _pose(0.4, 0, 0)], 1)
    seen = torch.randint(0, 256, (1, 2, 16, 16, 3), dtype=torch.uint8)
    told, stepped = [], []
    for action in (0, 2):
        actions = torch.full((1, 2), action)
        with torch.no_grad():
            told.append(model(frames, levels, actions, poses).frame[:, 1:])
        state = model.prefill(model.initial_state(1), seen, actions[:, :1], poses[:, :2])
        prediction, state = model.step(state, actions[:, 1], torch.Generator().manual_seed(0), pose=poses[:, 2])
        later, _ = model.step(state, actions[:, 1], torch.Generator().manual_seed(1), pose=poses[:, 2])
        stepped.append(torch.cat([prediction.frame, later.frame]))
    assert torch.equal(told[0], told[1]) == hide_actions
    assert torch.equal(stepped[0], stepped[1]) == hide_actions


@pytest.mark.parametrize("hide_noise", [True, False])
def test_pure_noise_says_nothing_if_it_is_hidden(hide_noise: bool) -> None:
    model = tiny_model(hide_noise=hide_noise)
    actions = torch.zeros(1, 1, dtype=torch.int64)
    levels = torch.tensor([[0.0, 1.0]])
    first, noise, other = torch.randn(3, 1, 1, 3, 16, 16)
    with torch.no_grad():
        one, two = (model(torch.cat([first, n], 1), levels, actions).frame[:, 1] for n in (noise, other))
    assert torch.equal(one, two) == hide_noise
