import json

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecMonitor

from agents.environments.sb3 import Sb3VecEnv
from agents.learning.config import PpoConfig, make_specs
from agents.learning.device_ppo import DevicePPO, DeviceRollouts
from agents.ppo import make_model
from tests.agents.toy_batch import BATCH_ID

NUM_ENVS, NUM_STEPS = 5, 20


class Nothing(BaseCallback):
    def _on_step(self):
        return True


def collected(tmp_path, kwargs, on_device, memory, env="LSSVWM-MemoryMaze-v0", folder=None):
    """Two rollouts by a policy of seed 0 or that of a folder, in the same dreams or real episodes."""
    config = PpoConfig(
        env=env,
        env_kwargs=json.dumps(kwargs),
        real_env="tests.toy_env:tests/ToyMaze-v0",
        out=tmp_path,
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        memory=memory,
        memory_size=8,
        features=16,
    )
    batch = make_specs(config)[0].make_batch(NUM_ENVS, "cpu", on_device, 1 if memory else NUM_ENVS)
    env = Sb3VecEnv(batch, with_info=False)
    model = make_model(config, 0, env if on_device else VecMonitor(env), folder or tmp_path, "cpu", on_device)
    model.env.seed(7)
    torch.manual_seed(3)
    _, callback = model._setup_learn(1000, Nothing(), reset_num_timesteps=False)
    buffers = []
    for _ in range(2):
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, NUM_STEPS)
        names = ["actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"]
        own = {"episode_starts": "_starts"}
        read = {name: getattr(model.rollout_buffer, own.get(name, f"_{name}") if on_device else name) for name in names}
        buffers.append({name: torch.as_tensor(part).clone().numpy() for name, part in read.items()})
        obs = model.rollout_buffer._observations if on_device else model.rollout_buffer.observations
        parts = obs.items() if isinstance(obs, dict) else [("image", obs)]
        buffers[-1] |= {key: torch.as_tensor(part).clone().numpy() for key, part in parts}
    env.close()
    return model, buffers


@pytest.mark.parametrize("env", ["dream", "dream with memory", "real"])
def test_rollouts_and_advantages_are_those_of_sb3(tmp_path, tiny_kwargs, env):
    real = {"kwargs": {"terminate_after_rewards": 1}, "env": BATCH_ID}
    setting = real if env == "real" else {"kwargs": tiny_kwargs}
    theirs, expected = collected(tmp_path, on_device=False, memory="memory" in env, **setting)
    ours, buffers = collected(tmp_path, on_device=True, memory="memory" in env, **setting)
    for buffer, reference in zip(buffers, expected, strict=True):
        assert reference["episode_starts"][1:].any(), "Episodes must end, or nothing is shown of it."
        for name, array in reference.items():
            given = buffer[name].reshape(array.shape)
            np.testing.assert_allclose(given.astype(np.float64), array.astype(np.float64), atol=2e-5, err_msg=name)
    assert [one["r"] for one in ours.ep_info_buffer] == pytest.approx([one["r"] for one in theirs.ep_info_buffer])
    assert [one["l"] for one in ours.ep_info_buffer] == [one["l"] for one in theirs.ep_info_buffer]


def test_where_an_episode_is_cut_its_value_counts_and_where_it_ends_it_does_not(tmp_path, tiny_kwargs):
    model, _ = collected(tmp_path, tiny_kwargs, True, False)
    frames = np.full(NUM_ENVS, None, object)
    for row in range(3):
        frames[row] = torch.full((16, 16, 3), 50 * row, dtype=torch.uint8)
    ended = np.array([True, True, True, False, False])
    flags = torch.tensor([[True, False, True, False, False], [False, True, True, False, False]])
    info = {"final_obs": frames, "_final_obs": ended}
    rewards = model._bootstrapped(torch.ones(NUM_ENVS), *flags, info)
    obs = torch.stack(list(frames[:3])).movedim(-1, 1)
    value = model.policy.predict_values(obs).flatten()[1].item()
    assert value != 0
    np.testing.assert_allclose(rewards.numpy(), [1, 1 + model.gamma * value, 1, 1, 1], rtol=1e-5)


