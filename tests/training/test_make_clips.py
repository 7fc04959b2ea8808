import numpy as np
import pytest

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
