from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecTransposeImage

from agents.environments.sb3 import Sb3VecEnv
from tests.toy_env import ENV_ID as TOY_ID

DREAM_ID = "LSSVWM-MemoryMaze-v0"
NUM_ENVS = 3


def toy_vector(mode="sync", autoreset_mode="SameStep", num_envs=NUM_ENVS, **kwargs: Any):
    vector_kwargs = {"autoreset_mode": AutoresetMode(autoreset_mode)}
    return gym.make_vec(TOY_ID, num_envs, vectorization_mode=mode, vector_kwargs=vector_kwargs, **kwargs)


def dream_vector(tiny_kwargs, **kwargs):
    arguments = {"autoreset_mode": "SameStep", **tiny_kwargs, **kwargs}
    return gym.make_vec(DREAM_ID, NUM_ENVS, vectorization_mode="vector_entry_point", **arguments)


def dummy(env_id, **kwargs) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.make(env_id, **kwargs)] * NUM_ENVS)


def random_rollout(env: VecEnv, num_steps=60) -> Any:
    """Observations, rewards, dones and infos of random play after `seed(3)`."""
    env.seed(3)
    actions = np.random.default_rng(0).integers(0, 3, (num_steps, env.num_envs))
    first = env.reset()
    steps = [env.step(action) for action in actions]
    return [first, *(step[0] for step in steps)], *([step[i] for step in steps] for i in (1, 2, 3))


def assert_close(array, expected, tolerance=0):
    """Frames that were computed in batches of different sizes may be rounded to neighbouring levels: tolerance 1."""
    difference = np.abs(np.asarray(array).astype(np.float64) - np.asarray(expected).astype(np.float64))
    assert difference.shape == np.shape(expected) and difference.max() <= tolerance


def assert_same_infos(infos, expected, ignore=(), tolerance=0):
    for step, expected_step in zip(infos, expected, strict=True):
        for row, expected_row in zip(step, expected_step, strict=True):
            assert row.keys() - set(ignore) == expected_row.keys() - set(ignore)
            for key in row.keys() - set(ignore):
                assert_close(row[key], expected_row[key], tolerance if key == "terminal_observation" else 0)


def assert_same_rollout(env, reference, tolerance=0) -> Any:
    ours, theirs = random_rollout(env), random_rollout(reference)
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        assert_close(np.stack(mine), np.stack(other), tolerance if mine is ours[0] else 0)
        assert mine[0].dtype == other[0].dtype
    assert_same_infos(ours[3], theirs[3], tolerance=tolerance)
    assert_same_infos([env.reset_infos], [reference.reset_infos])
    return ours


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_rollouts_and_infos_are_those_of_dummy_vec_env(mode):
    kwargs: dict[str, Any] = {"max_episode_steps": 25, "terminate_after_rewards": 1}
    env = Sb3VecEnv(toy_vector(mode, **kwargs))
    _, _, dones, infos = assert_same_rollout(env, dummy(TOY_ID, **kwargs))
    env.close()
    ends = [
        info["TimeLimit.truncated"] for step, flags in zip(infos, dones, strict=True) for info in np.array(step)[flags]
    ]
    assert True in ends and False in ends, "The rollout should have shown both kinds of ends."


def test_rollouts_of_a_dream_are_those_of_single_dreams_in_dummy_vec_env(tiny_kwargs):
    _, _, dones, _ = assert_same_rollout(Sb3VecEnv(dream_vector(tiny_kwargs)), dummy(DREAM_ID, **tiny_kwargs), 1)
    assert 10 < np.sum(dones) < 60 * NUM_ENVS


def test_torch_output_gives_the_same_rollout_as_numpy(tiny_kwargs):
    ours, theirs = (random_rollout(Sb3VecEnv(dream_vector(tiny_kwargs, output=kind))) for kind in ("torch", "numpy"))
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        np.testing.assert_array_equal(np.stack(mine), np.stack(other))
    assert_same_infos(ours[3], theirs[3])


def collected(env: VecEnv) -> Any:
    """The rollout buffer after PPO has collected once, with weights and action noise that seed 5 fixes."""
    kwargs = {"features_extractor_class": FlattenExtractor}  # SB3's own convolutions need larger frames
    model = PPO("MlpPolicy", env, n_steps=60, batch_size=60, seed=5, policy_kwargs=kwargs, device="cpu")
    _, callback = model._setup_learn(60 * env.num_envs)
    assert isinstance(callback, BaseCallback)
    wrapped = model.get_env()
    assert wrapped is not None and model.collect_rollouts(wrapped, callback, model.rollout_buffer, 60)
    return model.rollout_buffer, model.ep_info_buffer


