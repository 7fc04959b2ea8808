import numpy as np
import pytest

from tests.tiny import CONTINUOUS, DISCRETE, OBSERVATION_SPACE, make_tiny_clips, save_tiny_clips
from wm_gym.contexts import Clips, Context, load_clips, make_context, packaged_clips, save_clips

FRAMES = np.zeros((5, 16, 16, 3), np.uint8)
ACTIONS = np.array([0, 1, 2, 1])


def test_clips_survive_saving(tmp_path):
    clips = make_tiny_clips()
    save_clips(tmp_path / "a.npz", clips)
    loaded = load_clips(tmp_path / "a.npz")
    for name in ("frames", "actions", "seeds"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(clips, name))
    assert len(loaded) == 3


def test_a_context_is_the_beginning_of_a_clip():
    clips = make_tiny_clips()
    context = clips.context(1, 5)
    assert context.num_frames == 5
    np.testing.assert_array_equal(context.frames, clips.frames[1, :5])
    np.testing.assert_array_equal(context.actions, clips.actions[1, :4])


@pytest.mark.parametrize("num_frames", [0, 13])
def test_a_context_longer_than_the_clip_is_a_value_error(num_frames):
    with pytest.raises(ValueError, match="clips have 1 to 12"):
        make_tiny_clips().context(0, num_frames)


def test_unknown_clips_list_the_packaged_names():
    with pytest.raises(FileNotFoundError, match="memory-maze"):
        load_clips("other-maze")


@pytest.mark.parametrize("length", [0, 10, 300, -100])
def test_truncated_clips_are_a_value_error(tmp_path, length):
    path = save_tiny_clips(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged, truncated"):
        load_clips(path)


def test_foreign_clips_are_a_value_error(tmp_path):
    np.savez(tmp_path / "a.npz", frames=np.zeros(3))
    with pytest.raises(ValueError, match="holds no clips"):
        load_clips(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", frames=np.array([object()]), actions=np.zeros(1), seeds=np.zeros(1))
    with pytest.raises(ValueError, match="holds no clips"):
        load_clips(tmp_path / "a.npz")


def test_clips_that_do_not_fit_together_are_not_saved(tmp_path):
    clips = make_tiny_clips()
    with pytest.raises(ValueError, match="do not fit together"):
        save_clips(tmp_path / "a.npz", Clips(clips.frames, clips.actions[:, 1:], clips.seeds))
    with pytest.raises(ValueError, match="uint8 frames"):
        save_clips(tmp_path / "a.npz", Clips(clips.frames / 255, clips.actions, clips.seeds))
    assert not list(tmp_path.iterdir())


def test_a_fitting_context_is_taken_as_it_is():
    for given in ((FRAMES, ACTIONS), [FRAMES, list(ACTIONS)], Context(FRAMES, ACTIONS)):
        context = make_context(given, OBSERVATION_SPACE, DISCRETE)
        np.testing.assert_array_equal(context.frames, FRAMES)
        np.testing.assert_array_equal(context.actions, ACTIONS)


def test_a_single_frame_needs_no_actions():
    assert make_context((FRAMES[:1], []), OBSERVATION_SPACE, DISCRETE).actions.shape == (0,)
    empty = np.zeros((0, 2), np.float32)
    assert make_context((FRAMES[:1], empty), OBSERVATION_SPACE, CONTINUOUS).actions.shape == (0, 2)


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (FRAMES, TypeError, "pair"),
        ((FRAMES, ACTIONS, ACTIONS), TypeError, "pair"),
        ((FRAMES.astype(np.float32), ACTIONS), TypeError, "must be uint8"),
        ((FRAMES, ACTIONS.astype(np.float32)), TypeError, "integer"),
        ((FRAMES[:, :8], ACTIONS), ValueError, r"shape \[T, 16, 16, 3\]"),
        ((FRAMES[0], ACTIONS), ValueError, r"shape \[T, 16, 16, 3\]"),
        ((FRAMES[:0], ACTIONS[:0]), ValueError, "T >= 1"),
        ((FRAMES, ACTIONS[1:]), ValueError, r"5 frames needs actions of shape \[4\]"),
        ((FRAMES, np.append(ACTIONS, 0)), ValueError, r"got \[5\]"),
        ((FRAMES, np.array([0, 1, 2, 3])), ValueError, "not in Discrete"),
        ((FRAMES, np.array([0, 1, 2, -1])), ValueError, "not in Discrete"),
    ],
)
def test_a_context_that_does_not_fit_is_a_clear_error(context, error, message):
    with pytest.raises(error, match=message):
        make_context(context, OBSERVATION_SPACE, DISCRETE)


def test_continuous_actions_are_checked_against_their_box():
    good = np.zeros((4, 2))
    assert make_context((FRAMES, good), OBSERVATION_SPACE, CONTINUOUS).actions.dtype == np.float32
    with pytest.raises(ValueError, match="not in Box"):
        make_context((FRAMES, good + 2), OBSERVATION_SPACE, CONTINUOUS)
    with pytest.raises(TypeError, match="floating"):
        make_context((FRAMES, good.astype(int)), OBSERVATION_SPACE, CONTINUOUS)


def test_the_packaged_clips_are_held_out_memory_mazes_for_100_frames_of_context_and_100_more():
    assert "memory-maze" in packaged_clips()
    clips = load_clips()
    assert clips.frames.shape[2:] == (64, 64, 3)
    assert clips.frames.shape[1] >= 200
    assert clips.actions.min() >= 0
    assert clips.actions.max() < 6
    assert clips.seeds.min() >= 7_000_000
    assert all(np.abs(np.diff(clip.astype(int), axis=0)).mean() > 1 for clip in clips.frames)
