"""Dreams of tiny models: the same one by one and together, by graph and by step; and what clearing a memory means."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.rounding import assert_same_dream
from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, VECTOR_POSE, tiny_model, tiny_model_with_odometry
from tests.toy_store import make_toy_store
from training.baselines import BaselineConfig, build_model
from training.data.pose_input import Conditioning, model_poses
from training.evaluation.imagine import Dreamer
from training.evaluation.options import Feedback, Memory
from training.recording.rollouts import Rollouts, read_rollouts
from wm_gym.codec import model_to_frames
from wm_gym.ops.step import frame_noise
from wm_gym.world_model import WorldModel

FIRST = 7_000_000
CONTEXT = 12


class OtherModel(WorldModel):
    """Stands for a model that a `StepGraph` does not take."""


def baseline() -> WorldModel:
    values = dict(vars(tiny_model().config), block_sizes=(1, 1))
    torch.manual_seed(0)
    return build_model(BaselineConfig(**values, architecture="causal_transformer")).eval()


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    path = tmp_path_factory.mktemp("data") / "walks"
    make_toy_store(path, range(FIRST, FIRST + 3), max_episode_steps=19, split="test")
    return read_rollouts(path, "test", None, 20)


def changed(walks: Rollouts, frame: int) -> Rollouts:
    frames = walks.frames.clone()
    frames[:, frame] = 255 - frames[:, frame]
    return Rollouts(**{**vars(walks), "frames": frames})


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_dream_does_not_depend_on_its_batch(walks: Rollouts, batch_size: int) -> None:
    model = tiny_model()
    together = Dreamer(model, 3).imagine(walks, CONTEXT, "kept")
    assert together.shape == (3, 8, 16, 16, 3)
    assert_same_dream(Dreamer(model, batch_size).imagine(walks, CONTEXT, "kept"), together)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("feedback", ["dreamed", "real"])
@pytest.mark.parametrize("overrides", [{}, {"pose": VECTOR_POSE}])
def test_models_of_other_kinds_dream_the_same_by_their_step(
    walks: Rollouts, overrides: dict[str, int], feedback: Feedback
) -> None:
    model = tiny_model(**overrides)
    other = OtherModel(model.config).eval()
    other.load_state_dict(model.state_dict())
    graph, eager = (Dreamer(each, 3, 2, noise_seed=5, feedback=feedback) for each in (model, other))
    assert_same_dream(eager.imagine(walks, CONTEXT, "kept"), graph.imagine(walks, CONTEXT, "kept"))


def test_a_kept_memory_knows_the_first_frame_and_a_cleared_one_only_the_last_window_and_one(walks: Rollouts) -> None:
    dreamer = Dreamer(tiny_model(window=3), 3)
    first, last_lost, first_kept = changed(walks, 0), changed(walks, CONTEXT - 5), changed(walks, CONTEXT - 4)
    kept, cleared = (dreamer.imagine(walks, CONTEXT, memory) for memory in ("kept", "cleared"))
    assert not torch.equal(dreamer.imagine(first, CONTEXT, "kept"), kept)
    assert torch.equal(dreamer.imagine(last_lost, CONTEXT, "cleared"), cleared)
    assert not torch.equal(dreamer.imagine(first_kept, CONTEXT, "cleared"), cleared)
    assert dreamer.num_frames_read("cleared", CONTEXT) == 4
    assert dreamer.num_frames_read("cleared", 2) == 2
    assert Dreamer(tiny_model(window=3), 3, cleared_frames=7).num_frames_read("cleared", CONTEXT) == 7


def test_with_real_feedback_a_frame_is_what_the_model_predicts_from_the_real_frames_before_it(
    walks: Rollouts,
) -> None:
    model, length = tiny_model(), CONTEXT + 5
    imagined = Dreamer(model, 2, feedback="real").imagine(walks, CONTEXT, "kept")
    keys, counters = torch.tensor(walks.seeds), torch.full((3,), 5)
    with torch.no_grad():
        state = model.prefill(model.initial_state(3), walks.frames[:, :length], walks.actions[:, : length - 1])
        noise = frame_noise(keys, counters, (3, 16, 16))
        prediction, _ = model.step(state, walks.actions[:, length - 1], noise)
    assert_same_dream(imagined[:, 5], model_to_frames(prediction.frame))
    assert not torch.equal(imagined[:, 5], Dreamer(model, 2).imagine(walks, CONTEXT, "kept")[:, 5])


def test_a_baseline_dreams_too_and_recalls_what_its_cleared_memory_cannot(walks: Rollouts) -> None:
    dreamer = Dreamer(baseline(), 2)
    kept, cleared = (dreamer.imagine(walks, CONTEXT, memory) for memory in ("kept", "cleared"))
    assert kept.shape == cleared.shape == (3, 8, 16, 16, 3)
    assert not torch.equal(dreamer.imagine(changed(walks, 0), CONTEXT, "kept"), kept)
    assert torch.equal(dreamer.imagine(changed(walks, 0), CONTEXT, "cleared"), cleared)


def test_a_context_as_short_as_the_window_has_nothing_to_clear(walks: Rollouts) -> None:
    dreamer = Dreamer(tiny_model(window=3), 3)
    assert torch.equal(dreamer.imagine(walks, 4, "cleared"), dreamer.imagine(walks, 4, "kept"))


def test_a_dream_follows_the_poses_that_it_is_given(walks: Rollouts) -> None:
    dreamer = Dreamer(tiny_model(pose=VECTOR_POSE), 3)
    moved = Rollouts(**{**vars(walks), "pose": walks.pose.clone()})
    moved.pose[:, CONTEXT + 2] += 3.0
    before, after = (dreamer.imagine(each, CONTEXT, "kept") for each in (walks, moved))
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


@pytest.mark.parametrize("feedback", ["dreamed", "real"])
def test_a_model_with_odometry_dreams_by_actions_without_a_look_at_poses(walks: Rollouts, feedback: Feedback) -> None:
    model = tiny_model(pose=PLANAR_POSE, odometry=LEARNED_ODOMETRY)
    other = OtherModel(model.config).eval()
    other.load_state_dict(model.state_dict())
    elsewhere = Rollouts(**{**vars(walks), "pose": torch.full_like(walks.pose, torch.nan)})
    by_action, by_pose = (Dreamer(model, 3, feedback=feedback, conditioning=told) for told in ("action", "pose"))
    dreamed = by_action.imagine(walks, CONTEXT, "kept")
    assert torch.equal(by_action.imagine(elsewhere, CONTEXT, "kept"), dreamed)
    assert not torch.equal(by_pose.imagine(walks, CONTEXT, "kept"), dreamed)
    by_step = Dreamer(other, 3, feedback=feedback, conditioning="action").imagine(walks, CONTEXT, "kept")
    assert_same_dream(by_step, dreamed)


@pytest.mark.parametrize("memory", ["kept", "cleared"])
def test_a_planar_model_sees_poses_from_the_first_frame_that_it_read(walks: Rollouts, memory: Memory) -> None:
    model = tiny_model(pose=PLANAR_POSE)
    x, y, cos, sin = walks.pose.unbind(-1)
    elsewhere = Rollouts(**{**vars(walks), "pose": torch.stack([5 - y, x + 2, -sin, cos], dim=-1)})
    dreamer = Dreamer(model, 3)
    dreamed = dreamer.imagine(walks, CONTEXT, memory)
    assert_same_dream(dreamer.imagine(elsewhere, CONTEXT, memory), dreamed)
    unmoved = Rollouts(**{**vars(walks), "pose": walks.pose[:, :1].expand_as(walks.pose)})
    assert not torch.equal(dreamer.imagine(unmoved, CONTEXT, memory), dreamed)


REFRESHED = ({}, {"pose": PLANAR_POSE}, {"pose": PLANAR_POSE, "odometry": LEARNED_ODOMETRY})


@pytest.mark.parametrize("overrides", REFRESHED)
@pytest.mark.parametrize("kind", [WorldModel, OtherModel])
@pytest.mark.parametrize("num_read", [0, 7])
def test_after_a_refresh_a_dream_is_that_of_a_memory_of_the_newest_frames_alone(
    walks: Rollouts, overrides: dict[str, Any], kind: type[WorldModel], num_read: int
) -> None:
    model = kind(tiny_model(**overrides).config).eval()
    model.load_state_dict(tiny_model(**overrides).state_dict())
    told: Conditioning = "action" if overrides.get("odometry") else "pose"
    dreamed = Dreamer(model, 3, conditioning=told, refresh_steps=5, refresh_frames=num_read).imagine(
        walks, CONTEXT, "kept"
    )
    assert_same_dream(dreamed[:, :5], Dreamer(model, 3, conditioning=told).imagine(walks, CONTEXT, "kept")[:, :5])
    first, now = CONTEXT + 5 - (num_read or 5), CONTEXT + 5  # 7: five dreamed ones and the last two of the context
    newest = torch.cat([walks.frames[:, :CONTEXT], dreamed], dim=1)[:, first:now]
    pose = model_poses(model.config, walks.pose[:, first:], told)
    with torch.no_grad():
        state = model.prefill(
            model.initial_state(3),
            newest,
            walks.actions[:, first : now - 1],
            None if pose is None else pose[:, : now - first],
        )
        for t in (5, 6):
            noise = frame_noise(torch.tensor(walks.seeds), torch.full((3,), t), (3, 16, 16))
            pose_t = None if pose is None else pose[:, CONTEXT + t - first]
            prediction, state = model.step(state, walks.actions[:, CONTEXT + t - 1], noise, pose=pose_t)
            assert_same_dream(dreamed[:, t], model_to_frames(prediction.frame))


def test_a_refresh_reads_real_frames_where_they_are_fed_back(walks: Rollouts) -> None:
    dreamer = Dreamer(tiny_model(), 3, feedback="real", refresh_steps=4)
    dreamed = dreamer.imagine(walks, CONTEXT, "kept")
    before, within = (dreamer.imagine(changed(walks, frame), CONTEXT, "kept") for frame in (CONTEXT - 1, CONTEXT + 3))
    assert torch.equal(before[:, 4:], dreamed[:, 4:]), "what the old memory had read is gone"
    assert not torch.equal(before[:, :4], dreamed[:, :4])
    assert not torch.equal(within[:, 4:], dreamed[:, 4:])


def with_odometry(kind: type[WorldModel] = WorldModel) -> WorldModel:
    tiny = tiny_model_with_odometry()
    model = kind(tiny.config).eval()
    model.load_state_dict(tiny.state_dict())
    return model


def by_hand(model: WorldModel, walks: Rollouts, first: int, num_steps: int) -> torch.Tensor:
    """Distances and angles between told and true poses, ``[M, num_steps + 1, 2]``, by `prefill` and `step` alone."""
    start = walks.pose[:, first].double()
    turn = torch.atan2(start[:, 3], start[:, 2])[:, None]
    offset = walks.pose[:, :, :2].double() - start[:, None, :2]
    x = offset[..., 0] * turn.cos() + offset[..., 1] * turn.sin()
    y = offset[..., 1] * turn.cos() - offset[..., 0] * turn.sin()
    heading = torch.atan2(walks.pose[..., 3], walks.pose[..., 2]).double() - turn
    state = model.prefill(model.initial_state(3), walks.frames[:, first:CONTEXT], walks.actions[:, first : CONTEXT - 1])
    errors = []
    for t in range(num_steps + 1):
        if t:
            noise = frame_noise(torch.tensor(walks.seeds), torch.full((3,), t - 1), (3, 16, 16))
            _, state = model.step(state, walks.actions[:, CONTEXT + t - 2], noise)
        assert state.pending is not None and state.pending.pose is not None
        told, now = state.pending.pose.double(), CONTEXT - 1 + t
        angle = torch.atan2(told[:, 3], told[:, 2]) - heading[:, now]
        angle = torch.atan2(angle.sin(), angle.cos()).abs().rad2deg()
        errors.append(torch.stack([torch.hypot(told[:, 0] - x[:, now], told[:, 1] - y[:, now]), angle], dim=-1))
    return torch.stack(errors, dim=1).float()


@pytest.mark.parametrize("kind", [WorldModel, OtherModel])
@pytest.mark.parametrize("memory", ["kept", "cleared"])
@torch.no_grad()
def test_pose_errors_are_those_between_told_and_true_poses_as_seen_from_the_first_frame_read(
    walks: Rollouts, kind: type[WorldModel], memory: Memory
) -> None:
    model = with_odometry(kind)
    dreamer = Dreamer(model, 2, conditioning="action")
    errors = dreamer.dream(walks, CONTEXT, memory).pose_errors
    assert errors is not None and errors.shape == (3, 9, 2)
    expected = by_hand(model, walks, CONTEXT - dreamer.num_frames_read(memory, CONTEXT), 8)
    torch.testing.assert_close(errors, expected, atol=2e-3, rtol=1e-3)
    assert errors[:, -1].min() > 0.01


def test_where_the_world_has_its_origin_changes_no_pose_error_and_a_refresh_begins_anew(walks: Rollouts) -> None:
    x, y, cos, sin = walks.pose.unbind(-1)
    elsewhere = Rollouts(**{**vars(walks), "pose": torch.stack([5 - y, x + 2, -sin, cos], dim=-1)})
    for steps in (0, 5):
        dreamer = Dreamer(with_odometry(), 3, conditioning="action", refresh_steps=steps)
        here, there = (dreamer.dream(each, CONTEXT, "kept").pose_errors for each in (walks, elsewhere))
        assert here is not None and there is not None
        torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)
        moved = Rollouts(**{**vars(walks), "pose": walks.pose.clone()})
        moved.pose[:, : CONTEXT - 1] += torch.tensor([9.0, 0.0, 0.0, 0.0])
        off = dreamer.dream(moved, CONTEXT, "kept").pose_errors
        assert off is not None and not torch.isclose(off[:, :6, 0], here[:, :6, 0], atol=0.1).any()
        if steps:
            assert torch.equal(off[:, 6:], here[:, 6:]), "the memory has not read what lies before"
        else:
            assert not torch.isclose(off[:, 6:, 0], here[:, 6:, 0], atol=0.1).any()


def test_poses_that_are_given_or_that_there_are_none_of_have_no_errors(walks: Rollouts) -> None:
    assert Dreamer(with_odometry(), 3).dream(walks, CONTEXT, "kept").pose_errors is None
    assert Dreamer(tiny_model(), 3, conditioning="action").dream(walks, CONTEXT, "kept").pose_errors is None
