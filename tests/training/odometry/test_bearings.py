"""Bearings are learned from single frames, go into checkpoints with the rest of the odometry, and out of them again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import GRID_ODOMETRY, LEARNED_ODOMETRY, PLANAR_POSE, SMALL_MAP, save_tiny_checkpoint, tiny_model
from tests.toy_store import make_toy_store
from training.data.dataset import Batch
from training.loop.step import load_initial_weights
from training.odometry.__main__ import main
from training.odometry.bearings import BearingsTraining, train_bearings
from training.odometry.mapped_walks import MappedWalks, MapTraining, grid_loss, map_walks, train_by_map
from training.store.episode_store import open_store
from wm_gym.checkpoint import Checkpoint, load_checkpoint
from wm_gym.codec import frames_to_model
from wm_gym.odometry.grid import AROUND, GridOdometry, InCell
from wm_gym.odometry.visual import PAST_ACTIONS, VisualOdometry
from wm_gym.ops.odometry.bearings import GRID_STATE_SIZE, counted_angles, filtered_poses, grid_angles, grid_pose
from wm_gym.poses import placed, relative_to_first
from wm_gym.world_model import WorldModel

PLANAR: dict[str, Any] = {"pose": PLANAR_POSE}
MAP: dict[str, Any] = {**PLANAR, "hide_noise": True, "map": SMALL_MAP}
QUICK = ["--training.batch-size", "4", "--training.length", "9", "--bearings.batch-size", "8", "--device", "cpu"]
EYES = ["--training.steps", "2", *QUICK]
BEARINGS = ["--bearings.steps", "3"]
BY_MAP = ["--map-every", "10", "--by-map.length", "4", "--mapped-walks", "3", "--by-map.steps", "2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks"
    make_toy_store(path, range(4))
    make_toy_store(path, range(7_000_000, 7_000_002), split="test")
    return path


class Floor:
    """Frames of the floor around the agent, seen from above; it has a pattern that is the same in all cells and along
    all axes, and in no mirror."""

    def __init__(self) -> None:
        self.asked: set[tuple[int, int]] = set()
        side = (torch.arange(16) - 7.5) / 16
        self._ahead, self._left = torch.meshgrid(side, side, indexing="ij")

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        self.asked.add((batch_size, length))
        place = 6 * torch.rand(batch_size, length, 2, generator=generator) - 3
        heading = math.tau * torch.rand(batch_size, length, 1, generator=generator)
        cos, sin = heading.cos()[..., None], heading.sin()[..., None]
        x = math.tau * (place[..., :1, None] + self._ahead * cos - self._left * sin)
        y = math.tau * (place[..., 1:, None] + self._ahead * sin + self._left * cos)
        whirl = x.sin() * (2 * y).sin() - (2 * x).sin() * y.sin()
        colours = torch.stack([(x.cos() + y.cos()) / 2, x.cos() * y.cos(), whirl / 2], dim=-1)
        frames = ((colours + 1) * 127.5).round().to(torch.uint8)
        nothing = torch.zeros(batch_size, length - 1)
        pose = torch.cat([place, heading.cos(), heading.sin()], dim=-1)
        return Batch(frames, nothing.long(), nothing, nothing.bool(), pose)


@pytest.fixture(scope="module")
def trained() -> tuple[VisualOdometry, dict[str, Tensor], Floor]:
    """Odometry, what it was before, and what it was trained on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        odometry = VisualOdometry(tiny_model(**MAP, odometry=GRID_ODOMETRY).config)
    before = {name: value.clone() for name, value in odometry.state_dict().items()}
    floor = Floor()
    assert train_bearings(odometry, floor, BearingsTraining(steps=250, batch_size=128)) == 250
    return odometry.requires_grad_(False), before, floor


def test_bearings_are_learned_and_nothing_else_changes(
    trained: tuple[VisualOdometry, dict[str, Tensor], Floor],
) -> None:
    odometry, before, floor = trained
    for name, value in odometry.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("bearings.")), name
    assert floor.asked == {(128, 1)}