def test_minibatches_hold_every_step_once_with_its_own_action_and_observation():
    image = gym.spaces.Box(0, 255, (3, 8, 8), np.uint8)
    rollouts = DeviceRollouts(4, image, gym.spaces.Discrete(99), "cpu", n_envs=3)
    for step in range(4):
        number = 10.0 * step + torch.arange(3)
        obs = number.to(torch.uint8)[:, None, None, None].expand(3, 3, 8, 8)
        rollouts.add(obs, number, number, torch.zeros(3), number[:, None], number)
    rollouts.compute_returns_and_advantage(torch.zeros(3, 1), torch.ones(3))
    orders = []
    for _ in range(2):
        batches = list(rollouts.get(5))
        assert [len(batch.actions) for batch in batches] == [5, 5, 2]
        actions = torch.cat([batch.actions for batch in batches]).flatten()
        assert all(batch.observations.movedim(1, -1).is_contiguous() for batch in batches)
        obs = torch.cat([batch.observations for batch in batches])
        assert obs.shape[1:] == (3, 8, 8) and obs.dtype == torch.uint8
        torch.testing.assert_close(obs[:, 0, 0, 0].float(), actions)
        torch.testing.assert_close(torch.cat([batch.old_log_prob for batch in batches]), actions)
        orders.append(actions.tolist())
    assert sorted(orders[0]) == [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32] == sorted(orders[1])
    assert orders[0] != orders[1]


def test_images_are_kept_as_they_come_and_never_copied_to_be_turned():
    rollouts = DeviceRollouts(2, gym.spaces.Box(0, 255, (3, 8, 16), np.uint8), gym.spaces.Discrete(2), "cpu", n_envs=4)
    assert rollouts._observations.shape == (2, 4, 3, 8, 16)
    assert rollouts._observations.movedim(2, -1).is_contiguous()


def test_a_saved_model_holds_no_frames_and_needs_no_device(tmp_path, tiny_kwargs):
    model, _ = collected(tmp_path, tiny_kwargs, True, False)
    model.save(tmp_path / "model.zip")
    loaded = DevicePPO.load(tmp_path / "model.zip", device="cpu")
    assert loaded._last_obs is None and not hasattr(loaded, "_episode_sums")
    frame = np.zeros((16, 16, 3), np.uint8)
    assert loaded.predict(frame, deterministic=True)[0] == model.predict(frame, deterministic=True)[0]


def test_learning_asks_for_the_fastest_convolutions_and_leaves_the_settings_as_they_were(
    tmp_path, tiny_kwargs, monkeypatch
):
    model, _ = collected(tmp_path, tiny_kwargs, True, False)
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", True)
    monkeypatch.setattr(cudnn, "benchmark", False)
    seen = []
    evaluate = model.policy.evaluate_actions

    def spy(*arguments):
        seen.append((cudnn.deterministic, cudnn.benchmark))
        return evaluate(*arguments)

    monkeypatch.setattr(model.policy, "evaluate_actions", spy)
    model._logger = configure(None, [])
    model.train()
    assert set(seen) == {(False, True)}
    assert (cudnn.deterministic, cudnn.benchmark) == (True, False)


def test_a_model_that_sb3s_own_ppo_saved_goes_on_learning(tmp_path):
    real = {"kwargs": {"terminate_after_rewards": 1}, "env": BATCH_ID}
    theirs, _ = collected(tmp_path, on_device=False, memory=False, **real)
    (tmp_path / "seed_0").mkdir()
    theirs.save(tmp_path / "seed_0" / "model.zip")
    ours, buffers = collected(tmp_path, on_device=True, memory=False, **real, folder=tmp_path / "seed_0")
    assert isinstance(ours, DevicePPO) and ours.num_timesteps == theirs.num_timesteps + 2 * NUM_ENVS * NUM_STEPS
    for name, weights in theirs.policy.state_dict().items():
        torch.testing.assert_close(ours.policy.state_dict()[name], weights)
    assert buffers[0]["values"].any()
