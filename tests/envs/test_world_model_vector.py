import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.rounding import assert_same_dream
from tests.tiny import make_tiny_clips, save_tiny_checkpoint, set_termination_bias, tiny_model

ENV_ID = "LSSVWM-MemoryMaze-v0"
HORIZON = 8


@pytest.fixture
def make(tiny_kwargs):
    def make(num_envs=3, **changes):
        kwargs = {**tiny_kwargs, **changes}
        return gym.make_vec(ENV_ID, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)

    return make


def actions_for(num_steps, num_envs=3):
    return np.random.default_rng(1).integers(0, 3, (num_steps, num_envs))


def play(envs, actions):
    return [envs.step(action)[:4] for action in actions]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_it_is_a_vector_environment_of_the_checkpoints_spaces_with_a_declared_autoreset_mode(make):
    envs = make()
    assert isinstance(envs.unwrapped, gym.vector.VectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.single_observation_space.shape == (16, 16, 3)
    assert envs.observation_space.shape == (3, 16, 16, 3)
    assert envs.action_space == gym.spaces.MultiDiscrete([3, 3, 3])
    obs, _ = envs.reset(seed=0)
    assert obs in envs.observation_space


def test_each_row_is_the_single_environments_episode_of_its_seed(make, tiny_kwargs):
    envs, actions = make(4), actions_for(HORIZON, 4)
    first, _ = envs.reset(seed=20)
    frames, rewards, terminated, truncated = zip(*play(envs, actions), strict=True)
    single = gym.make(ENV_ID, **tiny_kwargs)
    for row in range(4):
        obs, _ = single.reset(seed=20 + row)
        np.testing.assert_array_equal(obs, first[row])
        for t in range(HORIZON):
            obs, reward, *ends, _ = single.step(actions[t, row])
            assert_same_dream(obs, frames[t][row])
            assert reward == rewards[t][row]
            assert ends == [terminated[t][row], truncated[t][row]]


def test_a_rows_episode_does_not_depend_on_the_others(make):
    actions = actions_for(HORIZON)
    few, many = make(1), make(3)
    few.reset(seed=[7])
    alone = play(few, actions[:, :1])
    for others in ([1, 2], [8, None]):
        many.reset(seed=[others[0], 7, others[1]])
        beside = play(many, np.roll(actions, 1, axis=1))
        for one, other in zip(alone, beside, strict=True):
            assert_same_dream(one[0][0], other[0][1])
            assert one[1][0] == other[1][1]


def test_the_same_seeds_give_the_same_episodes(make):
    envs, actions = make(), actions_for(2 * HORIZON)
    episodes = []
    for _ in range(2):
        envs.reset(seed=5)
        episodes.append(play(envs, actions))
    assert_same(*episodes)


def test_returns_have_gymnasiums_types_and_are_never_reused(make):
    envs = make()
    first, info = envs.reset(seed=0)
    kept = first.copy()
    assert info["context_frames"].tolist() == [6, 6, 6]
    assert info["_context_frames"].all()
    obs, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
    assert (obs.dtype, rewards.dtype, terminated.dtype, truncated.dtype) == (np.uint8, np.float32, np.bool_, np.bool_)
    assert rewards.shape == terminated.shape == truncated.shape == (3,)
    assert info["imagined_steps"].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(first, kept)
    obs[:], kept = 0, None
    assert envs.get_state().dream.frames.any()


def test_torch_output_equals_numpy_output(make):
    actions = actions_for(HORIZON + 2)
    numpy_envs, torch_envs = make(), make(output="torch")
    numpy_envs.reset(seed=0)
    obs, _ = torch_envs.reset(seed=0)
    assert isinstance(obs, torch.Tensor)
    expected = play(numpy_envs, actions)
    given = play(torch_envs, torch.from_numpy(actions))
    assert all(isinstance(value, torch.Tensor) for step in given for value in step)
    assert_same(expected, [[value.numpy() for value in step] for step in given])


def test_next_step_autoreset_gives_the_end_first_and_the_new_episode_next(make):
    envs = make()
    envs.reset(seed=0)
    *_, last = play(envs, actions_for(HORIZON))
    assert last[3].all()
    obs, rewards, terminated, truncated, info = envs.step([0, 0, 0])
    last_frames = make_tiny_clips().frames[:, [5, 7, 9, 11]].reshape(-1, 16, 16, 3)
    assert all(any(np.array_equal(row, frame) for frame in last_frames) for row in obs)
    assert not rewards.any()
    assert not (terminated | truncated).any()
    assert info["imagined_steps"].tolist() == [0, 0, 0]
    assert envs.step([0, 0, 0])[4]["imagined_steps"].tolist() == [1, 1, 1]


def test_an_autoreset_row_starts_the_episode_that_its_own_generator_draws(make):
    """Rows end at different times after a partial reset, and still follow their own seeds."""
    envs, lone = make(2, autoreset_mode="Disabled"), make(1)
    envs.reset(seed=[3, 4])
    play(envs, actions_for(5, 2))
    obs, info = envs.reset(seed=[None, 11], options={"reset_mask": np.array([False, True])})
    assert info["_imagined_steps"].tolist() == [False, True]
    expected, _ = lone.reset(seed=[11])
    np.testing.assert_array_equal(obs[1], expected[0])
    truncated = np.zeros(2, bool)
    for action in actions_for(3, 2):
        obs, _, _, truncated, info = envs.step(action)
        expected = lone.step(action[1:])[0]
        assert np.abs(obs[1].astype(int) - expected[0]).max() <= 1
    assert info["imagined_steps"].tolist() == [8, 3]
    assert truncated.tolist() == [True, False]


def test_a_partial_reset_leaves_the_other_rows_alone(make):
    actions = actions_for(HORIZON)
    envs = make(autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    expected = play(envs, actions)
    envs.reset(seed=0)
    play(envs, actions[:4])
    envs.reset(options={"reset_mask": np.array([False, False, True])})
    for one, other in zip(expected[4:], play(envs, actions[4:]), strict=True):
        np.testing.assert_array_equal(one[0][:2], other[0][:2])
        np.testing.assert_array_equal(one[1][:2], other[1][:2])


def test_disabled_autoreset_demands_a_reset_of_the_rows_that_ended(make):
    envs = make(autoreset_mode="Disabled")
    envs.reset(seed=0)
    play(envs, actions_for(HORIZON))
    with pytest.raises(gym.error.ResetNeeded, match=r"\[0, 1, 2\]"):
        envs.step([0, 0, 0])
    envs.reset(options={"reset_mask": torch.tensor([True, True, False])})
    with pytest.raises(gym.error.ResetNeeded, match=r"\[2\]"):
        envs.step([0, 0, 0])
    envs.reset(options={"reset_mask": np.array([False, False, True])})
    envs.step([0, 0, 0])


def test_same_step_autoreset_gives_the_new_episode_at_once_and_the_end_in_info(make):
    next_step, same_step = make(), make(autoreset_mode="SameStep")
    actions = actions_for(HORIZON)
    next_step.reset(seed=0)
    same_step.reset(seed=0)
    expected = play(next_step, actions)
    assert_same(expected[:-1], play(same_step, actions[:-1]))
    obs, rewards, terminated, truncated, info = same_step.step(actions[-1])
    np.testing.assert_array_equal(np.stack(info["final_obs"]), expected[-1][0])
    np.testing.assert_array_equal(rewards, expected[-1][1])
    assert truncated.all()
    assert not terminated.any()
    assert info["_final_obs"].all()
    assert info["final_info"]["imagined_steps"].tolist() == [HORIZON] * 3
    assert info["imagined_steps"].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(obs, next_step.step([0, 0, 0])[0])


def test_termination_comes_from_the_head(make, tmp_path):
    model = tiny_model()
    set_termination_bias(model, 20.0)
    envs = make(checkpoint=save_tiny_checkpoint(tmp_path / "ends.safetensors", model))
    envs.reset(seed=0)
    assert envs.step([0, 1, 2])[2].tolist() == [True] * 3
    assert envs.step([0, 1, 2])[2].tolist() == [False] * 3


def test_what_the_head_holds_for_likely_is_told_whatever_the_threshold(make):
    doubting, trusting = make(reward_threshold=1 - 1e-6), make(reward_threshold=1e-6)
    for envs in (doubting, trusting):
        envs.reset(seed=5)
        with pytest.raises(gym.error.ResetNeeded):
            _ = envs.unwrapped.likely_rewards
    never, always = doubting.step(np.ones(3, int))[1], trusting.step(np.ones(3, int))[1]
    (reward, probability), (same, equal) = doubting.unwrapped.likely_rewards, trusting.unwrapped.likely_rewards
    assert reward.tolist() == same.tolist() == always.tolist() == [1, 1, 1] and never.tolist() == [0, 0, 0]
    assert probability.tolist() == equal.tolist() and min(probability) > 0 and max(probability) < 1


def test_a_fork_goes_on_exactly_as_the_episodes_did(make):
    envs, actions = make(), actions_for(2 * HORIZON)
    envs.reset(seed=0)
    play(envs, actions[:3])
    state = envs.get_state()
    expected = play(envs, actions[3:])
    for other in (envs, make()):
        other.set_state(state)
        assert_same(play(other, actions[3:]), expected)
    with pytest.raises(TypeError, match="VectorEpisodeState"):
        envs.set_state(None)
    with pytest.raises(ValueError, match="shape"):
        make(2).set_state(state)


def test_contexts_are_given_for_all_rows_or_one_for_each(make):
    envs, clips = make(), make_tiny_clips()
    obs, info = envs.reset(seed=0, options={"context": (clips.frames[0, :4], clips.actions[0, :3])})
    assert all(np.array_equal(row, clips.frames[0, 3]) for row in obs)
    assert info["context_frames"].tolist() == [4, 4, 4]
    obs, _ = envs.reset(seed=0, options={"context": (clips.frames, clips.actions)})
    np.testing.assert_array_equal(obs, clips.frames[:, -1])


@pytest.mark.parametrize("actions", [[0, 0], [0, 0, 3], [0, 0, -1], [0.0, 1.0, 2.0], None, 0, [[0], [0], [0]]])
def test_wrong_actions_are_value_errors(make, actions):
    envs = make()
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"3 action\(s\) from Discrete"):
        envs.step(actions)


def test_step_needs_a_reset_first_and_close_is_final(make):
    envs = make()
    with pytest.raises(gym.error.ResetNeeded):
        envs.step([0, 0, 0])
    with pytest.raises(gym.error.ResetNeeded, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(gym.error.ResetNeeded):
        envs.get_state()
    envs.reset(seed=0)
    envs.close()
    envs.close()
    with pytest.raises(gym.error.ResetNeeded):
        envs.step([0, 0, 0])
    with pytest.raises(gym.error.ResetNeeded):
        envs.reset()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"seed": [1, 2]}, ValueError),
        ({"options": {"mask": 1}}, ValueError),
        ({"options": {"reset_mask": [True, True, True]}}, TypeError),
        ({"options": {"reset_mask": np.ones(3)}}, TypeError),
        ({"options": {"reset_mask": np.ones(2, bool)}}, ValueError),
        ({"options": {"reset_mask": np.zeros(3, bool)}}, ValueError),
        ({"options": {"context": (np.zeros((2, 4, 16, 16, 3), np.uint8), np.zeros((2, 3), int))}}, ValueError),
        ({"options": {"context": (np.zeros((3, 4, 16, 16, 3), np.uint8), np.zeros((3, 4), int))}}, ValueError),
        ({"options": {"context": (np.zeros((3, 4, 16, 16, 3)), np.zeros((3, 3), int))}}, TypeError),
    ],
)
def test_wrong_resets_are_clear_errors(make, arguments, error):
    envs = make()
    envs.reset(seed=0)
    with pytest.raises(error):
        envs.reset(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"output": "jax"}, "output"),
        ({"autoreset_mode": "never"}, "never"),
        ({"render_mode": "human"}, "render_mode"),
        ({"device": "cuda:99"}, "available: cpu"),
    ],
)
def test_wrong_arguments_are_value_errors(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_rendering_gives_the_frames_of_all_rows(make):
    envs = make(render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded):
        envs.render()
    obs, _ = envs.reset(seed=0)
    pictures = envs.render()
    np.testing.assert_array_equal(np.stack(pictures), obs)  # pyright: ignore
    assert make().render() is None


def test_seeds_and_generators_are_given_row_by_row(make):
    envs = make()
    envs.reset(seed=[4, None, 6])
    assert envs.np_random_seed[0] == 4  # pyright: ignore
    assert envs.np_random_seed[2] == 6  # pyright: ignore
    assert len(envs.np_random) == 3  # pyright: ignore


@pytest.mark.gpu
def test_on_a_gpu_torch_output_stays_there_and_seeds_still_decide(make):
    envs, actions = make(device="cuda", output="torch"), torch.from_numpy(actions_for(HORIZON)).cuda()
    episodes = []
    for _ in range(2):
        obs, _ = envs.reset(seed=0)
        assert obs.is_cuda
        episodes.append(play(envs, actions))
    assert all(value.is_cuda for value in episodes[0][0])
    for one, other in zip(*episodes, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.gpu
def test_on_a_gpu_64_packaged_dreams_go_on_for_500_steps_without_growing():
    envs = gym.make_vec(
        ENV_ID, num_envs=64, vectorization_mode="vector_entry_point", device="cuda", output="torch", horizon=200
    )
    first, _ = envs.reset(seed=0)
    kept, memory = first.clone(), []
    actions = torch.randint(0, 6, (500, 64), device="cuda")
    for t in range(500):
        obs, rewards, terminated, truncated, info = envs.step(actions[t])
        assert info["imagined_steps"].tolist() == [(t + 1) % 201] * 64
        assert all(value.is_cuda for value in (obs, rewards, terminated, truncated))
        if t in (250, 499):
            torch.cuda.synchronize()
            memory.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert memory[0] == memory[1]
    assert torch.equal(first, kept)


@pytest.mark.gpu
def test_on_a_gpu_wrong_actions_on_the_device_are_value_errors(make):
    envs = make(device="cuda", output="torch")
    envs.reset(seed=0)
    for wrong in ([0, 0, 3], [0, -1, 0]):
        with pytest.raises(ValueError, match="nearest"):
            envs.step(torch.tensor(wrong, device="cuda"))
    for unfit in (torch.zeros(2, dtype=torch.int64), torch.zeros(3), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"3 action\(s\) from Discrete"):
            envs.step(unfit.cuda())
    envs.step(torch.tensor([0, 1, 2], device="cuda"))