def test_learned_sights_tell_heading_and_place(trained: tuple[VisualOdometry, dict[str, Tensor], Floor]) -> None:
    odometry, _, floor = trained
    assert odometry.bearings is not None
    batch = floor.sample(500, 1, torch.Generator().manual_seed(1))
    sights = odometry.bearings(frames_to_model(batch.frames))
    first = relative_to_first(batch.pose)[:, 0]
    state = filtered_poses(torch.zeros(500, GRID_STATE_SIZE), first, first[:, None].expand(-1, 2, -1), sights)[1]
    told, true = grid_pose(state, first), batch.pose[:, 0]
    off = torch.atan2(true[:, 3], true[:, 2]) - torch.atan2(told[:, 3], told[:, 2])
    quarters = (off / (math.pi / 2)).round() * math.pi / 2
    assert (off - quarters).abs().rad2deg().median() < 5
    turn = torch.stack([quarters * 0, quarters * 0, quarters.cos(), quarters.sin()], dim=-1)
    cells = placed(turn, told)[:, :2] - true[:, :2]
    assert (cells - cells.round()).norm(dim=-1).median() < 0.05
    # They are as far off as they say.
    counted = counted_angles(batch.pose)
    vectors = sights.unflatten(-1, (-1, 2))
    angles = torch.atan2(vectors[..., 1], vectors[..., 0])
    wrong = (angles - grid_angles(batch.pose) + math.pi).remainder(math.tau) - math.pi
    assert 0.2 < (wrong.square() * vectors.norm(dim=-1))[counted].mean() < 3


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"batch_size": 0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*at least"):
        BearingsTraining(**wrong)


def mazes(
    num_walks: int = 6, length: int = 40, size: int = 5, known: bool = True
) -> tuple[MappedWalks, Tensor, Tensor]:
    """Walks round bends through mazes of random cells, their poses on the grid and the walls of their mazes."""
    g = torch.Generator().manual_seed(5)
    heading = math.tau * torch.rand(num_walks, 1, generator=g) + 0.1 * torch.arange(length)
    steps = 0.15 * torch.stack([heading.cos(), heading.sin()], dim=-1)
    around = steps.cumsum(1) - steps.cumsum(1).mean(1, keepdim=True)
    place = size / 2 + torch.rand(num_walks, 1, 2, generator=g) - 0.5 + around
    assert place.min() > 0 and place.max() < size and place.min() < 1 and place.max() > size - 1
    poses = torch.cat([place, heading.cos()[..., None], heading.sin()[..., None]], dim=-1)
    layouts = (torch.rand(num_walks, size, size, generator=g) < 0.5).float()
    actions = torch.ones(num_walks, length, dtype=torch.int64)
    where = (poses[:, 0], layouts) if known else (None, None)
    maps = torch.zeros(num_walks, 1, 24 * 24, 4)
    return MappedWalks(maps, [PAST_ACTIONS], relative_to_first(poses), actions, *where), poses, layouts


class Told(NamedTuple):
    """What a step of training tells odometry: places in cells, walls around, poses as from the first frame, maps."""

    place: InCell
    walls: Tensor
    poses: Tensor
    rows: Tensor


def told_of(training: MapTraining, walks: MappedWalks) -> Told:
    odometry = VisualOdometry(tiny_model(**MAP, odometry=GRID_ODOMETRY).config)
    by_map = odometry.by_map
    assert isinstance(by_map, GridOdometry)
    generator = torch.Generator().manual_seed(0)
    window = walks.sample(training, generator)
    with (
        mock.patch.object(by_map, "moves", side_effect=by_map.moves) as moves,
        mock.patch.object(by_map, "walls", side_effect=by_map.walls) as walls,
    ):
        grid_loss(odometry, walks.maps, window, training, generator).backward()
    assert all(parameter.grad is not None for parameter in by_map.parameters())
    place, beside, *_ = moves.call_args.args
    poses = window.poses[:, PAST_ACTIONS:-1]
    # Walls are read at the same places, of all windows or of some.
    _, read_from, read_at, rows = walls.call_args.args
    some = slice(len(rows))
    for part, other in zip((poses, *place, window.rows), (read_from, *read_at, rows), strict=True):
        assert torch.equal(part[some], other)
    return Told(place, beside, poses, window.rows)


