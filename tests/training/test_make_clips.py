import numpy as np
import pytest

from tests.toy_store import make_toy_store
from training.data.reward_moments import steps_to_reward
from training.make_clips import MakeClips, main
from wm_gym.contexts import load_clips


def config_for(out, num_frames):
    env = "tests.toy_env:tests/ToyMaze-v0"
    return MakeClips(out=out, env=env, policy="random", seed=7, num_clips=3, num_frames=num_frames)


def test_clips_are_the_first_frames_of_the_episodes_of_consecutive_seeds(tmp_path):
    for name in ("a.npz", "b.npz"):
        main(config_for(tmp_path / name, 12))
    clips, again = load_clips(tmp_path / "a.npz"), load_clips(tmp_path / "b.npz")
    assert clips.seeds.tolist() == [7, 8, 9]
    assert clips.frames.shape[:2] == (3, 12)
    assert clips.actions.shape == (3, 11)
    np.testing.assert_array_equal(clips.frames, again.frames)
    assert (clips.frames[0] != clips.frames[1]).any()


def test_an_episode_that_is_too_short_is_a_value_error_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="ended after 41 of 50 frames"):
        main(config_for(tmp_path / "a.npz", 50))
    assert not list(tmp_path.iterdir())


def test_clips_before_rewards_end_at_moments_whose_next_reward_is_that_far_away(tmp_path):
    store = make_toy_store(tmp_path / "store", range(12))
    main(
        MakeClips(tmp_path / "a.npz", data=store.path, split="train", num_clips=10, num_frames=8, before_rewards=(2, 5))
    )
    clips = load_clips(tmp_path / "a.npz")
    assert clips.frames.shape[:2] == (10, 8) and clips.actions.shape == (10, 7)
    for frames, actions, seed in zip(clips.frames, clips.actions, clips.seeds, strict=True):
        episode = store.read(int(seed))
        ends = [
            end
            for end in range(8, len(episode.frames))
            if (episode.frames[end - 8 : end] == frames).all() and (episode.actions[end - 8 : end - 1] == actions).all()
        ]
        # At frame `end - 1` the next reward may come from this very action, which is 1 step.
        following = [1 + int(np.flatnonzero(episode.rewards[end - 1 :])[0]) for end in ends]
        assert any(2 <= steps <= 5 for steps in following)


def test_steps_to_reward_count_the_rewarded_step_and_are_0_where_none_follows():
    assert steps_to_reward(np.array([0, 0, 1, 0, 1, 0])).tolist() == [3, 2, 1, 2, 1, 0]
    assert steps_to_reward(np.zeros(3)).tolist() == [0, 0, 0]


def test_too_few_moments_before_rewards_are_a_value_error(tmp_path):
    store = make_toy_store(tmp_path / "store", range(2))
    for changes, message in (
        ({"num_clips": 5000}, "moments in split 'train'"),
        ({"before_rewards": (5, 2)}, "nearest <= farthest"),
        ({"data": None}, "give --data"),
    ):
        values = {"data": store.path, "split": "train", "num_frames": 8, "before_rewards": (1, 9), **changes}
        with pytest.raises(ValueError, match=message):
            main(MakeClips(tmp_path / "a.npz", **values))
    assert not (tmp_path / "a.npz").exists()


def test_clips_that_are_not_compressed_are_the_same(tmp_path):
    store = make_toy_store(tmp_path / "store", range(3))
    for name, compress in (("a.npz", True), ("b.npz", False)):
        main(MakeClips(tmp_path / name, data=store.path, split="train", num_clips=3, num_frames=8, compress=compress))
    np.testing.assert_array_equal(load_clips(tmp_path / "a.npz").frames, load_clips(tmp_path / "b.npz").frames)
    assert (tmp_path / "a.npz").stat().st_size < (tmp_path / "b.npz").stat().st_size
