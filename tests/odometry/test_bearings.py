"""Odometry with bearings: real frames tell where the grid lies, dreamed ones do not, and all ways of running agree."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from tests.engine.test_graph import BATCH, KEYS, assert_same_state, loaded, some_actions
from tests.tiny import GRID_ODOMETRY, LEARNED_ODOMETRY, PLANAR_POSE, SMALL_MAP, tiny_model, tiny_model_with_odometry
from wm_gym.codec import frames_to_model, model_to_frames
from wm_gym.nn.config import NO_MAP, WorldModelConfig
from wm_gym.nn.map_memory import read_map
from wm_gym.odometry.bearings import Bearings, sight_cost
from wm_gym.odometry.grid import AROUND, GridOdometry, in_cell
from wm_gym.odometry.visual import PAST_ACTIONS, VisualOdometry, odometry_state_size
from wm_gym.ops.odometry.bearings import GRID_STATE_SIZE, SIGHT_SIZE, counted_angles
from wm_gym.ops.step import frame_noise
from wm_gym.poses import placed, relative_to
from wm_gym.world_model import ModelState, WorldModel

PLANAR: dict[str, Any] = {"pose": PLANAR_POSE}
MAP: dict[str, Any] = {"hide_noise": True, "map": SMALL_MAP}
FRAMES = 9
AHEAD = torch.tensor([1, 1])
DREAMED, REAL = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)


@pytest.fixture(autouse=True)
def walls_of_untrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are never sure."""
    monkeypatch.setattr("wm_gym.odometry.grid._SURE", 0.0)


@pytest.fixture(scope="module", params=[{}, MAP], ids=["no map", "map"])
def model(request: pytest.FixtureRequest) -> WorldModel:
    return tiny_model_with_bearings(**request.param)


def tiny_model_with_bearings(**overrides: Any) -> WorldModel:
    """One that sees something else in every frame, and takes it to be certain, so that it counts."""
    model = tiny_model_with_odometry(odometry=GRID_ODOMETRY, **overrides).requires_grad_(False)
    bearings = odometry_of(model).bearings
    assert bearings is not None
    sights = bearings(frames_to_model(clip(20)[0])).flatten(0, 1)
    bearings.out.bias -= sights.mean(0)
    scale = 50 / (sights - sights.mean(0)).unflatten(-1, (-1, 2)).norm(dim=-1).mean(0).repeat_interleave(2)
    bearings.out.weight *= scale[:, None]
    bearings.out.bias *= scale
    return model


def odometry_of(model: WorldModel) -> VisualOdometry:
    assert isinstance(model.odometry, VisualOdometry)
    return model.odometry


def clip(batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (batch, FRAMES, 16, 16, 3), generator=g, dtype=torch.uint8)
    return frames, torch.randint(0, 3, (batch, FRAMES - 1), generator=g)


def start(odometry: VisualOdometry) -> tuple[Tensor, Tensor]:
    return odometry.initial_state(2, torch.device("cpu")), odometry.first_pose(2, torch.device("cpu"))


def grid_of(state: Tensor | ModelState) -> Tensor:
    if isinstance(state, ModelState):
        assert state.pending is not None and state.pending.odometry is not None
        state = state.pending.odometry
    return state[:, -GRID_STATE_SIZE:]


def place_of(state: Tensor | ModelState) -> Tensor:
    """Where the grid lies, and whether that is known."""
    return grid_of(state)[:, [0, 1, 2, -1]]


def pose_of(state: ModelState) -> Tensor:
    assert state.pending is not None and state.pending.pose is not None
    return state.pending.pose


