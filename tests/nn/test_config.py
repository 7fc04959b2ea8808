"""Configurations: the default is what ships, earlier checkpoints' are read, and mistakes are one sentence."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from tests.tiny import GRID_ODOMETRY, PLANAR_POSE, SMALL_MAP, tiny_model
from training.baselines import BaselineConfig, baseline_config
from training.recipes import RECIPES
from wm_gym.checkpoint import load_checkpoint
from wm_gym.nn.config import NO_MAP, NO_ODOMETRY, NO_POSE, WorldModelConfig
from wm_gym.nn.pose_embedding import NUM_HARMONICS, PlanarPose

# What the earliest checkpoints hold.
EARLIEST: dict[str, Any] = {
    "frame_height": 64,
    "frame_width": 64,
    "frame_channels": 3,
    "patch_size": 8,
    "width": 256,
    "block_sizes": [2, 4, 8, 1],
    "head_dim": 64,
    "state_dim": 64,
    "expand": 2,
    "window": 8,
    "num_attention_heads": 4,
    "feed_forward_multiplier": 4,
    "condition_width": 128,
    "action_kind": "discrete",
    "action_size": 6,
    "pose_size": 0,
    "reward_values": [0.0, 1.0],
}
POSED = {**EARLIEST, "pose_size": 4, "pose_kind": "planar", "hide_noise": True}


def changed(changes: dict[str, Any]) -> WorldModelConfig:
    """The default with other values by their dotted names."""
    values = WorldModelConfig().to_dict()
    for name, value in changes.items():
        part, _, field = name.rpartition(".")
        (values[part] if part else values)[field] = value
    return WorldModelConfig.from_dict(values)


def test_the_default_is_the_packaged_model_whose_configuration_is_flat() -> None:
    packaged = load_checkpoint("memory-maze").config
    assert "head_dim" in packaged
    assert WorldModelConfig.from_dict(packaged) == WorldModelConfig()


def test_the_last_recipe_and_odometry_make_the_default() -> None:
    trained = RECIPES["memory_maze_9x9_map"]().model
    assert dataclasses.replace(trained, odometry=GRID_ODOMETRY) == WorldModelConfig()


def test_a_configuration_survives_json() -> None:
    for config in (WorldModelConfig(), WorldModelConfig.plain(), tiny_model().config):
        assert WorldModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    baseline = baseline_config("mamba2", 2, WorldModelConfig())
    assert BaselineConfig.from_dict(json.loads(json.dumps(baseline.to_dict()))) == baseline


def test_the_earliest_configurations_have_none_of_what_came_later() -> None:
    config = WorldModelConfig.from_dict(EARLIEST)
    assert (config.pose, config.map, config.odometry) == (NO_POSE, NO_MAP, NO_ODOMETRY)
    assert (config.scan.num_groups, config.hide_noise, config.feedback_interval) == (1, False, 1)


@pytest.mark.parametrize(
    ("flags", "kind"), [({}, "none"), ({"odometry": True}, "learned"), ({"odometry": True, "bearings": True}, "grid")]
)
def test_the_odometry_of_a_flat_configuration_keeps_its_kind(flags: dict[str, bool], kind: str) -> None:
    config = WorldModelConfig.from_dict({**POSED, **flags})
    assert config.odometry.kind == kind and config.has_odometry == bool(flags)
    assert config.pose.kind == "planar" and not config.pose.ray_lines and config.pose.field_of_view == 80


def test_flat_configurations_of_baselines_are_read() -> None:
    config = BaselineConfig.from_dict({**EARLIEST, "architecture": "mamba2", "cache_frames": 64})
    assert config.architecture == "mamba2" and not config.has_map and config.scan.state_dim == 64


def test_a_model_of_another_world_has_its_camera_rays_and_lengths() -> None:
    """With another field of view, other distances and wavelengths the network is built, and renders, for these."""
    pose = dataclasses.replace(PLANAR_POSE, field_of_view=120.0, wavelengths=(8.0, 2.0))
    world = {"pose": pose, "map": dataclasses.replace(SMALL_MAP, rays=6, distances=(0.5, 3.0, 9.0)), "hide_noise": True}
    model, ours = tiny_model(**world), tiny_model(pose=PLANAR_POSE, map=SMALL_MAP, hide_noise=True)
    memory, usual = model.backbone.map_memory, ours.backbone.map_memory
    assert memory is not None and usual is not None
    assert memory.angles.shape == (6,) and memory.distances.tolist() == [0.5, 3.0, 9.0]
    outermost = math.atan(5 / 6 * math.tan(math.radians(60)))  # the middle of the first sixth of the image plane
    assert float(memory.angles[0]) == pytest.approx(outermost) and float(usual.angles[0]) < outermost
    ray, condition = model.backbone.embedding.ray, model.backbone.condition.pose
    assert ray is not None and isinstance(condition, PlanarPose)
    assert ray.features.size == condition.features.size == 2 * 4 + 2 * NUM_HARMONICS
    frames, levels = torch.zeros(1, 3, 3, 16, 16), torch.tensor([[0.0, 0.0, 1.0]])
    poses = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [0.4, 0.0, 1.0, 0.0], [0.4, 0.3, 0.0, 1.0]]])
    with torch.no_grad():
        seen, from_elsewhere = (
            model(frames, levels, torch.zeros(1, 2, dtype=torch.int64), each).frame for each in (poses, poses.flip(1))
        )
    assert seen.shape == frames.shape and not torch.allclose(seen[:, -1], from_elsewhere[:, -1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**EARLIEST, "layers": 3}, r"unknown configuration keys \['layers'\]"),
        ({"width": 3}, "configuration lacks"),
        ({**EARLIEST, "bearings": True}, "bearings, which odometry takes, and no odometry"),
        ({**EARLIEST, "scan": {}}, "'scan' beside keys of a flat one"),
        ({**EARLIEST, "head_dim": "wide"}, "does not fit"),
        ({k: v for k, v in EARLIEST.items() if k != "head_dim"}, r"configuration lacks \['head_dim'\]"),
        ({**WorldModelConfig().to_dict(), "map": {"size": 3}}, r"configuration lacks \['map.cell'"),
        ({**WorldModelConfig().to_dict(), "map": 3}, "configuration key 'map' is 3"),
        ({**WorldModelConfig().to_dict(), "layers": 3}, "unknown configuration keys"),
    ],
)
def test_foreign_configurations_are_refused_in_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose.size": 3}, "expected size 0 for 'none', at least 1 for 'vector' and 4 for 'planar'"),
        ({"pose.kind": "vector", "pose.ray_lines": False, "map.size": 0}, "odometry need pose.kind 'planar'"),
        ({"pose.kind": "spatial"}, "expected one of none, vector, planar"),
        ({"pose.kind": "vector"}, "needs pose.kind 'planar'"),
        ({"pose.kind": "none", "pose.size": 0, "pose.ray_lines": False}, "hide_actions needs poses"),
        ({"pose.field_of_view": 180.0}, "below 180 degrees"),
        ({"scan.num_groups": 3}, "does not divide"),
        ({"map.layer": 8}, "expected 0 to 7"),
        ({"odometry.kind": "guessed"}, "expected one of none, learned, grid"),
        ({"odometry.touch_reach": 0}, "must be above 0"),
    ],
)
def test_values_that_do_not_fit_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(changes)
