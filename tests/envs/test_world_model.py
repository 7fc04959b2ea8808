# pyright: reportAttributeAccessIssue=false
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import wm_gym
from tests.tiny import (
    CONTINUOUS,
    DISCRETE,
    OBSERVATION_SPACE,
    VECTOR_POSE,
    make_tiny_clips,
    save_tiny_checkpoint,
    set_termination_bias,
    tiny_model,
)
from wm_gym.codec import model_to_frames
from wm_gym.envs.dream.rewards import rewards_above
from wm_gym.envs.world_model import WorldModelEnv
from wm_gym.ops.step import frame_noise

ENV_ID = "LSSVWM-MemoryMaze-v0"
ACTIONS = [0, 1, 2, 1, 0, 2, 2, 1]


@pytest.fixture
def env(tiny_kwargs):
    env = gym.make(ENV_ID, **tiny_kwargs).unwrapped
    yield env
    env.close()


def find_in_clips(obs):
    """Numbers of the clip and of its frame that `obs` shows."""
    frames = make_tiny_clips().frames
    (match,) = np.argwhere((frames == obs).all(axis=(2, 3, 4)))
    return tuple(match.tolist())


def play(env, actions=ACTIONS):
    return [env.step(action)[:4] for action in actions]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]


def test_importing_the_package_loads_no_simulator():
    code = "import wm_gym, sys; assert not {'mujoco', 'dm_control', 'memory_maze', 'gym', 'pygame'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_there():
    assert all(hasattr(wm_gym, name) for name in wm_gym.__all__)


def test_check_env_passes_without_warnings(tiny_kwargs, monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(ENV_ID, **tiny_kwargs).unwrapped)


def test_stable_baselines_check_env_passes_without_warnings(tmp_path):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    path = save_tiny_checkpoint(tmp_path / "a.safetensors", tiny_model(frame_height=48, frame_width=48))
    clips = make_tiny_clips(num_frames=4)
    wide = wm_gym.Clips(clips.frames.repeat(3, 2).repeat(3, 3), clips.actions, clips.seeds)
    wm_gym.save_clips(tmp_path / "wide.npz", wide)
    env = gym.make(ENV_ID, checkpoint=path, contexts=tmp_path / "wide.npz", context_frames=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(env)


def test_spaces_are_those_of_the_checkpoint(env):
    assert env.observation_space == OBSERVATION_SPACE
    assert env.action_space == DISCRETE


@pytest.mark.parametrize(("starts_per_clip", "starts"), [(1, {0}), (4, {0, 2, 4, 6}), (20, set(range(7)))])
def test_reset_shows_the_last_frame_of_the_part_of_a_clip_that_the_seed_draws(tiny_kwargs, starts_per_clip, starts):
    env = gym.make(ENV_ID, starts_per_clip=starts_per_clip, **tiny_kwargs).unwrapped
    drawn = set()
    for seed in range(100):
        obs, info = env.reset(seed=seed)
        clip, last = find_in_clips(obs)
        drawn.add((clip, last - 5))
        assert info == {"context_frames": 6, "imagined_steps": 0}
    assert drawn == {(clip, start) for clip in range(3) for start in starts}


def test_a_context_that_was_kept_gives_the_episode_that_reading_it_anew_gives(env, tiny_kwargs):
    for seed in (3, 1, 4, 1, 3):
        obs, _ = env.reset(seed=seed)
        kept = play(env)
        fresh = gym.make(ENV_ID, **tiny_kwargs).unwrapped
        np.testing.assert_array_equal(fresh.reset(seed=seed)[0], obs)
        assert_same(play(fresh), kept)


def test_the_same_seed_gives_the_same_episode_and_another_seed_another(env):
    context = {"context": (make_tiny_clips().frames[0], make_tiny_clips().actions[0])}
    episodes = []
    for seed in (5, 5, 6):
        env.reset(seed=seed, options=context)
        episodes.append(play(env))
    assert_same(episodes[0], episodes[1])
    assert any((a[0] != b[0]).any() for a, b in zip(episodes[0], episodes[2], strict=True))


def test_later_episodes_follow_from_the_first_seed(env, tiny_kwargs):
    twin = gym.make(ENV_ID, **tiny_kwargs).unwrapped
    for one in (env, twin):
        one.reset(seed=3)
    for _ in range(3):
        np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])
        assert_same(play(env), play(twin))


