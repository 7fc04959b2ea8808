"""Poses of frames that a memory takes in, with any odometry behind the protocol."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import PLANAR_POSE, TINY_MAP, tiny_model
from wm_gym.nn.state import ModelState
from wm_gym.odometry import Odometry, make_odometry
from wm_gym.odometry.tracker import locate

T = 4
ACTIONS, FRAMES = torch.zeros(2, T, dtype=torch.int64), torch.zeros(2, T, 3, 16, 16)


class OneAhead:
    """Goes one ahead with every action; its state counts the frames, and it notes what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def initial_state(self, batch_size: int, device: torch.device) -> Tensor:
        return torch.zeros(batch_size, 1, device=device)

    def first_pose(self, batch_size: int, device: torch.device) -> Tensor:
        return torch.tensor([[0.0, 0.0, 1.0, 0.0]], device=device).expand(batch_size, 4)

    def given(self, state: Tensor, poses: Tensor, actions: Tensor) -> Tensor:
        assert poses.shape[1] == actions.shape[1] + 1
        self.calls.append(("given", actions.shape[1]))
        return state + actions.shape[1]

    def follow(
        self, state: Tensor, frames: Tensor, actions: Tensor, pose: Tensor, real: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        count = frames.shape[1]
        assert actions.shape[1] == count and real is not None and real.shape[1] == count
        self.calls.append(("follow", int(real[0].sum())))
        ahead = torch.arange(1, count + 1)[None, :, None] * torch.tensor([1.0, 0, 0, 0])
        return pose[:, None] + ahead, state + count

    def predict(
        self, state: Tensor, frame: Tensor, action: Tensor, pose: Tensor, real: Tensor, place_map: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert place_map is not None
        self.calls.append(("predict", int(real[0])))
        return pose + torch.tensor([1.0, 0, 0, 0]), state + 1

    def predict_by_map(self, state: Tensor, action: Tensor, pose: Tensor, place_map: Tensor) -> tuple[Tensor, Tensor]:
        return pose, state

    def frozen(self, backend: Any) -> OneAhead:
        return self


def memory(odometry: Odometry | None, dreamed: bool = False, **overrides: Any) -> ModelState:
    """The memory of a model with this odometry that has seen three frames."""
    model = tiny_model(pose=PLANAR_POSE, **overrides)
    model.odometry = odometry
    poses = None if odometry is not None else torch.zeros(2, 3, 4)
    frames = torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8)
    with torch.no_grad():
        state = model.prefill(model.initial_state(2), frames, ACTIONS[:, :2], poses)
    assert state.pending is not None
    pending = dataclasses.replace(state.pending, dreamed=torch.full((2,), dreamed))
    return dataclasses.replace(state, pending=pending)


def test_an_empty_memory_begins_at_the_first_pose_and_does_not_look_at_the_last_frame() -> None:
    odometry = OneAhead()
    poses, carried = locate(odometry, tiny_model().initial_state(2), FRAMES, ACTIONS, None)
    assert poses is not None and poses[0, :, 0].tolist() == [0, 1, 2, 3]
    assert odometry.calls == [("follow", T - 1)] and carried is not None and carried[0].item() == T - 1


def test_a_memory_goes_on_from_its_newest_frame_dreamed_or_real() -> None:
    for dreamed in (False, True):
        odometry = OneAhead()
        state = memory(odometry, dreamed)
        poses, carried = locate(odometry, state, FRAMES, ACTIONS, None)
        assert poses is not None and poses[0, :, 0].tolist() == [3, 4, 5, 6]
        assert odometry.calls[-1] == ("follow", T - dreamed) and carried is not None and carried[0].item() == 2 + T


def test_a_map_shows_more_than_the_newest_frame_if_that_was_dreamed() -> None:
    odometry = OneAhead()
    poses, _ = locate(odometry, memory(odometry, dreamed=True, **TINY_MAP), FRAMES, ACTIONS, None)
    assert poses is not None and poses[0, :, 0].tolist() == [3, 4, 5, 6]
    assert odometry.calls[-2:] == [("predict", 0), ("follow", T - 1)]


def test_given_poses_are_returned_as_they_are_and_remembered() -> None:
    odometry, given = OneAhead(), torch.randn(2, T, 4)
    for state in (tiny_model().initial_state(2), memory(odometry)):
        odometry.calls.clear()
        poses, _ = locate(odometry, state, FRAMES, ACTIONS, given)
        assert poses is not None and torch.equal(poses, given)
        assert odometry.calls == [("given", T - (state.pending is None))]


def test_without_odometry_poses_are_what_they_are() -> None:
    state = tiny_model().initial_state(2)
    assert make_odometry(tiny_model().config) is None
    assert locate(None, state, FRAMES, ACTIONS, None) == (None, None)
    with pytest.raises(ValueError, match="a model without odometry"):
        locate(OneAhead(), memory(None), FRAMES, ACTIONS, None)