def test_a_sight_is_told_of_every_frame_alone() -> None:
    bearings = odometry_of(tiny_model(**PLANAR, odometry=GRID_ODOMETRY)).bearings
    assert bearings is not None
    frames = frames_to_model(clip()[0])
    sights = bearings(frames)
    assert sights.shape == (2, FRAMES, SIGHT_SIZE) and sights.dtype == torch.float32
    torch.testing.assert_close(bearings(frames[1:, 4:5])[0, 0], sights[1, 4])
    assert (sights[:, 0] - sights[:, 1]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(("height", "width", "channels"), [(64, 64, 3), (17, 30, 1), (60, 80, 3)])
def test_frames_of_any_shape_tell_sights(height: int, width: int, channels: int) -> None:
    config = WorldModelConfig(
        frame_height=height, frame_width=width, frame_channels=channels, patch_size=1, block_sizes=(1,), map=NO_MAP
    )
    assert Bearings(config)(torch.zeros(1, 2, channels, height, width)).shape == (1, 2, SIGHT_SIZE)


def log_density(angle: np.ndarray, mean: np.ndarray, concentration: np.ndarray) -> np.ndarray:
    """Of von Mises distributions; what it is divided by is integrated by the trapezoid rule."""
    around = np.linspace(-np.pi, np.pi, 20001)[:-1]
    total = np.exp(concentration[..., None] * (np.cos(around) - 1)).mean(-1) * math.tau
    return concentration * (np.cos(angle - mean) - 1) - np.log(total)


def test_the_cost_of_sights_is_the_negative_log_likelihood_of_the_counted_angles() -> None:
    g = torch.Generator().manual_seed(0)
    length = torch.exp(8 * torch.rand(40, 3, 5, generator=g, dtype=torch.float64) - 2)  # 0.1 to 400
    mean, angle = math.tau * torch.rand(2, 40, 3, 5, generator=g, dtype=torch.float64)
    angle[:20] = mean[:20] + 0.1 * torch.randn(20, 3, 5, generator=g, dtype=torch.float64)
    counted = torch.rand(40, 3, 5, generator=g) < 0.7
    sights = (length[..., None] * torch.stack([mean.cos(), mean.sin()], dim=-1)).flatten(-2)
    density = torch.from_numpy(log_density(angle.numpy(), mean.numpy(), length.numpy()))
    expected = -(density * counted).sum(-1).mean().item()
    assert sight_cost(sights, angle, counted).item() == pytest.approx(expected, rel=1e-6)
    assert sight_cost(sights.float(), (angle + math.tau).float(), counted).item() == pytest.approx(expected, rel=1e-3)


def test_angles_that_do_not_count_cost_nothing_and_teach_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    sights = torch.randn(30, SIGHT_SIZE, generator=g).requires_grad_()
    angles, others = math.tau * torch.rand(2, 30, 5, generator=g)
    heading = math.tau * torch.rand(30, generator=g)
    pose = torch.stack([heading * 0, heading * 0, heading.cos(), heading.sin()], dim=-1)
    counted = counted_angles(pose)
    cost = sight_cost(sights, angles, counted)
    assert torch.equal(sight_cost(sights, torch.where(counted, angles, others), counted), cost)
    assert not torch.equal(sight_cost(sights, torch.where(counted, others, angles), counted), cost)
    (gradient,) = torch.autograd.grad(cost, sights)
    assert torch.equal(gradient.view(30, 5, 2).abs().amax(-1) > 0, counted)


def test_a_sight_of_no_length_has_a_gradient() -> None:
    sights = torch.zeros(1, SIGHT_SIZE, requires_grad=True)
    cost = sight_cost(sights, torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.bool))
    assert cost.item() == pytest.approx(5 * math.log(math.tau), rel=1e-4)
    (gradient,) = torch.autograd.grad(cost, sights)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.0] * 5]))


def test_following_frames_at_once_equals_following_them_one_by_one(model: WorldModel) -> None:
    odometry, (frames, actions) = odometry_of(model), clip()
    video = frames_to_model(frames[:, :-1])
    real = torch.tensor([[True] * 8, [True, True, False, True, False, False, True, True]])
    state, pose = start(odometry)
    poses, last = odometry.follow(state, video, actions, pose, real)
    for t in range(FRAMES - 1):
        part = slice(t, t + 1)
        told, state = odometry.follow(state, video[:, part], actions[:, part], pose, real[:, part])
        pose = told[:, -1]
        torch.testing.assert_close(pose, poses[:, t], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)
    assert (place_of(last)[:, -1] == 1).all()


