"""How often dreamed frames enter the memory of an environment's dreams, whatever its checkpoint was made for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import save_tiny_checkpoint, save_tiny_clips, tiny_model
from wm_gym.envs.world_model import WorldModelEnv
from wm_gym.envs.world_model_vector import WorldModelVectorEnv

ACTIONS = [0, 2, 1, 1, 0, 2, 1, 0, 2]


@pytest.fixture
def kwargs(tmp_path: Path) -> dict[str, Any]:
    model = tiny_model(hide_noise=True, feedback_interval=1)
    every_third = tiny_model(hide_noise=True, feedback_interval=1)
    every_third.config = dataclasses.replace(every_third.config, feedback_interval=3)
    return {
        "checkpoint": str(save_tiny_checkpoint(tmp_path / "model.safetensors", model)),
        "every_third": str(save_tiny_checkpoint(tmp_path / "every_third.safetensors", every_third)),
        "contexts": str(save_tiny_clips(tmp_path / "clips.npz")),
        "context_frames": 6,
    }


def frames_of(kwargs: dict[str, Any], checkpoint: str = "checkpoint", **more: Any) -> np.ndarray:
    rest = {key: value for key, value in kwargs.items() if key not in ("checkpoint", "every_third")}
    env = WorldModelEnv(checkpoint=kwargs[checkpoint], **rest, **more)
    env.reset(seed=0)
    return np.stack([env.step(action)[0] for action in ACTIONS])


def test_an_environment_lets_frames_enter_as_a_checkpoint_made_so_would(kwargs: dict[str, Any]) -> None:
    given = frames_of(kwargs, feedback_interval=3)
    assert np.array_equal(given, frames_of(kwargs, "every_third"))
    assert not np.array_equal(given, frames_of(kwargs))
    assert np.array_equal(frames_of(kwargs, "every_third", feedback_interval=1), frames_of(kwargs))


def test_a_row_of_a_vector_environment_is_the_same_episode(kwargs: dict[str, Any]) -> None:
    rest = {key: value for key, value in kwargs.items() if key != "every_third"}
    envs = WorldModelVectorEnv(2, **rest, feedback_interval=0)
    envs.reset(seed=[0, 5])
    rows = np.stack([envs.step(np.array([action, 0]))[0][0] for action in ACTIONS])
    assert np.array_equal(rows, frames_of(kwargs, feedback_interval=0))


@pytest.mark.parametrize("value", [-1, 0.5, "2"])
def test_what_is_no_number_of_frames_is_refused(kwargs: dict[str, Any], value: Any) -> None:
    with pytest.raises(ValueError, match="feedback_interval must be 0"):
        frames_of(kwargs, feedback_interval=value)


def test_a_model_that_sees_its_noise_takes_in_all_frames(kwargs: dict[str, Any], tmp_path: Path) -> None:
    kwargs["checkpoint"] = str(save_tiny_checkpoint(tmp_path / "sees.safetensors", tiny_model()))
    with pytest.raises(ValueError, match="needs hide_noise unless it is 1"):
        frames_of(kwargs, feedback_interval=2)
