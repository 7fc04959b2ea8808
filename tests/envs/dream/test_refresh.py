"""A refreshed memory has read the newest frames and nothing else, row by row, and forks carry what it needs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.tiny import CONTINUOUS, save_tiny_checkpoint, tiny_model
from wm_gym.envs.world_model import WorldModelEnv
from wm_gym.envs.world_model_vector import WorldModelVectorEnv

ACTIONS = [0, 1, 2, 1, 0, 2, 2]


def make(tiny_kwargs: dict[str, Any], **changes: Any) -> WorldModelEnv:
    return WorldModelEnv(**{**tiny_kwargs, "refresh_steps": 4, **changes})


def test_after_a_refresh_the_episode_is_that_of_a_memory_of_the_last_frames_alone(tiny_kwargs: dict[str, Any]) -> None:
    env = make(tiny_kwargs)
    env.reset(seed=3)
    frames = [env.step(action)[0] for action in ACTIONS[:4]]
    model = tiny_model()
    read = model.prefill(
        model.initial_state(1), torch.from_numpy(np.stack(frames))[None], torch.tensor([ACTIONS[1:4]])
    ).to_tensors()
    held = env.get_state().dream.model_state.to_tensors()
    for name in ("num_committed", "pending.frame", "layers.0.ssm_state", "layers.1.ssm_state", "layers.1.conv_state"):
        torch.testing.assert_close(held[name], read[name], rtol=1e-4, atol=1e-5)


def test_between_refreshes_nothing_changes(tiny_kwargs: dict[str, Any]) -> None:
    observed = []
    for steps in (0, 4):
        env = make(tiny_kwargs, refresh_steps=steps)
        env.reset(seed=3)
        observed.append([env.step(action)[0] for action in ACTIONS])
    same = [np.array_equal(one, other) for one, other in zip(*observed, strict=True)]
    assert same[:4] == [True] * 4 and not all(same[4:])


def test_rows_of_different_age_are_refreshed_each_at_its_time(tiny_kwargs: dict[str, Any]) -> None:
    settings = {**tiny_kwargs, "refresh_steps": 3, "horizon": 7}
    vector = WorldModelVectorEnv(2, **settings, autoreset_mode="Disabled")
    vector.reset(seed=[5, 6])
    vector.step(np.array([0, 1]))
    vector.step(np.array([2, 2]))
    vector.reset(seed=[7, None], options={"reset_mask": np.array([True, False])})  # two steps younger
    rows = [vector.step(np.array([action, action]))[0] for action in ACTIONS[:5]]
    for row, seed, before in ((0, 7, []), (1, 6, [1, 2])):
        env = WorldModelEnv(**settings)
        env.reset(seed=seed)
        for action in before:
            env.step(action)
        for t, action in enumerate(ACTIONS[:5]):
            difference = env.step(action)[0].astype(int) - rows[t][row]
            assert np.abs(difference).max() <= 1, (row, t)


def test_a_fork_is_refreshed_as_its_episode_is(tiny_kwargs: dict[str, Any]) -> None:
    env, twin = make(tiny_kwargs), make(tiny_kwargs)
    env.reset(seed=3)
    for action in ACTIONS[:2]:
        env.step(action)
    state = env.get_state()
    expected = [env.step(action)[0] for action in ACTIONS[2:]]
    twin.reset(seed=9)
    twin.set_state(state)
    for frame, action in zip(expected, ACTIONS[2:], strict=True):
        np.testing.assert_array_equal(twin.step(action)[0], frame)
    with pytest.raises(ValueError, match="refresh_steps 4, these have 0"):
        make(tiny_kwargs, refresh_steps=0).set_state(state)


def test_continuous_actions_are_kept_too(tiny_kwargs: dict[str, Any], tmp_path: Any) -> None:
    model = tiny_model(action_kind="continuous", action_size=2)
    path = save_tiny_checkpoint(tmp_path / "continuous.safetensors", model, CONTINUOUS)
    env = make(tiny_kwargs, checkpoint=str(path), refresh_steps=2)
    context = np.zeros((2, 16, 16, 3), np.uint8), np.zeros((1, 2), np.float32)
    env.reset(seed=0, options={"context": context})
    for _ in range(3):
        env.step(np.array([0.5, -0.5], np.float32))
    assert env.get_state().dream.model_state.num_frames.tolist() == [3]


@pytest.mark.parametrize("steps", [1, -1, 2.5])
def test_a_number_that_cannot_be_meant_is_refused(tiny_kwargs: dict[str, Any], steps: Any) -> None:
    with pytest.raises(ValueError, match="refresh_steps must be 0"):
        make(tiny_kwargs, refresh_steps=steps)


def test_the_registered_environment_takes_it(tiny_kwargs: dict[str, Any]) -> None:
    env = gym.make("LSSVWM-MemoryMaze-v0", **tiny_kwargs, refresh_steps=4)
    env.reset(seed=0)
    env.close()
