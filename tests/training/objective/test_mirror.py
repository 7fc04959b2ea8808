"""Mirrored sequences are those of a world in a mirror, and nothing else of them changes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.training.recording.test_policies import NINE, ToyMaze
from training.data.dataset import Batch
from training.objective.diffusion_forcing import LossConfig
from training.objective.mirror import check_mirror, mirror
from wm_gym.poses import relative_to_first

MAZE_ACTIONS = (0, 1, 3, 2, 5, 4)
B, T = 64, 9


def recorded() -> Batch:
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(B, T, generator=generator) * math.tau
    position = torch.rand(B, T, 2, generator=generator) * 9
    return Batch(
        frames=torch.randint(0, 256, (B, T, 4, 6, 3), generator=generator, dtype=torch.uint8),
        actions=torch.randint(0, 6, (B, T - 1), generator=generator),
        rewards=torch.rand(B, T - 1, generator=generator),
        terminations=torch.rand(B, T - 1, generator=generator) < 0.5,
        pose=torch.cat([position, angle.cos()[..., None], angle.sin()[..., None]], -1),
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_twice_in_the_mirror_is_the_sequence_as_it_was() -> None:
    batch = recorded()
    once = mirror(batch, 1.0, MAZE_ACTIONS, generator())
    twice = mirror(once, 1.0, MAZE_ACTIONS, generator())
    for name in ("frames", "actions", "rewards", "terminations", "pose"):
        assert torch.equal(getattr(twice, name), getattr(batch, name)), name
    assert torch.equal(once.frames, batch.frames.flip(3))
    assert torch.equal(once.rewards, batch.rewards)


def test_seen_from_the_first_frame_what_was_at_the_left_is_at_the_right() -> None:
    batch = recorded()
    before, after = (relative_to_first(one.pose) for one in (batch, mirror(batch, 1.0, (), generator())))
    torch.testing.assert_close(after, before * torch.tensor([1.0, -1.0, 1.0, -1.0]), atol=1e-5, rtol=1e-5)


def test_mirrored_actions_lead_through_a_mirrored_maze_as_recorded_ones_through_the_maze() -> None:
    flipped = [row.replace("T", ".") for row in NINE[::-1]]
    plain = [row.replace("T", ".") for row in NINE]
    walks = []
    for rows, reflect in ((plain, False), (flipped, True)):
        env = ToyMaze([*rows[:-1], "T" + rows[-1][1:]] if not reflect else ["T" + rows[0][1:], *rows[1:]])
        env.reset()
        if reflect:
            env._y, env._angle = len(rows) - env._y, -env._angle
        actions = torch.from_numpy(np.random.default_rng(2).integers(0, 6, 200))
        batch = dataclasses.replace(recorded(), actions=actions[None], frames=recorded().frames[:1])
        taken = mirror(batch, float(reflect), MAZE_ACTIONS, generator()).actions[0]
        poses = np.stack([env.step(action)[4]["pose"] for action in taken.tolist()])
        walks.append(poses * [1, -1, 1, -1] + [0, len(rows), 0, 0] if reflect else poses)
    np.testing.assert_allclose(walks[0], walks[1], atol=1e-4)
    assert np.ptp(walks[0][:, :2], axis=0).min() > 0.5, "it got about"


def test_poses_that_the_model_is_not_told_stay() -> None:
    batch = dataclasses.replace(recorded(), pose=torch.rand(B, T, 3))
    seen = mirror(batch, 1.0, MAZE_ACTIONS, generator())
    assert torch.equal(seen.pose, batch.pose)
    assert torch.equal(seen.frames, batch.frames.flip(3))


def test_the_probability_decides_how_many_are_mirrored() -> None:
    batch = recorded()
    seen = mirror(batch, 0.5, MAZE_ACTIONS, generator())
    flipped = (seen.frames != batch.frames).flatten(1).any(1)
    assert 20 <= flipped.sum() <= 44
    assert torch.equal((seen.pose != batch.pose).flatten(1).any(1), flipped)
    assert torch.equal(seen.actions[~flipped], batch.actions[~flipped])


@pytest.mark.parametrize("actions", [(), (0, 1, 3, 2, 5), (0, 1, 2, 3, 5, 6), (1, 2, 0, 3, 4, 5)])
def test_actions_that_are_no_mirror_are_refused(actions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mirrored_actions must say .* 6 actions"):
        check_mirror(actions, 6, hide_actions=False, pose_kind="planar")


def test_what_has_no_known_mirror_image_is_refused() -> None:
    with pytest.raises(ValueError, match="'vector'"):
        check_mirror(MAZE_ACTIONS, 6, hide_actions=False, pose_kind="vector")
    with pytest.raises(ValueError, match="continuous"):
        check_mirror(MAZE_ACTIONS, None, hide_actions=False, pose_kind=None)
    with pytest.raises(ValueError, match="mirror_probability"):
        LossConfig(mirror_probability=1.5)
    check_mirror((), 6, hide_actions=True, pose_kind="planar")