def test_bearings_change_the_poses_of_real_frames_and_only_where_there_are_some(model: WorldModel) -> None:
    odometry, (frames, actions) = odometry_of(model), clip()
    video = frames_to_model(frames[:, :-1])
    with_bearings = odometry.follow(start(odometry)[0], video, actions, start(odometry)[1])
    with mock.patch.object(odometry, "bearings", None):
        without = odometry.follow(start(odometry)[0], video, actions, start(odometry)[1])
    assert (with_bearings[0] - without[0]).abs().max() > 1e-3
    # All else that is remembered tells of motions, not of where they led.
    assert torch.equal(with_bearings[1][:, :-GRID_STATE_SIZE], without[1])
    not_real = torch.zeros(2, FRAMES - 1, dtype=torch.bool)
    poses, state = odometry.follow(start(odometry)[0], video, actions, start(odometry)[1], not_real)
    with mock.patch.object(odometry, "bearings", None):
        without = odometry.follow(start(odometry)[0], video, actions, start(odometry)[1], not_real)
    torch.testing.assert_close(poses, without[0], rtol=0, atol=1e-5)
    assert not grid_of(state).any()


def test_a_dreamed_frame_moves_no_grid_and_a_real_one_does(model: WorldModel) -> None:
    odometry, (frames, actions) = odometry_of(model), clip()
    video = frames_to_model(frames)
    state, pose = start(odometry)
    poses, state = odometry.follow(state, video[:, :5], actions[:, :5], pose)
    assert (place_of(state)[:, -1] == 1).all()
    place_map = torch.rand(2, 24 * 24, 4) if odometry.by_map is not None else None
    for real in (DREAMED, REAL):
        changes = []
        for frame in (video[:, 5], -video[:, 5]):
            _, after = odometry.predict(state, frame, actions[:, 5], poses[:, -1], real, place_map)
            changes.append((place_of(after) - place_of(state)).abs().max().item())
        assert max(changes) < 1e-5 if not real.any() else max(changes) > 1e-3


def test_what_bearings_would_tell_of_a_dreamed_frame_counts_for_nothing(model: WorldModel) -> None:
    odometry, (frames, actions) = odometry_of(model), clip()
    assert odometry.bearings is not None
    video = frames_to_model(frames)
    state, pose = start(odometry)
    poses, state = odometry.follow(state, video[:, :5], actions[:, :5], pose)
    sight = torch.randn(2, 1, SIGHT_SIZE, generator=torch.Generator().manual_seed(3))
    for real in (DREAMED, REAL):
        told = []
        for given in (sight, -sight):
            with mock.patch.object(odometry.bearings, "forward", return_value=50 * given):
                told.append(odometry.follow(state, video[:, 5:6], actions[:, 5:6], poses[:, -1], real[:, None]))
        off = max((mine - other).abs().max().item() for mine, other in zip(*told, strict=True))
        assert off < 1e-5 if not real.any() else off > 1e-2


def test_a_state_before_any_frame_knows_no_grid(model: WorldModel) -> None:
    frames, actions = clip()
    first = model.prefill(model.initial_state(2), frames[:, :1], actions[:, :0])
    assert not grid_of(first).any()
    assert (place_of(model.prefill(first, frames[:, 1:2], actions[:, :1]))[:, -1] == 1).all()


