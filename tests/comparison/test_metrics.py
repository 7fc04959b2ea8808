import sys

import numpy as np
import pytest

from wm_gym.comparison.metrics import match_rewards, parting_step, psnr, ssim


def test_psnr_is_the_textbooks_formula_for_each_frame():
    reference = np.full((2, 4, 4, 3), 100, np.uint8)
    frames = reference.copy()
    frames[0] += 10
    frames[1, :2] += 20
    np.testing.assert_allclose(psnr(frames, reference), 10 * np.log10(255**2 / np.array([100.0, 200.0])))


def test_psnr_of_equal_frames_is_finite():
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    np.testing.assert_allclose(psnr(frames, frames), 58.92, atol=0.01)


def test_one_frame_is_compared_with_many():
    assert psnr(np.zeros((2, 2, 3), np.uint8), np.ones((5, 2, 2, 3), np.uint8)).shape == (5,)


def test_frames_that_are_not_uint8_are_a_type_error():
    with pytest.raises(TypeError, match="uint8"):
        psnr(np.zeros((2, 2, 3)), np.zeros((2, 2, 3), np.uint8))


def test_ssim_of_equal_frames_is_one_and_of_a_negative_is_low():
    pytest.importorskip("torchmetrics")
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(ssim(frames, frames), 1, atol=1e-6)
    assert ssim(frames, 255 - frames).max() < 0


def test_ssim_is_each_frames_own():
    pytest.importorskip("torchmetrics")
    frames = np.random.default_rng(0).integers(0, 256, (150, 16, 16, 3), dtype=np.uint8)
    noisy = np.clip(frames + np.random.default_rng(1).normal(0, 40, frames.shape), 0, 255).astype(np.uint8)
    together = ssim(noisy, frames)
    assert together.shape == (150,)
    for t in (0, 127, 128, 149):
        assert together[t] == pytest.approx(ssim(noisy[t : t + 1], frames[t : t + 1])[0], abs=1e-6)


def test_frames_smaller_than_the_window_have_no_ssim():
    frames = np.zeros((2, 8, 16, 3), np.uint8)
    assert np.isnan(ssim(frames, frames)).all()


def test_without_torchmetrics_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r"pip install wm-gym\[compare\]"):
        ssim(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 16, 16, 3), np.uint8))


def rewards(length, **at):
    values = np.zeros(length)
    for step, value in at.items():
        values[int(step[1:])] = value
    return values


def test_a_reward_within_the_tolerance_is_a_hit_and_beyond_it_a_miss_and_a_false_alarm():
    real, dreamed = rewards(20, t3=1, t10=1), rewards(20, t5=1, t13=1)
    agreement = match_rewards(real, dreamed, tolerance=2)
    assert agreement.hits == ((3, 5),)
    assert (agreement.misses, agreement.false_alarms) == ((10,), (13,))
    assert (agreement.precision, agreement.recall) == (0.5, 0.5)


def test_each_reward_is_in_one_hit_at_most():
    agreement = match_rewards(rewards(9, t4=1), rewards(9, t3=1, t4=1, t5=1), tolerance=2)
    assert len(agreement.hits) == 1
    assert len(agreement.false_alarms) == 2


def test_matching_finds_as_many_hits_as_there_can_be():
    """Brute force over all one-to-one assignments of random events."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        real, dreamed = (rng.random((2, 12)) < 0.35).astype(float)
        there, imagined = np.flatnonzero(real), np.flatnonzero(dreamed)
        near = np.abs(there[:, None] - imagined) <= 1
        best = maximum_matching(near)
        assert len(match_rewards(real, dreamed, 1).hits) == best


def maximum_matching(near):
    """Size of a maximum matching, by augmenting paths."""
    owner = {}

    def place(row, seen):
        for column in np.flatnonzero(near[row]):
            if column not in seen:
                seen.add(column)
                if column not in owner or place(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(len(near)))


def test_rewards_of_different_values_do_not_match():
    agreement = match_rewards(rewards(5, t2=1), rewards(5, t2=-1), tolerance=2)
    assert (agreement.hits, agreement.misses, agreement.false_alarms) == ((), (2,), (2,))


def test_without_rewards_precision_and_recall_are_undefined():
    agreement = match_rewards(np.zeros(4), np.zeros(4), 0)
    assert agreement.precision is None
    assert agreement.recall is None


def test_they_part_at_the_first_of_enough_bad_steps_in_a_row():
    quality = np.array([30, 10, 10, 30, 10, 10, 10, 10])
    assert parting_step(quality, threshold=18, num_steps=3) == 5
    assert parting_step(quality, threshold=18, num_steps=2) == 2
    assert parting_step(quality, threshold=18, num_steps=5) is None
    assert parting_step(quality, threshold=9, num_steps=1) is None
