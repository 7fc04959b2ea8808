import contextlib
import sys

import numpy as np
import pytest

from wm_gym.film import BAR, MARGIN, Film, video_frames, write_strip, write_video


@pytest.fixture
def film():
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    return Film(real, 255 - real[4:], np.array([20.0, 18.0, 17.0]))


def panels(picture):
    """The two panels of a video frame, back in the size of the frames."""
    left, right = MARGIN, 2 * MARGIN + 384
    return tuple(picture[BAR : BAR + 384, x : x + 384][3::6, 3::6] for x in (left, right))


def test_the_video_shows_every_frame_beside_its_dream_at_six_times_its_size(film):
    pictures = list(video_frames(film))
    assert len(pictures) == 7
    assert {picture.shape for picture in pictures} == {(480, 816, 3)}
    for picture, real in zip(pictures, film.real, strict=True):
        np.testing.assert_array_equal(panels(picture)[0], real)
    for picture, dream in zip(pictures[4:], film.dream, strict=True):
        np.testing.assert_array_equal(panels(picture)[1], dream)


def test_the_dream_panel_is_dark_while_the_context_is_read(film):
    picture = next(video_frames(film))
    assert panels(picture)[1].mean() < 0.5 * panels(picture)[0].mean()


def test_a_video_is_playable_and_of_the_right_length(film, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    write_video(tmp_path / "a.mp4", video_frames(film), fps=10)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    meta = next(reader)
    assert (meta["codec"], meta["size"], meta["fps"]) == ("h264", (816, 480), 10)
    assert meta["pix_fmt"].startswith("yuv420p")
    with contextlib.closing(reader):
        decoded = [np.frombuffer(frame, np.uint8).reshape(480, 816, 3) for frame in reader]
    assert len(decoded) == 7
    expected = list(video_frames(film))
    assert np.abs(decoded[5].astype(int) - expected[5]).mean() < 20
    assert list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]


def test_a_video_that_fails_half_way_leaves_nothing_behind(film, tmp_path):
    pytest.importorskip("imageio_ffmpeg")

    def frames():
        yield from list(video_frames(film))[:3]
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_video(tmp_path / "a.mp4", frames(), fps=10)
    assert not list(tmp_path.iterdir())


def test_the_strip_shows_the_chosen_steps_of_both(film, tmp_path):
    from PIL import Image

    write_strip(tmp_path / "a.png", film, [1, 3])
    strip = np.asarray(Image.open(tmp_path / "a.png"))
    x, y = 88, 36
    for column, frame in enumerate((film.real[3], film.real[4], film.real[6])):
        left = x + column * 134
        np.testing.assert_array_equal(strip[y : y + 128 : 2, left : left + 128 : 2], frame)
    for column, frame in enumerate(film.dream[[0, 2]]):
        left = x + (column + 1) * 134
        np.testing.assert_array_equal(strip[y + 134 : y + 262 : 2, left : left + 128 : 2], frame)


@pytest.mark.parametrize("module", ["imageio_ffmpeg", "PIL"])
def test_a_missing_package_is_named(film, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install"):
        write_video(tmp_path / "a.mp4", video_frames(film), fps=10)
    assert not list(tmp_path.iterdir())