@pytest.mark.parametrize("cuts", [[1], [4], [2, 5], list(range(1, FRAMES))])
def test_a_context_split_anywhere_gives_the_same_poses_and_memory(model: WorldModel, cuts: list[int]) -> None:
    frames, actions = clip()
    whole, poses = model.prefill_and_locate(model.initial_state(2), frames, actions)
    state, begin, located = model.initial_state(2), 0, []
    for end in [*cuts, FRAMES]:
        state, told = model.prefill_and_locate(state, frames[:, begin:end], actions[:, max(begin - 1, 0) : end - 1])
        located.append(told)
        begin = end
    assert_same_state(state, whole, 1e-4)
    torch.testing.assert_close(torch.cat(located, dim=1), poses, rtol=1e-4, atol=1e-5)


def test_dreams_go_on_from_a_context_and_the_grid_stays_where_it_was(model: WorldModel) -> None:
    frames, actions = clip()
    state = model.prefill(model.initial_state(2), frames, actions)
    state = model.advance(state, frames[:, 0], AHEAD)  # all that was seen is counted in now
    seen = place_of(model.step(state, AHEAD, torch.zeros(2, 3, 16, 16))[1])
    state = model.step(state, AHEAD, torch.zeros(2, 3, 16, 16))[1]
    for t in range(5):
        before = pose_of(state)
        state = model.step(state, AHEAD, torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(t)))[1]
        torch.testing.assert_close(place_of(state), seen, rtol=0, atol=1e-4)
        assert (pose_of(state) - before).abs().max() > 1e-5


def test_a_saved_and_restored_dream_goes_on_exactly(model: WorldModel) -> None:
    frames, actions = clip()
    state = model.prefill(model.initial_state(2), frames, actions)
    restored = ModelState.from_tensors(load(save(state.to_tensors())))
    assert torch.equal(grid_of(restored), grid_of(state)) and grid_of(state).any()
    for _ in range(3):
        noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        state, restored = (model.step(one, AHEAD, noise)[1] for one in (state, restored))
        assert_same_state(state, restored)


def test_given_poses_forget_the_grid(model: WorldModel) -> None:
    frames, actions = clip()
    state = model.prefill(model.initial_state(2), frames, actions)
    assert place_of(state)[:, -1].all()
    pose = torch.tensor([[1.0, 2.0, 0.6, 0.8]]).expand(2, 4)
    assert not grid_of(
        model.prefill(state, frames[:, :3], AHEAD[:, None].expand(2, 3), pose[:, None].expand(2, 3, 4))
    ).any()
    _, stepped = model.step(state, AHEAD, torch.zeros(2, 3, 16, 16), pose=pose)
    assert not grid_of(stepped).any()
    # It is found again by the first real frame that is looked at, and by no dreamed one.
    _, dreamed = model.step(stepped, AHEAD, torch.zeros(2, 3, 16, 16))
    assert not grid_of(dreamed).any()
    assert dreamed.pending is not None
    real = dataclasses.replace(dreamed, pending=dreamed.pending.corrected(frames_to_model(frames[:, 5])))
    assert (place_of(model.step(real, AHEAD, torch.zeros(2, 3, 16, 16))[1])[:, -1] == 1).all()


@pytest.mark.parametrize("overrides", [{}, MAP], ids=["no map", "map"])
def test_a_step_graph_tells_the_poses_of_the_models_step(overrides: dict[str, Any]) -> None:
    model = tiny_model_with_bearings(**overrides)
    c = model.config
    frames, actions = clip(BATCH)
    state = model.prefill(model.initial_state(BATCH), frames, actions)
    graph = loaded(model, state)
    for t in range(5):
        noise = frame_noise(KEYS, torch.full((BATCH,), t), (c.frame_channels, c.frame_height, c.frame_width))
        taken = some_actions(model, BATCH, t)
        expected, state = model.step(state, taken, noise)
        output = graph.step(taken)
        torch.testing.assert_close(grid_of(graph.state()), grid_of(state), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pose_of(graph.state()), pose_of(state), rtol=1e-4, atol=1e-5)
        if not torch.equal(output.frame, model_to_frames(expected.frame)):  # half-way between two grey levels
            graph.load(state)


