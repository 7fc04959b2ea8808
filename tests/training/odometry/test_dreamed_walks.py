"""Dreamed walks: windows of what a model dreamed, with the actions and the poses of the real walk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.tiny import PLANAR_POSE, tiny_model
from tests.toy_store import make_toy_store
from training.evaluation.imagine import Dreamer
from training.odometry.dreamed_walks import DreamedWalks, dream_walks, slightly_off
from training.recording.rollouts import read_rollouts
from wm_gym.poses import motion_between

CONTEXT, FRAMES, LENGTH = 20, 12, 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks"
    make_toy_store(path, range(4))
    return path


def test_windows_are_dreamed_with_the_actions_and_poses_of_the_walk(store: Path) -> None:
    model = tiny_model(pose=PLANAR_POSE).requires_grad_(False)
    walks = read_rollouts(store, "train", [0, 1, 2], CONTEXT + FRAMES)
    told = torch.cat([walks.pose[:, :CONTEXT], slightly_off(walks.pose[:, CONTEXT:])], dim=1)
    dreamed = Dreamer(model, 3).imagine(dataclasses.replace(walks, pose=told), CONTEXT, "kept")
    batch = dream_walks(model, store, 3, CONTEXT, FRAMES).sample(40, LENGTH, torch.Generator().manual_seed(0))
    found = set()
    for row in range(40):
        places = [
            (walk, start)
            for walk in range(3)
            for start in range(FRAMES - LENGTH + 1)
            if torch.equal(batch.pose[row], walks.pose[walk, CONTEXT + start :][:LENGTH])
            and torch.equal(batch.frames[row], dreamed[walk, start : start + LENGTH])
        ]
        assert places, "a window that is of no dream"
        walk, start = places[0]
        assert torch.equal(batch.actions[row], walks.actions[walk, CONTEXT + start :][: LENGTH - 1])
        found.add(places[0])
    assert {walk for walk, _ in found} == {0, 1, 2}
    assert {start for _, start in found} >= {0, FRAMES - LENGTH}


def test_poses_of_a_dream_are_off_by_the_same_and_of_different_dreams_by_other_amounts() -> None:
    angle = torch.linspace(0, 6, 7)
    poses = torch.stack([angle, -angle, angle.cos(), angle.sin()], -1).expand(500, 7, 4)
    off = slightly_off(poses)
    motions = motion_between(poses, off)
    torch.testing.assert_close(off[..., 2:].norm(dim=-1), torch.ones(500, 7))
    torch.testing.assert_close(motions[..., 2], motions[:, :1, 2].expand(-1, 7), rtol=0, atol=1e-4)
    moved = off[..., :2] - poses[..., :2]
    torch.testing.assert_close(moved, moved[:, :1].expand(-1, 7, -1), rtol=0, atol=1e-5)
    assert 0.05 < moved[:, 0].abs().median() < 0.15
    assert 1.0 < motions[:, 0, 2].abs().median().rad2deg() < 3.0


def test_dreams_that_are_shorter_than_a_window_are_refused(store: Path) -> None:
    walks = read_rollouts(store, "train", [0], CONTEXT + FRAMES)
    dreams = DreamedWalks(walks, walks.frames[:, -3:], torch.device("cpu"))
    with pytest.raises(ValueError, match="have 3 frames, windows of 5"):
        dreams.sample(1, LENGTH, torch.Generator())
