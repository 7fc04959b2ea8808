import numpy as np
import pytest

from wm_gym.comparison.figures import Criteria, episode_figures
from wm_gym.comparison.pictures import (
    Captions,
    comparison_frame,
    comparison_frames,
    difference_picture,
    film_length,
)
from wm_gym.comparison.record import Record, map_entries
from wm_gym.comparison.topdown import MapDrawing
from wm_gym.film import ACCENT, BACKGROUND, BAR, MARGIN, TEXT

pytest.importorskip("torchmetrics")
CONTEXT, STEPS = 4, 5


def info(x, y):
    layout = np.zeros((3, 3), np.uint8)
    layout[0, 2] = 1
    return {
        "pose": np.array([x, y, 1, 0], np.float32),
        "layout": layout,
        "targets": np.array([[0.5, 2.5]], np.float32),
        "target_index": 0,
        "target_color": np.array([0, 0, 1.0]),
    }


@pytest.fixture
def record():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (CONTEXT + STEPS, 64, 64, 3), dtype=np.uint8)
    return Record(
        seed=1,
        reference_frames=frames,
        frames=255 - frames[CONTEXT:],
        actions=np.zeros(CONTEXT + STEPS - 1, np.int64),
        reference_rewards=np.array([0, 0, 0, 0, 1.0]),
        rewards=np.zeros(STEPS),
        reference_end="",
        end="",
        seconds=1.0,
        reference_seconds=1.0,
        map=map_entries([info(0.5 + t / 8, 0.5) for t in range(CONTEXT + STEPS)]),
    )


@pytest.fixture
def episode(record):
    return episode_figures(record, Criteria(2, 18.0, 3))


CAPTIONS = Captions(("real", "dream"), "a seed", ["noop"])


def panel(picture, index):
    left = MARGIN + index * (320 + MARGIN)
    return picture[BAR : BAR + 320, left : left + 320]


def test_the_film_shows_real_dream_and_difference_of_every_step(episode, record):
    pictures = list(comparison_frames(episode, CAPTIONS, 18.0))
    assert len(pictures) == film_length(episode) == CONTEXT + STEPS
    assert len({picture.shape for picture in pictures}) == 1
    for step, picture in enumerate(pictures[CONTEXT:-1]):
        real, dream = record.reference_frames[CONTEXT + step], record.frames[step]
        np.testing.assert_array_equal(panel(picture, 0)[2::5, 2::5], real)
        np.testing.assert_array_equal(panel(picture, 1)[2::5, 2::5], dream)
        np.testing.assert_array_equal(panel(picture, 2)[2::5, 2::5], difference_picture(dream, real))


def test_a_single_frame_of_the_film_can_be_drawn(episode):
    pictures = list(comparison_frames(episode, CAPTIONS, 18.0))
    np.testing.assert_array_equal(comparison_frame(episode, CAPTIONS, 18.0, step=2), pictures[CONTEXT + 1])


def test_a_reward_frames_the_side_that_gives_it(episode):
    *_, before, last = comparison_frames(episode, CAPTIONS, 18.0)
    edge = BAR - 3, MARGIN - 3
    assert tuple(last[edge]) == TEXT
    assert tuple(before[edge]) == BACKGROUND
    assert tuple(last[BAR - 3, MARGIN + 320 + MARGIN - 3]) == BACKGROUND


def test_without_a_map_the_film_is_narrower(record, episode):
    import dataclasses

    flat = dataclasses.replace(episode, record=dataclasses.replace(record, map={}))
    with_map, without = (next(comparison_frames(item, CAPTIONS, 18.0)) for item in (episode, flat))
    assert with_map.shape[1] - without.shape[1] == 320 + MARGIN


def test_equal_frames_differ_nowhere_and_black_from_white_most():
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert (difference_picture(black, black) == BACKGROUND).all()
    assert difference_picture(black, white).min() > 180


def test_the_map_has_north_on_top_and_shows_walls_target_and_way(record):
    size = 120
    picture = np.asarray(MapDrawing(record.map, size).draw(CONTEXT + STEPS - 1, CONTEXT)).astype(int)
    cell = size / 3.5
    middle = lambda x, y: picture[int(size - (y + 0.25) * cell), int((x + 0.25) * cell)]  # noqa: E731
    assert middle(2.5, 0.5).sum() > 1.8 * middle(2.5, 1.5).sum(), "The wall at x = 2, y = 0 is lighter than the floor."
    np.testing.assert_allclose(middle(0.5, 2.5), (0, 0, 255), atol=3)
    way = picture[int(size - 0.75 * cell), int(1.0 * cell) : int(1.5 * cell)]
    assert np.abs(way - ACCENT).sum(-1).min() < 60


def test_infos_without_pose_or_layout_give_no_map():
    assert map_entries([{}, {}]) == {}
    assert map_entries([{"pose": np.zeros(4)}, {"pose": np.zeros(4)}]) == {}
    assert map_entries([{"pose": np.zeros(2), "layout": np.zeros((2, 2))}]) == {}