def test_learned_odometry_has_no_bearings() -> None:
    config = tiny_model(**PLANAR, odometry=LEARNED_ODOMETRY).config
    with_bearings = dataclasses.replace(config, odometry=GRID_ODOMETRY)
    assert odometry_state_size(with_bearings) == odometry_state_size(config) + GRID_STATE_SIZE
    assert not any(name.startswith("bearings") for name in VisualOdometry(config).state_dict())


@pytest.fixture(scope="module")
def odometry_by_map() -> VisualOdometry:
    """One to which about half of a random map is walls."""
    odometry = odometry_of(tiny_model(**PLANAR, **MAP, odometry=GRID_ODOMETRY).requires_grad_(False))
    by_map = odometry.by_map
    assert isinstance(by_map, GridOdometry)
    grid = some_grid()[..., :4]
    by_map.wall.bias.sub_(by_map.walls(random_map(), grid, in_cell(grid)).median())
    return odometry


@pytest.fixture
def by_map(odometry_by_map: VisualOdometry) -> GridOdometry:
    assert isinstance(odometry_by_map.by_map, GridOdometry)
    return odometry_by_map.by_map


def random_map(seed: int = 3) -> Tensor:
    place_map = 4 * torch.randn(2, 24 * 24, 4, generator=torch.Generator().manual_seed(seed))
    place_map[..., 3] = 1  # how often something was written
    return place_map


def told_by_map(by_map: GridOdometry, grid: Tensor, maps: int = 3) -> Tensor:
    """Motions from three poses in two maps, when these lie so on the grid ``[2, 3, 5]``."""
    g = torch.Generator().manual_seed(3)
    heading = math.tau * torch.rand(2, 3, 1, generator=g)
    pose = torch.cat([torch.randn(2, 3, 2, generator=g), heading.cos(), heading.sin()], dim=-1)
    recent = 0.1 * torch.randn(2, 3, 6, generator=g)
    actions = torch.rand(2, 3, (PAST_ACTIONS + 1) * 3, generator=g)
    return by_map(random_map(maps), pose, recent, actions, grid=grid)


def some_grid() -> Tensor:
    g = torch.Generator().manual_seed(8)
    heading = math.tau * torch.rand(2, 3, 1, generator=g)
    known = torch.ones(2, 3, 1)
    return torch.cat([4 * torch.rand(2, 3, 2, generator=g) - 2, heading.cos(), heading.sin(), known], dim=-1)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_motion_by_the_map_does_not_tell_which_crossing_and_axis_of_the_grid_it_is(
    by_map: GridOdometry, quarters: int
) -> None:
    grid = some_grid()
    turn = torch.tensor(quarters * math.pi / 2)
    origin = torch.stack([torch.tensor(3.0), torch.tensor(-2.0), turn.cos(), turn.sin()])
    turned = torch.cat([placed(origin.expand(2, 3, 4), grid[..., :4]), grid[..., 4:]], dim=-1)
    torch.testing.assert_close(told_by_map(by_map, turned), told_by_map(by_map, grid), rtol=0, atol=1e-5)


@pytest.mark.parametrize("beside", [(1 / 3, 0.0, 0.0), (0.0, 1 / 3, 0.0), (0.0, 0.0, math.pi / 6)])
def test_motion_by_the_map_tells_where_in_its_cell_it_is(by_map: GridOdometry, beside) -> None:
    grid = some_grid()
    off = torch.tensor([*beside[:2], math.cos(beside[2]), math.sin(beside[2])]).expand(2, 3, 4)
    elsewhere = torch.cat([placed(off, grid[..., :4]), grid[..., 4:]], dim=-1)
    changed = (told_by_map(by_map, elsewhere) - told_by_map(by_map, grid)).abs().amax(-1)
    assert changed.min() > 1e-4


