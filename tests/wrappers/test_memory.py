from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.tiny import (
    TINY_MAP,
    make_tiny_clips,
    save_tiny_checkpoint,
    save_tiny_clips,
    set_termination_bias,
    tiny_model,
    tiny_model_with_odometry,
)
from wm_gym.wrappers.features import Remembered
from wm_gym.wrappers.memory import FrameReader, MemoryObservation, MemoryVectorObservation

DREAM_ID = "LSSVWM-MemoryMaze-v0"
TOY_ID = "tests.toy_env:tests/ToyMaze-v0"
SIZE = 32
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def tiny_kwargs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_model()
    set_termination_bias(model, 0.0)
    return {
        "checkpoint": str(save_tiny_checkpoint(folder / "tiny.safetensors", model)),
        "contexts": str(save_tiny_clips(folder / "clips.npz")),
        "context_frames": 6,
        "horizon": 6,
    }


def dreams(tiny_kwargs, num_envs=3, **changes):
    kwargs = {**tiny_kwargs, "autoreset_mode": "Disabled", **changes}
    envs = gym.make_vec(DREAM_ID, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    return MemoryVectorObservation(envs, size=SIZE)


def toys(tiny_kwargs, mode="sync", autoreset_mode=AutoresetMode.DISABLED, **kwargs):
    vector_kwargs = {"autoreset_mode": autoreset_mode}
    envs = gym.make_vec(TOY_ID, 3, vectorization_mode=mode, vector_kwargs=vector_kwargs, max_episode_steps=5, **kwargs)
    return MemoryVectorObservation(envs, tiny_kwargs["checkpoint"], SIZE)


@pytest.mark.parametrize("kind", ["states", "map"])
def test_the_features_of_a_dream_are_those_of_its_frames_read_as_real_ones(tiny_kwargs, tmp_path, kind):
    # Every dreamed frame enters memory, as real ones do.
    made = tiny_model_with_odometry(**TINY_MAP, feedback_interval=1) if kind == "map" else tiny_model()
    endless = str(save_tiny_checkpoint(tmp_path / "endless.safetensors", made))
    kwargs = {**tiny_kwargs, "checkpoint": endless, "horizon": 20}
    env = MemoryObservation(gym.make(DREAM_ID, **kwargs), size=SIZE, kind=kind)
    clips = make_tiny_clips()
    context = clips.frames[1, :6], clips.actions[1, :5]
    obs, _ = env.reset(seed=0, options={"context": context})
    assert obs in env.observation_space

    model: Any = env.unwrapped
    reader = FrameReader(endless, 1, "cpu", model.observation_space, model.action_space)
    reader.start(context[0][:1])
    for frame, action in zip(context[0][1:], context[1], strict=True):
        reader.read(frame[None], [action])
    feature = Remembered(reader.model.config, kind, SIZE)
    features = [obs["memory"]]
    np.testing.assert_allclose(obs["memory"], feature(reader.memory)[0], **CLOSE)
    for action in np.random.default_rng(0).integers(0, 3, 20):
        obs, *_ = env.step(action)
        features.append(obs["memory"])
        if kind == "states":  # a reader tells poses from what it sees, a dream from where it meant to be
            reader.read(obs["image"][None], [action])
            np.testing.assert_allclose(obs["memory"], feature(reader.memory)[0], **CLOSE)
    changes = np.abs(np.diff(features, axis=0)).reshape(20, -1).max(1)
    assert changes.min() > 0.02, "A memory changes with every frame."


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_rows_of_real_environments_have_the_memories_of_single_ones(tiny_kwargs, mode):
    envs = toys(tiny_kwargs, mode)
    obs, _ = envs.reset(seed=4)
    assert obs in envs.observation_space and envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    actions = np.random.default_rng(0).integers(0, 3, (12, 3))
    steps = [envs.step(action) for action in actions]
    envs.close()
    for row in range(3):
        single = MemoryObservation(gym.make(TOY_ID, max_episode_steps=5), tiny_kwargs["checkpoint"], SIZE)
        expected, _ = single.reset(seed=4 + row)
        np.testing.assert_allclose(obs["memory"][row], expected["memory"], **CLOSE)
        for action, (batch, _, terminated, truncated, info) in zip(actions[:, row], steps, strict=True):
            expected, _, *flags, expected_info = single.step(action)
            assert flags == [terminated[row], truncated[row]]
            if any(flags):
                last = info["final_obs"][row]
                np.testing.assert_array_equal(last["image"], expected["image"])
                np.testing.assert_allclose(last["memory"], expected["memory"], **CLOSE)
                np.testing.assert_array_equal(info["final_info"]["pose"][row], expected_info["pose"])
                expected, expected_info = single.reset()
            np.testing.assert_array_equal(batch["image"][row], expected["image"])
            np.testing.assert_allclose(batch["memory"][row], expected["memory"], **CLOSE)
            np.testing.assert_array_equal(info["pose"][row], expected_info["pose"])


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_rows_of_a_batch_of_dreams_have_the_memories_of_single_ones(tiny_kwargs, output):
    envs = dreams(tiny_kwargs, output=output)
    envs.reset(seed=4)
    actions = np.random.default_rng(0).integers(0, 3, (15, 3))
    steps = [envs.step(action) for action in actions]
    if output == "torch":
        assert all(isinstance(value, torch.Tensor) for value in steps[0][0].values())
    num_ends = 0
    for row in range(3):
        single = MemoryObservation(gym.make(DREAM_ID, **tiny_kwargs), size=SIZE)
        single.reset(seed=4 + row)
        for action, (batch, _, terminated, truncated, info) in zip(actions[:, row], steps, strict=True):
            expected, _, *flags, expected_info = single.step(action)
            assert flags == [terminated[row], truncated[row]]
            if any(flags):
                num_ends += 1
                np.testing.assert_allclose(info["final_obs"][row]["memory"], expected["memory"], **CLOSE)
                assert info["final_info"]["imagined_steps"][row] == expected_info["imagined_steps"] > 0
                expected, expected_info = single.reset()
            np.testing.assert_allclose(batch["memory"][row], expected["memory"], **CLOSE)
            assert info["imagined_steps"][row] == expected_info["imagined_steps"]
            assert info["_final_obs"][row] == any(flags) if "_final_obs" in info else not any(flags)
    assert num_ends > 6


def test_infos_of_rows_that_go_on_and_of_rows_that_begin_do_not_mix(tiny_kwargs):
    envs = dreams(tiny_kwargs)
    envs.reset(seed=0)
    for _ in range(12):
        *_, terminated, truncated, info = envs.step(np.zeros(3, np.int64))
        ended = terminated | truncated
        assert info["_imagined_steps"].all()
        assert ((info["imagined_steps"] == 0) == ended).all()
        if ended.any():
            np.testing.assert_array_equal(info["final_info"]["_imagined_steps"], ended)


def test_what_does_not_fit_is_a_clear_error(tiny_kwargs):
    with pytest.raises(ValueError, match="give its checkpoint"):
        MemoryObservation(gym.make(TOY_ID))
    with pytest.raises(ValueError, match="leave checkpoint"):
        MemoryObservation(gym.make(DREAM_ID, **tiny_kwargs), tiny_kwargs["checkpoint"])
    with pytest.raises(ValueError, match="this environment has"):
        MemoryObservation(gym.make(TOY_ID, size=32), tiny_kwargs["checkpoint"])
    with pytest.raises(FileNotFoundError):
        MemoryObservation(gym.make(TOY_ID), "no/such/file")
    with pytest.raises(ValueError, match="autoreset_mode='Disabled'"):
        dreams(tiny_kwargs, autoreset_mode="SameStep")
    with pytest.raises(gym.error.ResetNeeded):
        _ = gym.make(DREAM_ID, **tiny_kwargs).unwrapped.ssm_states  # pyright: ignore[reportAttributeAccessIssue]
