"""A model with odometry tells poses by itself, and every way of running it tells the same ones."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from tests.engine.test_graph import BATCH, KEYS, assert_same_state, loaded, read, some_actions
from tests.tiny import (
    DISCRETE,
    GRID_ODOMETRY,
    LEARNED_ODOMETRY,
    PLANAR_POSE,
    SMALL_MAP,
    make_tiny_clips,
    save_tiny_checkpoint,
    save_tiny_clips,
    tiny_model,
)
from wm_gym.codec import frames_to_model, model_to_frames
from wm_gym.nn.config import NO_MAP, NO_ODOMETRY, NO_POSE
from wm_gym.odometry.visual import VisualOdometry
from wm_gym.ops.step import frame_noise
from wm_gym.poses import motion_between, relative_to_first
from wm_gym.world_model import ModelState, WorldModel
from wm_gym.wrappers.memory import FrameReader

PLANAR: dict[str, Any] = {"pose": PLANAR_POSE}
MAP: dict[str, Any] = {"map": SMALL_MAP}
ON_GRID = {**MAP, "odometry": GRID_ODOMETRY}
FRAMES = 9


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model(**PLANAR, odometry=LEARNED_ODOMETRY).requires_grad_(False)


def clip(batch: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (batch, FRAMES, 16, 16, 3), generator=g, dtype=torch.uint8)
    return frames, torch.randint(0, 3, (batch, FRAMES - 1), generator=g)


def some_poses(batch: int = 2, length: int = FRAMES) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    angle = torch.randn(batch, length, 1, generator=g)
    return relative_to_first(torch.cat([torch.randn(batch, length, 2, generator=g), angle.cos(), angle.sin()], -1))


def pose_of(state: ModelState) -> torch.Tensor:
    assert state.pending is not None and state.pending.pose is not None
    return state.pending.pose


@pytest.mark.parametrize("cuts", [[1], [4], [8], [1, 2, 5], list(range(1, FRAMES))])
def test_a_context_split_anywhere_gives_the_same_poses_and_memory(model: WorldModel, cuts: list[int]) -> None:
    frames, actions = clip()
    whole = model.prefill(model.initial_state(2), frames, actions)
    state, begin = model.initial_state(2), 0
    for end in [*cuts, FRAMES]:
        state = model.prefill(state, frames[:, begin:end], actions[:, max(begin - 1, 0) : end - 1])
        begin = end
    assert_same_state(state, whole, 1e-4)
    assert (pose_of(whole) - torch.tensor([0.0, 0.0, 1.0, 0.0])).abs().amax(1).min() > 0.01


def test_frame_by_frame_gives_the_memory_of_the_whole_context(model: WorldModel) -> None:
    frames, actions = clip()
    whole = model.prefill(model.initial_state(2), frames, actions)
    state = model.prefill(model.initial_state(2), frames[:, :1], actions[:, :0])
    torch.testing.assert_close(pose_of(state), torch.tensor([[0.0, 0.0, 1.0, 0.0]]).expand(2, 4))
    for t in range(1, FRAMES):
        state = model.advance(state, frames[:, t], actions[:, t - 1])
    assert_same_state(state, whole, 1e-4)


def test_a_context_tells_the_poses_that_its_frames_have_one_by_one(model: WorldModel, monkeypatch) -> None:
    frames, actions = clip()
    state = model.prefill(model.initial_state(2), frames[:, :1], actions[:, :0])
    expected = [pose_of(state)]
    for t in range(1, FRAMES):
        state = model.advance(state, frames[:, t], actions[:, t - 1])
        expected.append(pose_of(state))
    for most in (128, 4):  # read at once, and in parts
        monkeypatch.setattr("wm_gym.world_model._PREFILL_FRAMES", most)
        state, poses = model.prefill_and_locate(model.initial_state(2), frames, actions)
        torch.testing.assert_close(poses, torch.stack(expected, 1), rtol=1e-4, atol=1e-5)
        _, later = model.prefill_and_locate(state, frames[:, :2], actions[:, :2])
        assert later is not None and (later[:, 0] - pose_of(state)).abs().max() > 1e-4
    assert tiny_model().prefill_and_locate(tiny_model().initial_state(2), frames, actions)[1] is None


def test_telling_poses_equals_being_given_the_poses_that_were_told(model: WorldModel) -> None:
    frames, actions = clip()
    state = model.prefill(model.initial_state(2), frames[:, :1], actions[:, :0])
    poses = [pose_of(state)]
    for t in range(1, FRAMES):
        state = model.advance(state, frames[:, t], actions[:, t - 1])
        poses.append(pose_of(state))
    given = model.prefill(model.initial_state(2), frames, actions, torch.stack(poses, 1))
    for mine, theirs in zip(state.layers, given.layers, strict=True):
        torch.testing.assert_close(mine.ssm_state, theirs.ssm_state, rtol=1e-4, atol=1e-5)


def test_the_pose_of_a_frame_does_not_depend_on_that_frame_but_the_next_one_does(model: WorldModel) -> None:
    frames, actions = clip()
    other = frames.clone()
    other[:, -1] = 255 - other[:, -1]
    states = [model.prefill(model.initial_state(2), video, actions) for video in (frames, other)]
    assert torch.equal(pose_of(states[0]), pose_of(states[1]))
    noise = torch.zeros(2, 3, 16, 16)
    later = [pose_of(model.step(state, actions[:, 0], noise)[1]) for state in states]
    assert (later[0] - later[1]).abs().max() > 1e-4


def test_with_true_poses_odometry_does_not_run(model: WorldModel) -> None:
    frames, actions = clip()
    poses = some_poses(length=FRAMES + 2)
    with mock.patch.object(VisualOdometry, "follow", side_effect=AssertionError("odometry ran")):
        state = model.prefill(model.initial_state(2), frames, actions, poses[:, :FRAMES])
        _, state = model.step(state, actions[:, 0], torch.zeros(2, 3, 16, 16), pose=poses[:, FRAMES])
        graph = loaded(model, state, KEYS[:2])
        graph.step(actions[:, 0], poses[:, FRAMES + 1])
        assert torch.equal(pose_of(graph.state()), poses[:, FRAMES + 1])
        with pytest.raises(AssertionError, match="odometry ran"):
            graph.step(actions[:, 0])
    without = tiny_model(**PLANAR).requires_grad_(False)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("odometry.")})
    plain = without.prefill(without.initial_state(2), frames, actions, poses[:, :FRAMES])
    _, plain = without.step(plain, actions[:, 0], torch.zeros(2, 3, 16, 16), pose=poses[:, FRAMES])
    assert torch.equal(pose_of(plain), pose_of(state))
    for mine, theirs in zip(state.layers, plain.layers, strict=True):
        assert torch.equal(mine.ssm_state, theirs.ssm_state)


def test_motion_goes_on_from_given_poses_to_told_ones(model: WorldModel) -> None:
    frames, actions = clip()
    still = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(2, FRAMES, 4)
    told = []
    for poses in (still, some_poses()):
        state = model.prefill(model.initial_state(2), frames, actions, poses)
        state = model.advance(state, frames[:, 0], actions[:, 0])
        assert state.pending is not None and state.pending.odometry is not None
        told.append(state.pending.odometry[:, :3])
    assert (told[0] - told[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("num_denoising_steps", "overrides"), [(1, {}), (3, {}), (1, {"frame_width": 32}), (1, MAP), (3, MAP), (1, ON_GRID)]
)
@pytest.mark.parametrize("action", [{}, {"action_kind": "continuous", "action_size": 2}])
def test_a_step_graph_tells_the_poses_of_the_models_step(num_denoising_steps, overrides, action) -> None:
    model = tiny_model(**{**PLANAR, "odometry": LEARNED_ODOMETRY, **overrides, **action}).requires_grad_(False)
    c = model.config
    given = read(without_poses(model), 5)
    frames = model_to_frames(_pending(given).frame)
    none = torch.zeros(BATCH, 0, dtype=torch.int64) if not action else torch.zeros(BATCH, 0, 2)
    state = model.prefill(model.initial_state(BATCH), frames[:, None], none)
    graph = loaded(model, state, num_denoising_steps=num_denoising_steps)
    for t in range(10):
        taken = some_actions(model, BATCH, t)
        noise = frame_noise(KEYS, torch.full((BATCH,), t), (c.frame_channels, c.frame_height, c.frame_width))
        # Poses are given now and then, to both.
        pose = some_poses(BATCH)[:, t % FRAMES] if t in (3, 4, 7) else None
        expected, state = model.step(state, taken, noise, num_denoising_steps, pose)
        output = graph.step(taken, pose)
        torch.testing.assert_close(output.model_frame, expected.frame, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(pose_of(graph.state()), pose_of(state), rtol=1e-4, atol=1e-5)
        rounded = model_to_frames(expected.frame)
        assert (output.frame.int() - rounded.int()).abs().max() <= 1
        if not torch.equal(output.frame, rounded):  # a value half-way between two grey levels
            graph.load(state)
        assert_same_state(graph.state(), state, 1e-4)


@pytest.mark.parametrize("overrides", [MAP, ON_GRID])
def test_with_a_map_only_real_frames_are_looked_at(overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(**{**PLANAR, "odometry": LEARNED_ODOMETRY, **overrides}).requires_grad_(False)
    frames = torch.randint(0, 256, (BATCH, 4, 16, 16, 3), dtype=torch.uint8)
    state = model.prefill(
        model.initial_state(BATCH), frames, torch.stack([some_actions(model, BATCH, t) for t in range(3)], 1)
    )
    graph = loaded(model, state, num_denoising_steps=1)
    looks: list[int] = []
    follow = VisualOdometry.follow
    monkeypatch.setattr(VisualOdometry, "follow", lambda *arguments: (looks.append(1), follow(*arguments))[1])
    for _ in range(3):
        graph.step(some_actions(model, BATCH, 0))
    assert len(looks) == 1  # at the last frame of the context
    graph.memory.correct(torch.zeros_like(graph.memory.frame))
    for _ in range(2):
        graph.step(some_actions(model, BATCH, 1))
    assert len(looks) == 2
    graph.copy_rows(torch.tensor([1]), graph.memory, torch.tensor([0]))
    graph.step(some_actions(model, BATCH, 2))
    assert len(looks) == 3  # whether those rows were dreamed is not known without asking


def without_poses(model: WorldModel) -> WorldModel:
    """A model of the same frames and actions that needs no poses, to make frames with."""
    none: dict[str, Any] = {"pose": NO_POSE, "odometry": NO_ODOMETRY, "map": NO_MAP}
    return WorldModel(dataclasses.replace(model.config, **none))


def _pending(state: ModelState) -> Any:
    assert state.pending is not None
    return state.pending


def test_a_saved_and_restored_dream_goes_on_exactly(model: WorldModel) -> None:
    frames, actions = clip()
    state = model.prefill(model.initial_state(2), frames, actions)
    restored = ModelState.from_tensors(load(save(state.to_tensors())))
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = model.step(state, actions[:, 0], noise)[1], model.step(restored, actions[:, 0], noise)[1]
    assert_same_state(first, second)
    assert "pending.odometry" in first.to_tensors()


def test_rows_do_not_depend_on_each_other(model: WorldModel) -> None:
    frames, actions = clip(3)
    together = model.prefill(model.initial_state(3), frames, actions)
    alone = model.prefill(model.initial_state(1), frames[1:2], actions[1:2])
    assert_same_state(together.index(1), alone, 1e-4)
    mixed = together.where(torch.tensor([True, False, True]), together.index(torch.tensor([2, 2, 2])))
    assert torch.equal(pose_of(mixed)[1], pose_of(together)[2])


def test_a_real_frame_in_place_of_the_newest_is_what_the_next_pose_is_told_from(model: WorldModel) -> None:
    frames, actions = clip()
    noise = torch.zeros(2, 3, 16, 16)
    dreamed = model.prefill(model.initial_state(2), frames[:, :4], actions[:, :3])
    real = model.advance(dreamed, frames[:, 4], actions[:, 3])
    _, dreamed = model.step(dreamed, actions[:, 3], noise)
    corrected = dataclasses.replace(dreamed, pending=_pending(dreamed).corrected(frames_to_model(frames[:, 4])))
    expected = model.step(real, actions[:, 4], noise)[1]
    assert_same_state(model.step(corrected, actions[:, 4], noise)[1], expected, 1e-4)


def test_a_dreamed_frame_says_nothing_of_the_motion_that_led_to_it(model: WorldModel) -> None:
    """It shows what was expected; odometry that believed its eyes there would follow its own errors."""
    frames, actions = clip()
    start = model.prefill(model.initial_state(2), frames[:, :4], actions[:, :3])
    dreamed = model.step(start, actions[:, 3], torch.zeros(2, 3, 16, 16))[1]
    seen = dataclasses.replace(dreamed, pending=_pending(dreamed).corrected(_pending(dreamed).frame))
    expected = _motions(dreamed)[:, :3]
    for state, is_kept in ((dreamed, True), (seen, False)):
        after = model.step(state, actions[:, 4], torch.zeros(2, 3, 16, 16))[1]
        assert torch.equal(_motions(after)[:, 3:], expected) == is_kept


def test_a_dreamed_frame_is_looked_at_without_the_one_before(model: WorldModel) -> None:
    odometry = model.odometry
    assert isinstance(odometry, VisualOdometry)
    frames, actions = clip()
    video = frames_to_model(frames)
    starts = [odometry.initial_state(2, torch.device("cpu")), odometry.initial_state(2, torch.device("cpu"))]
    # Two pasts that differ in what was seen last, and in nothing else.
    for row, start in enumerate(starts):
        start[:, 6] = 1.0
        start[:, 16:] = video[:, row].flatten(1)[:, : start.shape[1] - 16]
    pose = odometry.first_pose(2, torch.device("cpu"))
    for is_real in (True, False):
        real = torch.full((2,), is_real)
        told = [odometry.predict(start, video[:, 5], actions[:, 5], pose, real)[0] for start in starts]
        assert torch.equal(told[0], told[1]) == (not is_real)
        other = odometry.predict(starts[0], video[:, 6], actions[:, 5], pose, real)[0]
        assert not torch.equal(other, told[0])  # what the frame itself shows counts in both


def _motions(state: ModelState) -> torch.Tensor:
    """The motion to the newest frame as it was told, and the one before it with what was made up for."""
    odometry = _pending(state).odometry
    assert odometry is not None
    return odometry[:, :6]


def test_a_state_without_odometry_is_refused(model: WorldModel) -> None:
    frames, actions = clip()
    without = tiny_model(**PLANAR)
    state = without.prefill(without.initial_state(2), frames, actions, some_poses())
    with pytest.raises(ValueError, match="model without odometry"):
        model.step(state, actions[:, 0], torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="exactly if the model has odometry"):
        loaded(model, state, KEYS[:2])


def test_environments_dream_with_odometry_and_tell_where_they_take_themselves_to_be(model, tmp_path) -> None:
    kwargs: dict[str, Any] = {
        "checkpoint": str(save_tiny_checkpoint(tmp_path / "model.safetensors", model)),
        "contexts": str(save_tiny_clips(tmp_path / "clips.npz")),
        "context_frames": 6,
    }
    env: Any = gym.make("LSSVWM-MemoryMaze-v0", **kwargs)
    obs, info = env.reset(seed=3)
    assert obs in env.observation_space and info["estimated_pose"].shape == (4,)
    obs, _, _, _, info = env.step(1)
    fork = env.unwrapped.get_state()
    steps = []
    for _ in range(2):
        env.unwrapped.set_state(fork)
        steps.append(env.step(2))
    np.testing.assert_array_equal(steps[0][0], steps[1][0])
    np.testing.assert_array_equal(steps[0][4]["estimated_pose"], steps[1][4]["estimated_pose"])
    assert np.abs(steps[0][4]["estimated_pose"] - info["estimated_pose"]).max() > 1e-4
    envs: Any = gym.make_vec("LSSVWM-MemoryMaze-v0", 2, vectorization_mode="vector_entry_point", **kwargs)
    envs.reset(seed=[9, 3])
    rows = envs.step(np.array([0, 1]))[0]
    np.testing.assert_array_equal(rows[1], obs)
    env.close()
    envs.close()


def test_a_real_environments_memory_reads_frames_by_odometry(model: WorldModel, tmp_path) -> None:
    path = save_tiny_checkpoint(tmp_path / "model.safetensors", model)
    space: Any = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    reader = FrameReader(path, 1, "cpu", space, DISCRETE)
    frames, actions = make_tiny_clips().frames[0], make_tiny_clips().actions[0]
    reader.start(frames[:1])
    for frame, action in zip(frames[1:], actions, strict=True):
        reader.read(frame[None], [action])
    whole = reader.model.prefill(
        reader.model.initial_state(1), torch.from_numpy(frames)[None], torch.from_numpy(actions)[None]
    )
    assert reader.state is not None
    assert_same_state(reader.state, whole, 1e-4)


def test_motions_are_the_same_with_gradients_which_do_not_go_back_in_time() -> None:
    model = tiny_model(**PLANAR, odometry=LEARNED_ODOMETRY)
    odometry = model.odometry
    assert isinstance(odometry, VisualOdometry)
    frames, actions = clip()
    state = odometry.initial_state(2, torch.device("cpu"))
    looked = odometry.look(state, frames_to_model(frames[:, :-1]), actions)
    with torch.no_grad():
        expected = odometry.motions(state, looked)
    told = odometry.motions(state, looked)
    for mine, theirs in zip(told, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(told[1][:, 4].sum(), looked.hidden)
    assert gradient[:, 4].abs().min() > 0
    assert gradient[:, :4].abs().max() == 0


def test_given_poses_leave_the_actions_in_memory(model: WorldModel) -> None:
    odometry = model.odometry
    assert isinstance(odometry, VisualOdometry)
    frames, actions = clip()
    start = odometry.initial_state(2, torch.device("cpu"))
    poses, followed = odometry.follow(start, frames_to_model(frames[:, :-1]), actions, torch.eye(4)[[2, 2]])
    given = odometry.given(start, torch.cat([torch.eye(4)[[2, 2]][:, None], poses], dim=1), actions)
    one_hot = torch.nn.functional.one_hot(actions[:, -3:], 3).float().flatten(1)
    assert torch.equal(followed[:, 7:16], one_hot)
    assert torch.equal(given[:, 7:16], one_hot)
    torch.testing.assert_close(
        given[:, :6].view(2, 2, 3)[:, 0], motion_between(poses[:, -2], poses[:, -1]), rtol=0, atol=1e-5
    )