def test_walls_are_known_where_the_grid_is(by_map: GridOdometry) -> None:
    grid = some_grid()
    grid[1, :, 4] = 0
    changed = (told_by_map(by_map, grid) - told_by_map(by_map, grid, maps=4)).abs().amax(-1)
    assert changed[0].max() > 1e-4
    assert changed[1].max() == 0


def test_walls_are_read_in_the_cells_around_wherever_the_map_lies_on_the_grid(by_map: GridOdometry) -> None:
    grid = some_grid()[..., :4]
    g = torch.Generator().manual_seed(4)
    heading = math.tau * torch.rand(2, 1, 1, generator=g)
    origin = torch.cat([9 * torch.rand(2, 1, 2, generator=g), heading.cos(), heading.sin()], dim=-1).expand(2, 3, 4)
    place_map, pose = torch.rand(2, 24 * 24, 4, generator=g), relative_to(grid, origin)
    with mock.patch("wm_gym.odometry.grid.read_map", side_effect=read_map) as read:
        assert by_map.walls(place_map, pose, in_cell(grid)).shape == (2, 3, len(AROUND))
    points = read.call_args.args[2].view(2, 3, len(AROUND), -1, 2)
    directions = torch.tensor([1.0, 0.0]).expand_as(points)
    on_grid = placed(origin[:, :, None, None].expand(*points.shape[:-1], 4), torch.cat([points, directions], dim=-1))
    offset = on_grid[..., :2] - grid[:, :, None, None, :2].floor() - 0.5  # from the middle of the agent's own cell
    axis = in_cell(grid).axis
    for number, (ahead, left) in enumerate(AROUND):
        middle = torch.stack([ahead * axis.cos() - left * axis.sin(), ahead * axis.sin() + left * axis.cos()], dim=-1)
        torch.testing.assert_close(offset[:, :, number].mean(2), middle, rtol=0, atol=1e-4)
        assert (offset[:, :, number] - middle[:, :, None]).abs().max() < 0.7


def test_a_dream_by_the_map_knows_the_grid_from_the_state(odometry_by_map: VisualOdometry) -> None:
    g = torch.Generator().manual_seed(3)
    place_map, other_map = random_map(), random_map(4)
    pose = torch.tensor([[0.4, -0.8, 0.6, 0.8], [1.0, 2.0, 1.0, 0.0]])
    frame = torch.rand(2, 3, 16, 16, generator=g) * 2 - 1
    other_frame = torch.rand(2, 3, 16, 16, generator=g) * 2 - 1

    def told(x: float, y: float, turn: float, known: float, frame: Tensor = frame, maps: Tensor = place_map) -> Tensor:
        state = odometry_by_map.initial_state(2, torch.device("cpu"))
        state[:, :6] = 0.1
        grid = grid_of(state)
        grid[:, :3], grid[:, -1] = torch.tensor([x, y, turn]), known
        grid[:, 3:-1] = 1e-4 * torch.eye(6).flatten()
        return odometry_by_map.predict(state, frame, AHEAD, pose, DREAMED, maps)[0]

    here = told(0.3, -0.4, 0.2, 1.0)
    assert torch.equal(told(0.3, -0.4, 0.2, 1.0, other_frame), here)
    # The whole grid turned by a quarter about (2, 1), and moved by cells: what lies on it lies on it as before.
    turned = told(2 - (-0.4 - 1), 1 + (0.3 - 2), 0.2 + math.pi / 2, 1.0)
    torch.testing.assert_close(turned, here, rtol=0, atol=1e-5)
    assert (told(0.3 + 1 / 3, -0.4, 0.2, 1.0) - here).abs().amax(-1).min() > 1e-4
    # Where the grid is not known, nothing is a wall.
    assert torch.equal(told(0.3, -0.4, 0.2, 0.0), told(0.3, -0.4, 0.2, 0.0, maps=other_map))
    assert (told(0.3, -0.4, 0.2, 1.0, maps=other_map) - here).abs().max() > 1e-4