def test_what_moves_by_the_map_is_told_the_walls_that_are_where_it_looks() -> None:
    walks, on_grid, layouts = mazes()
    told = told_of(MapTraining(batch_size=50, length=6, grid_offset=0.0), walks)
    axes = ((1, 0), (0, 1), (-1, 0), (0, -1))
    for row, number in enumerate(told.rows.tolist()):
        for t in range(6):
            x, y, cos, sin = placed(on_grid[number, 0], told.poses[row, t]).tolist()
            quarter = round(math.atan2(sin, cos) / (math.pi / 2))
            ahead, left = axes[quarter % 4], axes[(quarter + 1) % 4]
            cell = math.floor(x), math.floor(y)
            for (forward, sideways), wall in zip(AROUND, told.walls[row, t].tolist(), strict=True):
                column = cell[0] + forward * ahead[0] + sideways * left[0]
                line = cell[1] + forward * ahead[1] + sideways * left[1]
                inside = 0 <= column < 5 and 0 <= line < 5
                assert wall == (layouts[number, line, column].item() if inside else 1)
            middle = x - cell[0] - 0.5, y - cell[1] - 0.5
            along, across = (middle[0] * axis[0] + middle[1] * axis[1] for axis in (ahead, left))
            assert told.place.along[row, t].item() == pytest.approx(along, abs=1e-4)
            assert told.place.across[row, t].item() == pytest.approx(across, abs=1e-4)
            off = math.remainder(math.atan2(sin, cos) - quarter * math.pi / 2, math.tau)
            assert told.place.angle[row, t].item() == pytest.approx(off, abs=1e-4)


def test_a_mistaken_grid_is_mistaken_alike_along_a_window_and_never_for_another_cell() -> None:
    walks, _, _ = mazes()
    exact = told_of(MapTraining(batch_size=600, length=6, grid_offset=0.0), walks)
    told = told_of(MapTraining(batch_size=600, length=6, grid_offset=0.04), walks)
    assert torch.equal(told.rows, exact.rows) and torch.equal(told.walls, exact.walls)
    assert torch.equal(told.place.axis, exact.place.axis)
    off = torch.stack([part - other for part, other in zip(told.place[:3], exact.place[:3], strict=True)], dim=-1)
    assert off.abs().max() < 0.3  # and not by a cell
    kept = (off.abs() > 1e-4).any(-1)  # the others would be in another cell
    assert 0.6 < kept.float().mean() < 0.99
    torch.testing.assert_close(off[kept].std(0), torch.tensor([0.04, 0.04, 0.02]), rtol=0.2, atol=0)
    angles = off[..., 2][kept.all(1)]
    torch.testing.assert_close(angles, angles[:, :1].expand_as(angles), rtol=0, atol=1e-4)


def test_maps_are_kept_with_their_mazes_and_where_walks_begin_in_them(store: Path) -> None:
    walks = map_walks(tiny_model(**MAP), store, 4, 10)
    window = walks.sample(MapTraining(batch_size=60, length=6), torch.Generator().manual_seed(0))
    walk = torch.div(window.rows, walks.maps.shape[1], rounding_mode="floor")
    recorded = torch.from_numpy(np.stack([open_store(store).read(seed, "train").pose for seed in range(4)]))
    assert set(walk.tolist()) == {0, 1, 2, 3} and (recorded[1:, 0] - recorded[0, 0]).abs().amax(1).min() > 0.5
    assert window.origins is not None and window.layouts is not None
    assert torch.equal(window.origins, recorded[walk, 0])
    assert window.layouts.shape == (60, 4, 4) and not window.layouts.any()


def test_walks_that_do_not_tell_of_their_maze_train_no_odometry_with_bearings() -> None:
    odometry = VisualOdometry(tiny_model(**MAP, odometry=GRID_ODOMETRY).config)
    with pytest.raises(ValueError, match="have no layout of their maze"):
        train_by_map(odometry, mazes(known=False)[0], MapTraining(steps=1, batch_size=4, length=6))


def test_a_grid_that_is_mistaken_by_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="grid_offset must be at least 0, got -1"):
        MapTraining(grid_offset=-1.0)


def made(options: list[str], out: Path) -> Checkpoint:
    main([*options, "--out", str(out)])
    return load_checkpoint(out)


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("in") / "planar.safetensors", tiny_model(**PLANAR))


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("in") / "mapped.safetensors", tiny_model(**MAP))