def test_ppo_collects_the_same_advantages_as_over_dummy_vec_env():
    kwargs: dict[str, Any] = {"max_episode_steps": 25, "terminate_after_rewards": 1}
    ours, our_episodes = collected(VecMonitor(Sb3VecEnv(toy_vector(**kwargs))))
    theirs, their_episodes = collected(VecMonitor(dummy(TOY_ID, **kwargs)))
    for name in (
        "observations",
        "actions",
        "rewards",
        "episode_starts",
        "values",
        "log_probs",
        "advantages",
        "returns",
    ):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    assert [(e["r"], e["l"]) for e in our_episodes] == [(e["r"], e["l"]) for e in their_episodes]
    assert len(our_episodes) >= 6
    # Truncated episodes are bootstrapped: rewards other than the environment's 0 and 1.
    assert not np.isin(ours.rewards, (0.0, 1.0)).all()


def test_frame_stacks_transposed_images_and_the_monitor_see_what_they_see_over_dummy_vec_env():
    def wrap(env):
        return VecTransposeImage(VecFrameStack(VecMonitor(env), 4))

    kwargs: dict[str, Any] = {"max_episode_steps": 25}
    ours, theirs = random_rollout(wrap(Sb3VecEnv(toy_vector(**kwargs)))), random_rollout(wrap(dummy(TOY_ID, **kwargs)))
    assert ours[0][0].shape == (NUM_ENVS, 12, 16, 16)
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        np.testing.assert_array_equal(np.stack(mine), np.stack(other))
    assert_same_infos(ours[3], theirs[3], ignore=["episode"])
    ends = [
        [info["episode"]["r"] for step in infos for info in step if "episode" in info] for infos in (ours[3], theirs[3])
    ]
    assert len(ends[0]) == 6 and ends[0] == ends[1]


def test_without_info_only_what_learning_needs_is_there(tiny_kwargs):
    infos = [info for step in random_rollout(Sb3VecEnv(dream_vector(tiny_kwargs), with_info=False))[3] for info in step]
    assert {key for info in infos for key in info} == {"TimeLimit.truncated", "terminal_observation"}


def test_without_a_seed_the_episodes_go_on_and_seeds_serve_one_reset():
    env, reference = Sb3VecEnv(toy_vector()), dummy(TOY_ID)
    for vec_env in (env, reference):
        vec_env.seed(9)
    for _ in range(3):
        np.testing.assert_array_equal(env.reset(), reference.reset())


def test_options_reach_the_reset_and_differing_ones_are_an_error(tiny_kwargs):
    env = Sb3VecEnv(dream_vector(tiny_kwargs))
    frames = np.full((2, 16, 16, 3), 77, np.uint8)
    env.set_options({"context": (frames, np.zeros(1, np.int64))})
    assert (env.reset() == 77).all()
    assert not (env.reset() == 77).all()
    with pytest.raises(ValueError, match="one dictionary"):
        env.set_options([{"context": 1}, {"context": 2}, {}])


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_attributes_and_methods_are_those_of_the_sub_environments(mode):
    env = Sb3VecEnv(toy_vector(mode, max_episode_steps=7, render_mode="rgb_array"))
    assert env.get_attr("_max_episode_steps") == [7] * NUM_ENVS
    assert env.get_attr("_max_episode_steps", indices=[1]) == [7]
    with pytest.raises(AttributeError):
        env.get_attr("nothing_of_this_name")
    env.close()


def test_single_rows_can_be_addressed_where_there_are_sub_environments():
    env = Sb3VecEnv(toy_vector(max_episode_steps=7, render_mode="rgb_array"))
    env.set_attr("mark", 3, indices=-1)
    assert env.get_attr("mark", indices=2) == [3] and not env.has_attr("mark")
    env.reset()
    assert [image.shape for image in env.env_method("render", indices=[0, 2])] == [(16, 16, 3)] * 2
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * NUM_ENVS
    assert env.env_is_wrapped(Monitor) == [False] * NUM_ENVS
    image: Any = env.render()
    assert image.shape == (32, 32, 3)  # four tiles


def test_a_dream_is_one_object_for_all_rows(tiny_kwargs):
    env = Sb3VecEnv(dream_vector(tiny_kwargs, render_mode="rgb_array"))
    env.reset()
    states = env.env_method("get_state")
    assert len(states) == NUM_ENVS and states[0] is states[2]
    env.set_attr("mark", 5)
    assert env.get_attr("mark") == [5] * NUM_ENVS
    assert len(env.get_images()) == NUM_ENVS
    with pytest.raises(ValueError, match="leave indices out"):
        env.env_method("get_state", indices=[0])
    with pytest.raises(AttributeError, match="nothing"):
        env.get_attr("nothing_of_this_name")


def test_what_sb3_cannot_take_is_a_clear_error(tiny_kwargs):
    with pytest.raises(ValueError, match="SameStep"):
        Sb3VecEnv(dream_vector(tiny_kwargs, autoreset_mode="NextStep"))
    with pytest.raises(TypeError, match="make_vec"):
        Sb3VecEnv(gym.make(TOY_ID))  # pyright: ignore[reportArgumentType]
    wrapped = gym.wrappers.vector.TransformAction(
        toy_vector(), lambda action: action, single_action_space=gym.spaces.Discrete(3, start=1)
    )
    with pytest.raises(ValueError, match="counts actions from 0"):
        Sb3VecEnv(wrapped)
