"""A memory that is asked for its way back answers for itself, and a probe reads the map from what it answers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from tests.tiny import PLANAR_POSE, VECTOR_POSE, tiny_model, tiny_model_with_odometry
from training.evaluation.walks import reversed_walks
from training.probes import memory_query as asked
from training.probes.maze_labels import grid_around
from training.probes.memories import Walk, memories_after, with_told_poses
from training.probes.memory_query import AskedProbe, answers, can_be_asked, views_back
from training.probes.probe_model import ProbeData, ProbeTraining, predict, train_probe
from training.recording.rollouts import Rollouts
from wm_gym.nn.state import ModelState
from wm_gym.poses import relative_to
from wm_gym.world_model import WorldModel

RADIUS = 2
NUM_POSITIONS = (2 * RADIUS + 1) ** 2
LENGTH = 12
OPTIONS = ProbeTraining(
    view_width=8, width=16, dropout=0.0, learning_rate=3e-3, batch_size=16, max_epochs=25, patience=25
)


def asked_model(**overrides: Any) -> WorldModel:
    return tiny_model(pose=PLANAR_POSE, hide_noise=True, **overrides)


def walk(model: WorldModel, num_frames: int = LENGTH, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (rows, num_frames, 16, 16, 3), dtype=torch.uint8, generator=generator)
    actions = torch.randint(2, (rows, num_frames - 1), generator=generator)
    angle = torch.rand(rows, num_frames, generator=generator) * math.tau
    poses = torch.cat(
        [torch.randn(rows, num_frames, 2, generator=generator), torch.stack([angle.cos(), angle.sin()], -1)], -1
    )
    poses[:, 0] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    return frames, actions, poses


def read(model: WorldModel, first: int = 0) -> ModelState:
    frames, actions, poses = walk(model)
    return model.prefill(model.initial_state(2), frames[:, first:], actions[:, first:], poses[:, first:])


@torch.no_grad()
def test_answers_are_those_of_a_dream_of_which_nothing_is_fed_back() -> None:
    model = asked_model(feedback_interval=0)
    state = read(model)
    _, actions, poses = walk(model)
    tokens = torch.cat(list(answers(model, state, actions[:, :5], poses[:, :5])), 1)
    has_action = torch.ones(2, 5, dtype=torch.bool)
    condition = model.backbone.condition(torch.ones(2, 5), actions[:, :5], has_action, poses[:, :5])
    painted = model.backbone.frame_head(tokens, condition)
    for i in range(5):
        prediction, state = model.step(state, actions[:, i], torch.randn(2, 3, 16, 16), pose=poses[:, i])
        torch.testing.assert_close(painted[:, i], prediction.frame, atol=1e-4, rtol=1e-3)


def test_the_way_back_is_that_of_reversed_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = asked_model()
    frames, actions, poses = walk(model)
    space = gym.spaces.Discrete(3)
    walks = Rollouts("", "", (0, 1), space, space, frames, actions, torch.zeros(2, LENGTH - 1), poses)
    expected = reversed_walks(walks, LENGTH)
    given: list[Any] = []
    real = asked.answers
    monkeypatch.setattr(asked, "answers", lambda *args: given.append(args[2:]) or real(*args))
    views, posed = views_back(model, read(model), actions, poses, 5, from_start=True)
    assert torch.equal(given[0][0], expected.actions[:, LENGTH - 1 :])
    assert torch.equal(given[0][1], expected.pose[:, LENGTH:])
    assert views.shape == (2, 5, 2, 32) and views.dtype == torch.float16
    assert torch.equal(posed[:, 0], poses[:, -1]) and torch.equal(posed[:, -1], poses[:, 0])


def test_poses_from_the_agent_are_seen_from_where_it_is() -> None:
    model = asked_model()
    _, actions, poses = walk(model)
    views, posed = views_back(model, read(model), actions, poses, LENGTH, from_start=False)
    torch.testing.assert_close(posed[:, 0], torch.tensor([[0.0, 0.0, 1.0, 0.0]]).expand(2, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(posed, relative_to(poses.flip(1), poses[:, -1:]))
    same, _ = views_back(model, read(model), actions, poses, LENGTH, from_start=True)
    assert torch.equal(views, same)


def test_how_many_frames_are_asked_at_once_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = asked_model()
    _, actions, poses = walk(model)
    together, _ = views_back(model, read(model), actions, poses, LENGTH, True)
    monkeypatch.setattr(asked, "FRAMES_AT_ONCE", 5)
    apart, _ = views_back(model, read(model), actions, poses, LENGTH, True)
    torch.testing.assert_close(apart, together, atol=1e-2, rtol=1e-2)


def test_to_be_asked_changes_no_memory_and_no_other_answer() -> None:
    model = asked_model()
    state = read(model)
    _, actions, poses = walk(model)
    before = {name: value.clone() for name, value in state.to_tensors().items()}
    views, _ = views_back(model, state, actions, poses, LENGTH, True)
    for name, value in state.to_tensors().items():
        assert torch.equal(value, before[name])
    alone, _ = views_back(model, state.index(1), actions[1:], poses[1:], LENGTH, True)
    torch.testing.assert_close(alone[0], views[1], atol=1e-2, rtol=1e-2)


def test_answers_come_from_what_was_read() -> None:
    """Another first frame changes them, unless the memory begins after it."""
    model = asked_model()
    frames, actions, poses = walk(model)
    other = frames.clone()
    other[:, 0] = 255 - other[:, 0]

    def views(frames: Tensor, first: int) -> Tensor:
        def note(state: ModelState, rows: Tensor, length: int) -> tuple[Tensor, ...]:
            return views_back(model, state, actions[rows], poses[rows, :length], 4, True)

        with torch.no_grad():
            return memories_after(model, Walk(frames, actions, poses), [LENGTH], "", first, note)[LENGTH][0]

    assert not torch.equal(views(frames, 0), views(other, 0))
    assert torch.equal(views(frames, 4), views(other, 4))
    assert not torch.equal(views(frames, 11), views(frames, 4))


def test_told_poses_are_those_that_the_memory_has() -> None:
    model = tiny_model_with_odometry(hide_noise=True)
    frames, actions, _ = walk(model)
    with torch.no_grad():
        poses = with_told_poses(model, Walk(frames, actions, None), num_rows=1).poses
        state = model.prefill(model.initial_state(2), frames, actions)
    assert poses is not None and poses.shape == (2, LENGTH, 4)
    assert state.pending is not None and state.pending.pose is not None
    torch.testing.assert_close(poses[:, -1], state.pending.pose)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, False),
        ({"pose": VECTOR_POSE}, False),
        ({"pose": PLANAR_POSE}, False),
        ({"pose": PLANAR_POSE, "hide_noise": True}, True),
    ],
)
def test_only_models_of_planar_poses_that_hide_noise_can_be_asked(overrides: dict[str, Any], expected: bool) -> None:
    assert can_be_asked(tiny_model(**overrides).config) is expected


def planted(count: int, seed: int, hidden: bool = False) -> ProbeData:
    """Four views from each side of a map; a column of them shows which wall or object stands there, unless hidden."""
    generator = torch.Generator().manual_seed(seed)
    side = 2 * RADIUS + 1
    walls = torch.randint(0, 2, (count, NUM_POSITIONS), generator=generator).float()
    places = torch.randint(0, NUM_POSITIONS, (count, 1), generator=generator)
    grid = torch.tensor(grid_around(RADIUS), dtype=torch.float32)
    # From every position one looks at the next, which fills all columns.
    poses = torch.cat([grid - torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0]]).expand(NUM_POSITIONS, 2)], -1)
    views = 0.3 * torch.randn(count, side * side, 4, 6, generator=generator)
    if not hidden:
        views[..., 0] += 4 * walls[:, :, None] - 2
        views[..., 1] += torch.zeros(count, NUM_POSITIONS).scatter_(1, places, 6.0)[:, :, None]
    inside = torch.ones(count, NUM_POSITIONS, dtype=torch.bool)
    return ProbeData((views.half(), poses.expand(count, -1, -1)), walls, inside, grid[places], torch.zeros(count, 0))


def test_a_probe_finds_walls_and_objects_where_a_view_shows_them_and_none_where_nothing_shows() -> None:
    test = planted(60, 2)
    probe = train_probe(planted(150, 0), planted(30, 1), OPTIONS, make=AskedProbe)
    walls, objects = predict(probe, test, 16)
    assert (walls == test.walls.bool()).float().mean() > 0.85
    assert (objects - test.objects).norm(dim=-1).mean() < 1.2

    test = planted(60, 2, hidden=True)
    probe = train_probe(planted(150, 0, True), planted(30, 1, True), replace(OPTIONS, max_epochs=3), make=AskedProbe)
    walls, objects = predict(probe, test, 16)
    assert 0.4 < (walls == test.walls.bool()).float().mean() < 0.6
    assert (objects - test.objects).norm(dim=-1).mean() > 1.5


def test_a_probe_answers_the_same_on_a_map_that_is_turned() -> None:
    """A quarter turn of all poses turns the map: position (forward, left) becomes (-left, forward)."""
    data = planted(3, 0)
    torch.manual_seed(0)
    probe = AskedProbe(data, OPTIONS).eval()
    views, poses = data.inputs
    x, y, cos, sin = poses.unbind(-1)
    with torch.no_grad():
        upright, _ = probe.maps(views, poses)
        turned, _ = probe.maps(views, torch.stack([-y, x, -sin, cos], -1))
    side = 2 * RADIUS + 1
    torch.testing.assert_close(turned.unflatten(1, (side, side)), upright.unflatten(1, (side, side)).rot90(1, (1, 2)))
    assert math.isclose(float(upright.std()), float(turned.std()), rel_tol=1e-3) and upright.std() > 0
