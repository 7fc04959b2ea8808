import numpy as np
import pytest

from wm_gym.comparison.metrics import psnr


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
