"""In a dream of a model with a map the next pose is told from the map around it, and from nothing that was painted."""

import pytest
import torch

from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, SMALL_MAP, tiny_model
from wm_gym.odometry.visual import VisualOdometry

MAP = {"pose": PLANAR_POSE, "hide_noise": True, "map": SMALL_MAP}
AHEAD = torch.tensor([1, 1])


@pytest.fixture(scope="module")
def odometry() -> VisualOdometry:
    model = tiny_model(**MAP, odometry=LEARNED_ODOMETRY)
    assert isinstance(model.odometry, VisualOdometry)
    return model.odometry.requires_grad_(False)


def inputs(odometry: VisualOdometry):
    g = torch.Generator().manual_seed(3)
    state = odometry.initial_state(2, torch.device("cpu"))
    state[:, :6] = 0.1 * torch.randn(2, 6, generator=g)
    frame = torch.rand(2, 3, 16, 16, generator=g) * 2 - 1
    place_map = torch.rand(2, 24 * 24, 4, generator=g)
    pose = torch.tensor([[0.4, -0.8, 0.6, 0.8], [1.0, 2.0, 1.0, 0.0]])
    return state, frame, pose, place_map


def test_a_dreamed_frame_is_not_looked_at_and_a_real_one_is(odometry: VisualOdometry) -> None:
    state, frame, pose, place_map = inputs(odometry)
    for real in (torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)):
        told = odometry.predict(state, frame, AHEAD, pose, real, place_map)[0]
        other_frame = odometry.predict(state, -frame, AHEAD, pose, real, place_map)[0]
        other_map = odometry.predict(state, frame, AHEAD, pose, real, place_map.flip(1))[0]
        assert torch.equal(told, other_frame) == (not real.any())
        assert torch.equal(told, other_map) == bool(real.any())


def test_rows_with_real_and_dreamed_frames_go_on_each_in_its_way(odometry: VisualOdometry) -> None:
    state, frame, pose, place_map = inputs(odometry)
    both = odometry.predict(state, frame, AHEAD, pose, torch.tensor([True, False]), place_map)
    real = odometry.predict(state, frame, AHEAD, pose, torch.ones(2, dtype=torch.bool), place_map)
    dreamed = odometry.predict(state, frame, AHEAD, pose, torch.zeros(2, dtype=torch.bool), place_map)
    for of_both, of_real, of_dreamed in zip(both, real, dreamed, strict=True):
        torch.testing.assert_close(of_both[0], of_real[0])
        torch.testing.assert_close(of_both[1], of_dreamed[1])


def test_only_what_is_near_counts_and_wherever_it_is_the_same(odometry: VisualOdometry) -> None:
    state, frame, pose, place_map = inputs(odometry)
    dreamed = torch.zeros(2, dtype=torch.bool)
    told = odometry.predict(state, frame, AHEAD, pose, dreamed, place_map)[0]
    grid = place_map.view(2, 24, 24, 4)
    far = grid.clone()
    far[:, 12:18, 12:18] += 5  # four cells and more from both
    assert torch.equal(odometry.predict(state, frame, AHEAD, pose, dreamed, far.flatten(1, 2))[0], told)
    # World and agent moved by five cells of the map and by seven.
    moved = pose + torch.tensor([5 * 0.3, 7 * 0.3, 0.0, 0.0])
    there = odometry.predict(state, frame, AHEAD, moved, dreamed, grid.roll((5, 7), (1, 2)).flatten(1, 2))[0]
    torch.testing.assert_close(there - (moved - pose), told, atol=1e-4, rtol=0)