def test_steps_are_those_of_the_model(env):
    clips = make_tiny_clips()
    clip, last = find_in_clips(env.reset(seed=4)[0])
    model = tiny_model()
    key = torch.tensor([np.random.default_rng(4).integers(-(2**63), 2**63, dtype=np.int64)])
    frames = torch.from_numpy(clips.frames[clip : clip + 1, last - 5 : last + 1])
    actions = torch.from_numpy(clips.actions[clip : clip + 1, last - 5 : last])
    state = model.prefill(model.initial_state(1), frames, actions)
    with torch.no_grad():
        for t, action in enumerate(ACTIONS):
            noise = frame_noise(key, torch.tensor([t]), (3, 16, 16))
            prediction, state = model.step(state, torch.tensor([action]), noise)
            obs, reward, terminated, truncated, info = env.step(action)
            # A value half-way between two grey levels may be rounded either way.
            assert np.abs(obs.astype(int) - model_to_frames(prediction.frame)[0].numpy()).max() <= 1
            assert reward == prediction.reward.item()
            assert (terminated, truncated) == (False, t == 7)
            assert info == {"context_frames": 6, "imagined_steps": t + 1}


def test_a_given_context_is_dreamed_on_from(env):
    clips = make_tiny_clips()
    frames, actions = clips.frames[1, :9], clips.actions[1, :8]
    obs, info = env.reset(seed=1, options={"context": (frames, actions)})
    np.testing.assert_array_equal(obs, frames[-1])
    assert info["context_frames"] == 9
    env.step(0)


def test_an_episode_can_be_dreamed_from_a_single_frame(env):
    env.reset(seed=1, options={"context": (make_tiny_clips().frames[0, :1], [])})
    assert play(env)[-1][3]


def test_truncation_comes_after_the_horizon_and_termination_from_the_head(tiny_kwargs, tmp_path):
    model = tiny_model()
    set_termination_bias(model, 20.0)
    path = save_tiny_checkpoint(tmp_path / "ends.safetensors", model)
    env = gym.make(ENV_ID, **{**tiny_kwargs, "checkpoint": path}).unwrapped
    env.reset(seed=0)
    assert env.step(0)[2:4] == (True, False)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_rewards_are_values_of_the_head(env):
    env.reset(seed=0)
    rewards = [step[1] for step in play(env)]
    assert set(rewards) <= {0.0, 1.0}
    assert all(type(reward) is float for reward in rewards)


def test_rewards_above_a_threshold_are_the_likeliest_ones_other_than_0():
    values = torch.tensor([0.0, 1.0, 5.0])
    logits = torch.tensor([[0.8, 0.15, 0.05], [0.6, 0.15, 0.25], [0.2, 0.1, 0.7]]).log()
    assert rewards_above(0.3, logits, values).tolist() == [0.0, 5.0, 5.0]
    assert rewards_above(0.1, logits, values).tolist() == [1.0, 5.0, 5.0]
    assert rewards_above(0.9, logits, values).tolist() == [0.0, 0.0, 0.0]


def test_an_episode_that_ends_at_rewards_terminates_with_its_first_one(tiny_kwargs):
    # A threshold that every step passes, or none does.
    kwargs = {**tiny_kwargs, "end_at_reward": True}
    eager = gym.make(ENV_ID, **kwargs, reward_threshold=1e-9).unwrapped
    eager.reset(seed=0)
    assert eager.step(0)[1:4] == (1.0, True, False)
    never = gym.make(ENV_ID, **kwargs, reward_threshold=1 - 1e-9).unwrapped
    plain = gym.make(ENV_ID, **tiny_kwargs).unwrapped
    never.reset(seed=0)
    plain.reset(seed=0)
    for one, other in zip(play(never), play(plain), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1] == 0.0 and one[2:] == other[2:]


def test_more_denoising_steps_change_the_dream(tiny_kwargs):
    frames = []
    for num_denoising_steps in (1, 3):
        env = gym.make(ENV_ID, num_denoising_steps=num_denoising_steps, **tiny_kwargs).unwrapped
        env.reset(seed=0)
        frames.append(env.step(1)[0])
    assert (frames[0] != frames[1]).any()


def test_a_fork_goes_on_exactly_as_the_episode_did_here_and_in_a_twin(env, tiny_kwargs):
    twin = gym.make(ENV_ID, **tiny_kwargs).unwrapped
    env.reset(seed=9)
    play(env, [0, 1])
    state = env.get_state()
    rest = play(env, ACTIONS[2:])
    after = env.reset()[0]
    for one in (env, twin):
        one.set_state(state)
        assert_same(play(one, ACTIONS[2:]), rest)
        assert rest[-1][3]
        np.testing.assert_array_equal(one.reset()[0], after)


