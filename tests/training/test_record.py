"""`RecordEpisodes` leaves the environment as it is, and its store holds what was played."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.toy_store import TOY_ENV, toy_episode
from training.collect import CollectConfig, collect
from training.record import RecordEpisodes
from training.store.episode_store import open_store
from wm_gym.seeds import FIRST_EVALUATION_SEED

STEPS = 40


def toy(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make(TOY_ENV, **kwargs)


def play(env: gym.Env[Any, Any], actions: Any, seed: int | None = None) -> None:
    env.reset(seed=seed)
    for action in actions:
        env.step(action)


def test_a_played_episode_is_stored_as_the_collector_would(tmp_path: Path) -> None:
    expected = toy_episode(seed=4)
    with RecordEpisodes(toy(), tmp_path / "store", policy="random") as env:
        play(env, expected.actions, seed=4)
        assert env.store.seeds() == [4]  # as soon as it ends, not at close
    episode = open_store(tmp_path / "store").read(4)
    for name in ("frames", "actions", "rewards", "terminations", "truncations", "pose"):
        np.testing.assert_array_equal(getattr(episode, name), getattr(expected, name))
    assert "cut" not in episode.attributes
    store = collect(CollectConfig(TOY_ENV, tmp_path / "store", frames=1, policy="random"))  # the headers are alike
    assert store.seeds() == [0, 4]


def test_the_player_sees_the_environment_as_it_is(tmp_path: Path) -> None:
    plain, recorded = toy(), RecordEpisodes(toy(), tmp_path / "store", resize=8)
    assert recorded.observation_space == plain.observation_space
    assert recorded.action_space == plain.action_space
    np.testing.assert_array_equal(recorded.reset(seed=1)[0], plain.reset(seed=1)[0])
    for action in (0, 1, 0, 2):
        ours, theirs = recorded.step(action), plain.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4] and ours[4].keys() == theirs[4].keys()
    recorded.close()
    assert recorded.store.read(1).frames.shape == (5, 8, 8, 3)


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_an_episode_that_is_cut_short_is_stored_as_truncated(tmp_path: Path, ending: str) -> None:
    env = RecordEpisodes(toy(), tmp_path / "store")
    play(env, [0, 1, 0], seed=7)
    env.close() if ending == "close" else env.reset()
    env.close()
    episode = env.store.read(7)
    assert env.store.seeds() == [7]  # nothing of the episode that was only reset
    assert episode.actions.tolist() == [0, 1, 0]
    assert episode.truncations.tolist() == [False, False, True]
    assert not episode.terminations.any()
    assert episode.attributes["cut"] is True


def test_cut_episodes_are_dropped_on_request(tmp_path: Path) -> None:
    with RecordEpisodes(toy(), tmp_path / "store", keep_cut=False) as env:
        play(env, [0, 1], seed=7)
        play(env, [0] * STEPS, seed=7)  # the seed is free again
        play(env, [0, 1])
    assert env.store.seeds() == [7]
    assert env.store.read(7).num_frames == STEPS + 1


def test_a_reset_without_a_seed_draws_one_that_gives_the_episode_again(tmp_path: Path) -> None:
    with RecordEpisodes(toy(), tmp_path / "store") as env:
        for _ in range(3):
            play(env, [0] * STEPS)
    seeds = env.store.seeds()
    assert len(seeds) == 3 and all(0 <= seed < FIRST_EVALUATION_SEED for seed in seeds)
    again = toy()
    for seed in seeds:
        np.testing.assert_array_equal(again.reset(seed=seed)[0], env.store.read(seed).frames[0])


def test_drawn_seeds_follow_from_the_given_one_and_never_repeat(tmp_path: Path) -> None:
    drawn = []
    for name, first in (("one", 5), ("two", 5), ("three", 6)):
        with RecordEpisodes(toy(), tmp_path / name) as env:
            for seed in (first, None, None):
                play(env, [0], seed)
        drawn.append(env.store.seeds())
    assert drawn[0] == drawn[1] != drawn[2]
    with RecordEpisodes(toy(), tmp_path / "one") as env:
        with pytest.raises(ValueError, match="has an episode of seed 5 in split 'train' already"):
            env.reset(seed=5)
        env.reset(seed=8)
        env.step(0)
    assert set(drawn[0]) < set(env.store.seeds())


def test_held_out_splits_take_held_out_seeds(tmp_path: Path) -> None:
    with RecordEpisodes(toy(), tmp_path / "store", split="test") as env:
        with pytest.raises(ValueError, match="never trained on, got 3"):
            env.reset(seed=3)
        play(env, [0] * 2)
    assert env.store.seeds("test")[0] >= FIRST_EVALUATION_SEED
    assert env.store.seeds("train") == []


def test_what_a_human_sees_can_be_recorded(tmp_path: Path) -> None:
    with RecordEpisodes(toy(render_mode="rgb_array"), tmp_path / "store", obs_key="render", resize=4) as env:
        play(env, [0, 0], seed=1)
    assert env.store.header.recording == {"obs_key": "render", "resize": 4}
    assert env.store.read(1).frames.shape == (3, 4, 4, 3)
    with pytest.raises(ValueError, match="needs render_mode 'rgb_array'"):
        RecordEpisodes(toy(), tmp_path / "other", obs_key="render")


def test_the_header_tells_the_arguments_of_gym_make_and_the_time_limit(tmp_path: Path) -> None:
    RecordEpisodes(toy(size=32, max_episode_steps=9), tmp_path / "store").close()
    header = open_store(tmp_path / "store").header
    assert header.recording == {"env_kwargs": {"size": 32}}
    assert header.max_episode_steps == 9
    with pytest.raises(ValueError, match="is a store with max_episode_steps 9, not None"):
        RecordEpisodes(toy(size=32), tmp_path / "store")


def test_the_end_of_an_episode_needs_a_reset_and_a_wrong_action_is_not_recorded(tmp_path: Path) -> None:
    env = RecordEpisodes(toy(), tmp_path / "store")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    play(env, [0] * (STEPS - 1), seed=0)
    with pytest.raises(ValueError, match="action 3 at frame 39 is not in"):
        env.step(3)
    assert env.step(0)[3]
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    assert env.store.read(0).num_frames == STEPS + 1
    env.close()
    env.close()


def test_an_environment_without_an_id_has_to_be_given_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give env_id="):
        RecordEpisodes(toy().unwrapped.__class__(), tmp_path / "store")
    RecordEpisodes(toy().unwrapped.__class__(), tmp_path / "store", env_id="mine/Toy-v0").close()
    assert open_store(tmp_path / "store").header.env_id == "mine/Toy-v0"


def test_copies_of_an_environment_record_into_one_store(tmp_path: Path) -> None:
    make = [lambda: RecordEpisodes(toy(), tmp_path / "store")] * 2
    envs = gym.vector.SyncVectorEnv(make)
    envs.reset(seed=[10, 20])
    for _ in range(STEPS):
        envs.step(np.zeros(2, np.int64))
    envs.close()
    assert open_store(tmp_path / "store").seeds() == [10, 20]
