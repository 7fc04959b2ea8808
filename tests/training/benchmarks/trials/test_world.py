"""The ring is what trials take it for: one picture at a time, told by the heading, new in every episode."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from training.benchmarks.trials.measure import ENV, POLICY
from training.benchmarks.trials.world import KEEP_TURNING, LAMP, NUM_PICTURES, TURN_LEFT, TURN_RIGHT
from training.recording.episode import make_env, policy_seed, record_episode
from training.recording.policies import make_policy


def turned(env: gym.Env[np.ndarray, np.int64], action: int, times: int) -> list[np.ndarray]:
    return [env.step(np.int64(action))[0] for _ in range(times)]


def test_it_is_a_gymnasium_environment() -> None:
    check_env(make_env(ENV).unwrapped, skip_render_check=True)


def test_a_whole_turn_comes_back_to_every_picture_and_the_other_way_round_shows_them_in_reverse() -> None:
    env = make_env(ENV)
    first, _ = env.reset(seed=3)
    ring = turned(env, TURN_LEFT, NUM_PICTURES)
    np.testing.assert_array_equal(ring[-1], first)
    assert len({frame.tobytes() for frame in ring}) == NUM_PICTURES
    back = turned(env, TURN_RIGHT, NUM_PICTURES)
    np.testing.assert_array_equal(back[:-1], ring[-2::-1])


def test_pictures_are_new_in_every_episode_and_the_same_for_the_same_seed() -> None:
    env = make_env(ENV)
    first, other, again = (env.reset(seed=seed)[0] for seed in (3, 4, 3))
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, again)


def test_the_reward_comes_with_the_lamp_once_in_a_turn() -> None:
    env = make_env(ENV)
    env.reset(seed=3)
    steps = [env.step(np.int64(TURN_LEFT)) for _ in range(NUM_PICTURES)]
    lit = [obs[0, 0].tolist() == [LAMP] * 3 for obs, *_ in steps]
    assert sum(lit) == 1
    assert [reward for _, reward, *_ in steps] == [float(one) for one in lit]


def test_pose_turns_counter_clockwise_to_the_left() -> None:
    env = make_env(ENV)
    _, before = env.reset(seed=3)
    *_, after = env.step(np.int64(TURN_LEFT))
    angles = [np.arctan2(info["pose"][3], info["pose"][2]) for info in (before, after)]
    assert (angles[1] - angles[0]) % (2 * np.pi) == pytest.approx(2 * np.pi / NUM_PICTURES, abs=1e-5)
    assert not after["pose"][:2].any()


def test_the_policy_keeps_its_direction_mostly() -> None:
    env = make_env(ENV)
    episodes = [record_episode(env, make_policy(POLICY, env, policy_seed(seed)), seed) for seed in range(20)]
    turns = np.mean([np.diff(episode.actions) != 0 for episode in episodes])
    assert turns == pytest.approx(1 - KEEP_TURNING, abs=0.02)


def test_an_action_that_there_is_not_is_refused() -> None:
    env = make_env(ENV).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be in"):
        env.step(np.int64(2))