def test_a_fork_of_an_ended_episode_has_ended(env):
    env.reset(seed=9)
    play(env)
    state = env.get_state()
    env.reset()
    env.set_state(state)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_a_foreign_state_is_refused(env, tiny_kwargs):
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.get_state()
    with pytest.raises(TypeError, match="EpisodeState"):
        env.set_state({})
    vector = gym.make_vec(ENV_ID, num_envs=2, **tiny_kwargs)
    vector.reset(seed=0)
    env.reset(seed=0)
    wrong = type(env.get_state())(vector.get_state().dream, env.get_state().np_random)  # pyright: ignore
    with pytest.raises(ValueError, match="shape"):
        env.set_state(wrong)


@pytest.mark.parametrize("action", [3, -1, 1.0, "1", None, True, [0], np.array([0, 1]), np.float32(1), torch.tensor(5)])
def test_a_wrong_action_is_a_value_error_and_changes_nothing(env, action):
    env.reset(seed=2)
    expected = play(env)
    env.reset(seed=2)
    with pytest.raises(ValueError, match=r"from Discrete\(3\)"):
        env.step(action)
    assert_same(play(env), expected)


@pytest.mark.parametrize("action", [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1)])
def test_any_integer_is_an_action(env, action):
    env.reset(seed=2)
    expected = env.step(1)[0]
    env.reset(seed=2)
    np.testing.assert_array_equal(env.step(action)[0], expected)


def test_continuous_actions_reach_the_model(tiny_kwargs, tmp_path):
    model = tiny_model(action_kind="continuous", action_size=2)
    path = save_tiny_checkpoint(tmp_path / "box.safetensors", model, CONTINUOUS)
    env = gym.make(ENV_ID, **{**tiny_kwargs, "checkpoint": path}).unwrapped
    assert env.action_space == CONTINUOUS
    context = (make_tiny_clips().frames[0], np.zeros((11, 2), np.float32))
    frames = []
    for action in (np.zeros(2, np.float32), [1.0, -1.0]):
        env.reset(seed=1, options={"context": context})
        frames.append(env.step(action)[0])
    assert (frames[0] != frames[1]).any()
    for wrong in (np.array([0.0, 2.0]), np.array([np.nan, 0.0]), np.zeros(3), 0.5, None):
        with pytest.raises(ValueError, match="from Box"):
            env.step(wrong)


def test_discrete_actions_count_from_the_start_of_their_space(tiny_kwargs, tmp_path):
    path = save_tiny_checkpoint(tmp_path / "shifted.safetensors", action_space=gym.spaces.Discrete(3, start=5))
    shifted = gym.make(ENV_ID, **{**tiny_kwargs, "checkpoint": path}).unwrapped
    plain = gym.make(ENV_ID, **tiny_kwargs).unwrapped
    frames, actions = make_tiny_clips().frames[0], make_tiny_clips().actions[0]
    plain.reset(seed=1, options={"context": (frames, actions)})
    shifted.reset(seed=1, options={"context": (frames, actions + 5)})
    assert_same(play(plain), play(shifted, [action + 5 for action in ACTIONS]))


def test_step_needs_a_reset_before_the_first_and_after_the_last_step(env):
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    play(env)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)


def test_a_closed_environment_can_be_closed_again_but_not_used(env):
    env.reset(seed=0)
    env.close()
    env.close()
    for use in (env.reset, lambda: env.step(0)):
        with pytest.raises(gym.error.ResetNeeded):
            use()


def test_wrong_reset_options_are_clear_errors_that_leave_the_episode_alone(env):
    env.reset(seed=2)
    expected = play(env)
    env.reset(seed=2)
    frames = make_tiny_clips().frames[0]
    for options, error in (
        ({"contxt": 1}, ValueError),
        ({"context": frames}, TypeError),
        ({"context": (frames.astype(float), ACTIONS)}, TypeError),
        ({"context": (frames[:, :8], ACTIONS)}, ValueError),
        ({"context": (frames, ACTIONS[:2])}, ValueError),
    ):
        with pytest.raises(error):
            env.reset(seed=3, options=options)
    assert_same(play(env), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"checkpoint": "unknown"}, FileNotFoundError, "No checkpoint"),
        ({"device": "cuda:99"}, ValueError, "available: cpu"),
        ({"horizon": 0}, ValueError, "horizon"),
        ({"context_frames": 0}, ValueError, "context_frames"),
        ({"num_denoising_steps": 1.5}, ValueError, "num_denoising_steps"),
        ({"starts_per_clip": 0}, ValueError, "starts_per_clip"),
        ({"reward_threshold": 1.0}, ValueError, "reward_threshold"),
        ({"state_dtype": "float16"}, ValueError, "float32, bfloat16"),
        ({"render_mode": "ansi"}, ValueError, "render_mode"),
    ],
)
def test_wrong_arguments_are_clear_errors(tiny_kwargs, changes, error, message):
    with pytest.raises(error, match=message):
        WorldModelEnv(**{**tiny_kwargs, **changes})


