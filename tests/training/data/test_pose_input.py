"""What poses a model gets: planar ones as seen from the first frame it read, and none where it tells them itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, VECTOR_POSE
from training.data.pose_input import model_poses
from wm_gym.nn.config import WorldModelConfig

PLANAR = WorldModelConfig.plain(pose=PLANAR_POSE)
WITH_ODOMETRY = dataclasses.replace(PLANAR, odometry=LEARNED_ODOMETRY)
# One cell to the north, looking north; then one to the east, looking east.
RECORDED = torch.tensor([[[2.0, 3.0, 0.0, 1.0], [2.0, 4.0, 0.0, 1.0], [3.0, 4.0, 1.0, 0.0]]])


def test_planar_poses_are_as_seen_from_the_first_frame() -> None:
    given = model_poses(PLANAR, RECORDED)
    assert given is not None
    expected = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, -1.0, 0.0, -1.0]]])
    torch.testing.assert_close(given, expected)


def test_other_poses_are_given_as_they_were_recorded_and_models_without_get_none() -> None:
    assert model_poses(WorldModelConfig.plain(pose=VECTOR_POSE), RECORDED) is RECORDED
    assert model_poses(WorldModelConfig.plain(), RECORDED) is None
    assert model_poses(WorldModelConfig.plain(), RECORDED, "action") is None


def test_by_action_a_model_with_odometry_gets_no_poses_and_one_without_is_refused() -> None:
    assert model_poses(WITH_ODOMETRY, RECORDED, "action") is None
    assert model_poses(WITH_ODOMETRY, RECORDED, "pose") is not None
    with pytest.raises(ValueError, match="no odometry"):
        model_poses(PLANAR, RECORDED, "action")
    assert [config.needs_poses for config in (PLANAR, WITH_ODOMETRY, WorldModelConfig.plain())] == [True, False, False]


def test_poses_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="poses of 4 numbers, and 3"):
        model_poses(PLANAR, RECORDED[..., :3])


def test_where_a_walk_began_and_looked_to_changes_nothing() -> None:
    turned = torch.stack([-RECORDED[..., 1] + 7, RECORDED[..., 0] - 5, -RECORDED[..., 3], RECORDED[..., 2]], dim=-1)
    torch.testing.assert_close(model_poses(PLANAR, turned), model_poses(PLANAR, RECORDED))