@pytest.fixture(scope="module")
def eyes(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odometry alone, without bearings."""
    path = tmp_path_factory.mktemp("in") / "eyes.safetensors"
    made(["--data", str(store), *EYES], path)
    return path


def parts_of(tensors: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine and mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def by_eye(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The odometry that looks at two frames beside each other."""
    own = parts_of(tensors, "odometry.")
    others = parts_of(own, "odometry.bearings.", "odometry.by_map.")
    return {name: tensor for name, tensor in own.items() if name not in others}


def test_the_command_trains_bearings_along_with_the_rest_and_they_are_taken_as_they_are(
    store: Path, planar: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "odometry.json"
    evaluation = ["--evaluate", str(figures), "--evaluation-steps", "10"]
    of = ["--checkpoint", str(planar)]
    first = made([*of, "--data", str(store), *EYES, *BEARINGS, *evaluation], tmp_path / "first")
    assert first.config["odometry"]["kind"] == "grid"
    assert parts_of(first.tensors, "odometry.bearings.")
    history = first.metadata["odometry"]
    assert history["steps"] == 2
    assert history["bearings"] == {"steps": 3, "num_frames": history["num_frames"], "training_seeds": [[0, 3]]}
    assert history["training_seeds"] == [[0, 3]]
    # Half the memory, but for what recursion multiplies.
    assert {tensor.dtype for tensor in parts_of(first.tensors, "odometry.bearings.").values()} == {torch.float16}
    recursive = parts_of(first.tensors, "odometry.recur.", "odometry.hidden.", "odometry.out")
    assert {tensor.dtype for tensor in recursive.values()} == {torch.float32}
    assert json.loads(figures.read_text())["training"]["bearings"]["steps"] == 3
    model = WorldModel.from_checkpoint(str(tmp_path / "first"))
    frames = torch.randint(0, 256, (1, 3, 16, 16, 3), dtype=torch.uint8)
    state = model.prefill(model.initial_state(1), frames, torch.zeros(1, 2, dtype=torch.int64))
    assert state.pending is not None and state.pending.odometry is not None
    assert state.pending.odometry[0, -1] == 1  # the grid is known
    again = made([*of, "--init", str(tmp_path / "first")], tmp_path / "again")
    assert again.config == first.config and again.metadata["odometry"] == history
    assert_same(again.tensors, first.tensors)


def test_bearings_are_kept_in_a_file_of_their_own_and_added_later(store: Path, planar: Path, tmp_path: Path) -> None:
    alone = made(["--data", str(store), *EYES, *BEARINGS], tmp_path / "alone")
    assert alone.config["odometry"]["kind"] == "grid" and all(name.startswith("odometry.") for name in alone.tensors)
    added = made(["--init", str(tmp_path / "alone"), "--checkpoint", str(planar)], tmp_path / "added")
    assert added.config["odometry"]["kind"] == "grid"
    assert_same(parts_of(added.tensors, "odometry."), alone.tensors)
    copied = made(["--init", str(tmp_path / "alone")], tmp_path / "copied")
    assert_same(copied.tensors, alone.tensors)
    # Eyes that are trained on keep bearings and what is known of them.
    on = made(["--init", str(tmp_path / "alone"), "--data", str(store), *EYES], tmp_path / "on")
    assert_same(*(parts_of(made.tensors, "odometry.bearings.") for made in (on, alone)))
    assert on.metadata["odometry"]["bearings"] == alone.metadata["odometry"]["bearings"]
    assert not torch.equal(on.tensors["odometry.recur.weight"], alone.tensors["odometry.recur.weight"])


def test_bearings_are_added_to_trained_eyes_which_stay_as_they_are(
    store: Path, planar: Path, eyes: Path, tmp_path: Path
) -> None:
    before = load_checkpoint(eyes)
    assert before.config["odometry"]["kind"] == "learned" and "bearings" not in before.metadata["odometry"]
    options = ["--init", str(eyes), "--data", str(store), "--training.steps", "0", *QUICK, *BEARINGS]
    for of in ([], ["--checkpoint", str(planar)]):
        after = made([*of, *options], tmp_path / "after")
        assert after.config["odometry"]["kind"] == "grid"
        assert_same(by_eye(after.tensors), before.tensors)
        history = after.metadata["odometry"]
        assert history["bearings"]["steps"] == 3
        assert (history["steps"], history["num_frames"]) == (2, before.metadata["odometry"]["num_frames"])


def test_what_moves_by_a_map_without_a_grid_is_trained_afresh_with_one(
    store: Path, mapped: Path, eyes: Path, tmp_path: Path
) -> None:
    of = ["--data", str(store), "--checkpoint", str(mapped)]
    first = made([*of, *EYES, *BY_MAP], tmp_path / "first")
    assert first.config["odometry"]["kind"] == "learned" and first.metadata["odometry"]["by_map"]["walks"] == 3
    options = [*of, "--init", str(tmp_path / "first"), "--training.steps", "0", *QUICK, *BEARINGS]
    by_map = [*BY_MAP, "--by-map.steps", "3", "--mapped-walks", "2"]
    second = made([*options, *by_map], tmp_path / "second")
    assert_same(by_eye(second.tensors), by_eye(first.tensors))
    assert "odometry.by_map.radius" in second.tensors and "odometry.by_map.radius" not in first.tensors
    # Nothing is left of what it was.
    without = [*of, "--init", str(eyes), "--training.steps", "0", *QUICK, *BEARINGS, *by_map]
    afresh = made(without, tmp_path / "afresh")
    assert_same(*(parts_of(made.tensors, "odometry.by_map.") for made in (second, afresh)))
    history = second.metadata["odometry"]
    assert (history["steps"], history["bearings"]["steps"]) == (2, 3)
    assert (history["by_map"]["steps"], history["by_map"]["walks"]) == (3, 2)
    again = made(["--checkpoint", str(mapped), "--init", str(tmp_path / "second")], tmp_path / "again")
    assert_same(again.tensors, second.tensors)
    # Trained on, it begins with what it was: maps alone leave eyes and bearings.
    on = [*of, "--init", str(tmp_path / "second"), "--training.steps", "0", *QUICK, *BY_MAP]
    third = made(on, tmp_path / "third")
    changed = {name for name, value in third.tensors.items() if not torch.equal(value, second.tensors[name])}
    assert changed and all(name.startswith("odometry.by_map.") for name in changed)
    assert third.metadata["odometry"]["bearings"] == history["bearings"]


def test_odometry_without_bearings_is_taken_as_it_is(planar: Path, eyes: Path, tmp_path: Path) -> None:
    before = load_checkpoint(eyes)
    taken = made(["--init", str(eyes), "--checkpoint", str(planar)], tmp_path / "out")
    assert taken.config["odometry"]["kind"] == "learned"
    assert_same(parts_of(taken.tensors, "odometry."), before.tensors)
    assert taken.metadata["odometry"] == before.metadata["odometry"]


def test_odometry_without_bearings_replaces_one_that_has_them(store: Path, eyes: Path, tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "in", tiny_model(**PLANAR, odometry=GRID_ODOMETRY))
    taken = made(["--init", str(eyes), "--checkpoint", str(source)], tmp_path / "taken")
    trained = made(["--data", str(store), "--checkpoint", str(source), *EYES], tmp_path / "trained")
    for out in (taken, trained):
        assert out.config["odometry"]["kind"] == "learned" and not parts_of(out.tensors, "odometry.bearings.")
    WorldModel.from_weights(trained.config, trained.tensors)


def test_odometry_without_bearings_is_taken_as_it_is_and_may_get_some(
    store: Path, planar: Path, tmp_path: Path
) -> None:
    model = tiny_model(**PLANAR, odometry=LEARNED_ODOMETRY)
    source = save_tiny_checkpoint(tmp_path / "in", model)
    taken = made(["--init", str(source), "--checkpoint", str(source)], tmp_path / "taken")
    options = ["--init", str(source), "--data", str(store), "--training.steps", "0", *QUICK, *BEARINGS]
    got = made(options, tmp_path / "got")
    assert taken.config["odometry"]["kind"] == "learned" and got.config["odometry"]["kind"] == "grid"
    for out in (taken, got):
        weights = by_eye(out.tensors)
        for name, value in weights.items():
            torch.testing.assert_close(value.float(), model.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_bearings_are_not_made_of_nothing(store: Path, planar: Path, eyes: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out"), "--checkpoint", str(planar)]
    with pytest.raises(SystemExit, match="does not take bearings, as the model's does; give --data"):
        main([*out, "--init", str(eyes), *BEARINGS])
    with pytest.raises(SystemExit, match=r"training\.steps is 0"):
        main([*out, "--data", str(store), "--init", str(eyes), "--training.steps", "0", *QUICK])
    assert not (tmp_path / "out").exists()


def test_a_model_without_odometry_begins_with_a_checkpoint_that_takes_bearings(tmp_path: Path) -> None:
    source = tiny_model(**PLANAR, odometry=GRID_ODOMETRY)
    model = tiny_model(seed=1, **PLANAR)
    load_initial_weights(model, str(save_tiny_checkpoint(tmp_path / "in", source)))
    weights = source.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