def test_clips_of_another_size_or_too_short_are_value_errors_at_reset(tiny_kwargs):
    env = gym.make(ENV_ID, **{**tiny_kwargs, "contexts": "memory-maze"}).unwrapped
    with pytest.raises(ValueError, match="64, 64, 3"):
        env.reset(seed=0)
    env = gym.make(ENV_ID, **{**tiny_kwargs, "context_frames": 13}).unwrapped
    with pytest.raises(ValueError, match="clips have 1 to 12"):
        env.reset(seed=0)


def test_a_model_that_needs_poses_is_refused(tiny_kwargs, tmp_path):
    path = save_tiny_checkpoint(tmp_path / "pose.safetensors", tiny_model(pose=VECTOR_POSE))
    with pytest.raises(ValueError, match="needs poses"):
        gym.make(ENV_ID, **{**tiny_kwargs, "checkpoint": path})


def test_rgb_array_rendering_is_a_copy_of_the_newest_frame(tiny_kwargs):
    env = gym.make(ENV_ID, render_mode="rgb_array", **tiny_kwargs).unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        env.render()
    obs, _ = env.reset(seed=0)
    picture = env.render()
    np.testing.assert_array_equal(picture, obs)
    picture[:] = 0  # pyright: ignore
    obs = env.step(1)[0]
    np.testing.assert_array_equal(env.render(), obs)


def test_without_a_render_mode_nothing_is_rendered(env):
    env.reset(seed=0)
    assert env.render() is None


def test_human_rendering_shows_the_frame_in_a_window(tiny_kwargs, monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make(ENV_ID, render_mode="human", **tiny_kwargs).unwrapped
    obs, _ = env.reset(seed=0)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert shown.shape == (512, 512, 3)
    np.testing.assert_array_equal(shown[16::32, 16::32], obs)
    assert env.render() is None
    env.close()
    assert not pygame.display.get_init()


def test_human_rendering_without_pygame_says_what_to_install(tiny_kwargs, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(gym.error.DependencyNotInstalled, match="pip install pygame"):
        gym.make(ENV_ID, render_mode="human", **tiny_kwargs)


def test_a_thousand_steps_keep_the_size_of_the_memory(tiny_kwargs):
    env = gym.make(ENV_ID, **{**tiny_kwargs, "horizon": 1000}).unwrapped
    env.reset(seed=0)
    sizes = []
    for t in range(1000):
        truncated = env.step(t % 3)[3]
        if t in (10, 999):
            sizes.append((env.state_bytes_per_env, env.get_state().dream.model_state.num_bytes()))
        assert truncated == (t == 999)
    assert sizes[0] == sizes[1]
    assert sizes[0][0] == sizes[0][1] + 16  # the key and the counter of the noise


def test_a_memory_in_bfloat16_takes_less_space_and_dreams_much_the_same(tiny_kwargs):
    envs = [gym.make(ENV_ID, state_dtype=dtype, **tiny_kwargs).unwrapped for dtype in ("float32", "bfloat16")]
    frames = []
    for env in envs:
        env.reset(seed=0)
        frames.append(np.stack([step[0] for step in play(env)]).astype(int))
    assert envs[1].state_bytes_per_env < envs[0].state_bytes_per_env
    assert 0 < np.abs(frames[0] - frames[1]).max() <= 16


def test_the_packaged_dream_has_the_spaces_of_the_real_memory_maze_and_dreams():
    env = gym.make(ENV_ID)
    assert env.observation_space == gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert env.action_space == gym.spaces.Discrete(6)
    context = wm_gym.load_clips().context(0, 20)
    env.reset(seed=0, options={"context": (context.frames, context.actions)})
    obs, _, terminated, truncated, _ = env.step(1)
    assert not terminated
    assert not truncated
    assert np.abs(obs.astype(int) - context.frames[-1]).mean() < 60
