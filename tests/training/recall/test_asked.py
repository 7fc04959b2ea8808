"""A memory that is asked answers for itself: of what it has read, and whatever else is asked of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_model, tiny_model_with_odometry
from training.recall import asked
from training.recall.asked import (
    NUM_HEADINGS,
    TURN_LEFT,
    AskedProbe,
    answers,
    asked_views,
    can_be_asked,
    questions_around,
    told_poses,
    turned,
)
from training.recall.moments import memories_after
from training.recall.probe_model import ProbeData, ProbeTraining, predict, train_probe
from training.recall.surroundings import grid_around, objects_around, walls_around
from wm_gym.nn.state import ModelState
from wm_gym.world_model import WorldModel

RADIUS = 2
NUM_POSITIONS = (2 * RADIUS + 1) ** 2
OPTIONS = ProbeTraining(
    view_width=8, width=32, dropout=0.1, learning_rate=3e-3, batch_size=16, max_epochs=30, patience=30
)


def asked_model(**overrides: Any) -> WorldModel:
    return tiny_model(pose_size=4, pose_kind="planar", hide_noise=True, **overrides)


def walk(model: WorldModel, num_frames: int = 12, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
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
    poses = questions_around(1).flatten(0, 1)[:5].expand(2, -1, -1)
    tokens = torch.cat(list(answers(model, state, poses)), 1)
    actions, has_action = torch.full((2, 5), TURN_LEFT), torch.ones(2, 5, dtype=torch.bool)
    condition = model.backbone.condition(torch.ones(2, 5), actions, has_action, poses)
    painted = model.backbone.frame_head(tokens, condition)
    for i in range(5):
        prediction, state = model.step(state, actions[:, i], torch.randn(2, 3, 16, 16), pose=poses[:, i])
        torch.testing.assert_close(painted[:, i], prediction.frame, atol=1e-4, rtol=1e-3)


def test_the_number_of_questions_that_are_asked_at_once_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = asked_model()
    with torch.no_grad():
        together = asked_views(model, read(model), 1, around_start=True)
        monkeypatch.setattr(asked, "FRAMES_AT_ONCE", 7)
        apart = asked_views(model, read(model), 1, around_start=True)
    torch.testing.assert_close(apart, together, atol=1e-2, rtol=1e-2)


def test_to_be_asked_changes_no_memory_nor_what_others_answer() -> None:
    model = asked_model()
    state = read(model)
    before = {name: value.clone() for name, value in state.to_tensors().items()}
    views = asked_views(model, state, RADIUS, around_start=True)
    assert views.shape == (2, NUM_POSITIONS, NUM_HEADINGS, 2, 32) and views.dtype == torch.float16
    for name, value in state.to_tensors().items():
        assert torch.equal(value, before[name])
    alone = asked_views(model, state.index(1), RADIUS, around_start=True)
    torch.testing.assert_close(alone[0], views[1], atol=1e-2, rtol=1e-2)


def test_answers_come_from_what_was_read() -> None:
    """Another first frame changes them, unless the memory begins after it."""
    model = asked_model()
    frames, actions, poses = walk(model)
    other = frames.clone()
    other[:, 0] = 255 - other[:, 0]

    def views(frames: Tensor, first: int) -> Tensor:
        def note(state: ModelState) -> tuple[Tensor, ...]:
            return (asked_views(model, state, 1, around_start=True),)

        with torch.no_grad():
            return memories_after(model, frames, actions, poses, [12], "", first, note)[12][0]

    assert not torch.equal(views(frames, 0), views(other, 0))
    assert torch.equal(views(frames, 4), views(other, 4))
    assert not torch.equal(views(frames, 11), views(frames, 4))


def test_questions_turn_round_at_every_position_of_the_grid() -> None:
    questions = questions_around(RADIUS)
    assert questions.shape == (NUM_POSITIONS, NUM_HEADINGS, 4)
    positions = torch.tensor(grid_around(RADIUS), dtype=torch.float32)
    assert torch.equal(questions[..., :2], positions[:, None].expand(-1, NUM_HEADINGS, -1))
    headings = torch.atan2(questions[..., 3], questions[..., 2]).rad2deg() % 360
    expected = torch.arange(NUM_HEADINGS) * 360.0 / NUM_HEADINGS
    torch.testing.assert_close(headings, expected.expand(NUM_POSITIONS, -1), atol=1e-3, rtol=0)


def test_around_the_agent_is_asked_from_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    model = asked_model()
    frames, actions, poses = walk(model)
    poses[:, -1] = torch.tensor([1.0, 2.0, 0.0, 1.0])  # one cell ahead of the first frame, looking to its left
    state = model.prefill(model.initial_state(2), frames, actions, poses)
    posed: list[Tensor] = []
    real = asked.answers
    monkeypatch.setattr(asked, "answers", lambda *given: posed.append(given[2]) or real(*given))
    for around_start in (True, False):
        asked_views(model, state, 1, around_start)
    around_start, around_agent = (poses[0].unflatten(0, (3, 3, NUM_HEADINGS)) for poses in posed)
    torch.testing.assert_close(around_start[1, 1, 0], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(around_agent[1, 1, 0], torch.tensor([1.0, 2.0, 0.0, 1.0]))
    # A cell ahead of it and one to its left, looking to its left.
    torch.testing.assert_close(around_agent[2, 2, NUM_HEADINGS // 4], torch.tensor([0.0, 3.0, -1.0, 0.0]))


def test_told_poses_are_those_that_the_memory_has() -> None:
    model = tiny_model_with_odometry(hide_noise=True)
    frames, actions, _ = walk(model)
    with torch.no_grad():
        poses = told_poses(model, frames, actions, num_rows=1)
        state = model.prefill(model.initial_state(2), frames, actions)
    assert poses.shape == (2, 12, 4)
    assert state.pending is not None and state.pending.pose is not None
    torch.testing.assert_close(poses[:, -1], state.pending.pose)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, False),
        ({"pose_size": 4}, False),
        ({"pose_size": 4, "pose_kind": "planar"}, False),
        ({"pose_size": 4, "pose_kind": "planar", "hide_noise": True}, True),
        ({"pose_size": 4, "pose_kind": "planar", "hide_noise": True, "action_size": 2}, False),
    ],
)
def test_only_models_of_planar_poses_that_hide_noise_can_be_asked(overrides: dict[str, Any], expected: bool) -> None:
    assert can_be_asked(tiny_model(**overrides).config) is expected


def planted(count: int, seed: int, hidden: bool = False) -> ProbeData:
    """A wall shows in one view of the position next to it, and an object in one view of its own, unless hidden."""
    generator = torch.Generator().manual_seed(seed)
    side = 2 * RADIUS + 1
    walls = torch.randint(0, 2, (count, side, side), generator=generator).float()
    places = torch.randint(0, NUM_POSITIONS, (count, 1), generator=generator)
    views = torch.randn(count, side, side, 4, 2, 6, generator=generator)
    if not hidden:
        views[:, :-1, :, 0, 0, 0] += 6 * walls[:, 1:] - 3
        views[:, 1:, :, 2, 0, 1] += 6 * walls[:, :-1] - 3
        marks = torch.zeros(count, NUM_POSITIONS).scatter_(1, places, 8.0)
        views[..., 1, 1, 2] += marks.unflatten(1, (side, side))
    objects = torch.tensor(grid_around(RADIUS), dtype=torch.float32)[places]
    inside = torch.ones(count, NUM_POSITIONS, dtype=torch.bool)
    return ProbeData((views.flatten(1, 2).half(),), walls.flatten(1), inside, objects, torch.zeros(count, 0))


def test_a_probe_finds_walls_and_objects_in_the_views_from_next_to_them_and_none_where_nothing_shows() -> None:
    test = planted(100, 2)
    probe = train_probe(planted(400, 0), planted(30, 1), OPTIONS, make=AskedProbe)
    walls, objects = predict(probe, test, 16)
    assert (walls == test.walls.bool()).float().mean() > 0.9
    assert (objects - test.objects).norm(dim=-1).mean() < 0.7

    test = planted(100, 2, hidden=True)
    probe = train_probe(planted(200, 0, True), planted(30, 1, True), replace(OPTIONS, max_epochs=5), make=AskedProbe)
    walls, objects = predict(probe, test, 16)
    assert 0.4 < (walls == test.walls.bool()).float().mean() < 0.6
    assert (objects - test.objects).norm(dim=-1).mean() > 1.5


def test_turned_data_are_those_of_a_first_frame_that_looks_to_the_left() -> None:
    layout = np.random.default_rng(0).integers(0, 2, (6, 7))
    targets = np.array([[1.5, 2.5], [5.5, 0.5]])
    angle = 0.3
    views = questions_around(RADIUS)  # stand for what is seen from there

    def seen_from(quarters: int) -> ProbeData:
        heading = angle + quarters * math.pi / 2
        pose = np.array([2.5, 3.5, math.cos(heading), math.sin(heading)])
        walls, inside = walls_around(layout, pose, RADIUS)
        cos, sin = math.cos(heading), math.sin(heading)
        matrix = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float32)
        there = torch.cat([views[..., :2] @ matrix, views[..., 2:] @ matrix], -1)  # in the maze's coordinates
        objects = torch.tensor(objects_around(targets, pose), dtype=torch.float32)
        walls_told, inside_told = torch.tensor(walls)[None].float(), torch.tensor(inside)[None]
        return ProbeData((there[None, :, :, None],), walls_told, inside_told, objects[None], torch.zeros(1, 0))

    for quarters in range(4):
        got, expected = turned(seen_from(0), quarters), seen_from(quarters)
        assert torch.equal(got.walls, expected.walls) and torch.equal(got.inside, expected.inside)
        torch.testing.assert_close(got.objects, expected.objects, atol=1e-4, rtol=0)
        torch.testing.assert_close(got.inputs[0], expected.inputs[0], atol=1e-4, rtol=0)
