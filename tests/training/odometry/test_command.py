"""Odometry learns from walks, goes into checkpoints, and its drift is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch

from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, VECTOR_POSE, save_tiny_checkpoint, tiny_model
from tests.toy_store import make_toy_store
from training.data.dataset import Batch
from training.odometry.__main__ import main
from training.odometry.drift import drift_figures
from training.odometry.learning import (
    ERROR_SCALE,
    LARGE_ERROR,
    OdometryTraining,
    looked_at_beside,
    odometry_loss,
    train_odometry,
)
from training.recording.rollouts import Rollouts, read_rollouts
from wm_gym.checkpoint import load_checkpoint
from wm_gym.codec import frames_to_model
from wm_gym.nn.config import WorldModelConfig
from wm_gym.odometry.visual import Looked, VisualOdometry
from wm_gym.poses import motion_between, moved
from wm_gym.world_model import WorldModel

PLANAR: dict[str, Any] = {"pose": PLANAR_POSE}
QUICK = ["--training.steps", "3", "--training.batch-size", "4", "--training.length", "9", "--device", "cpu"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks"
    make_toy_store(path, range(6))
    make_toy_store(path, range(7_000_000, 7_000_002), split="test")
    return path


def config() -> WorldModelConfig:
    return tiny_model(**PLANAR, odometry=LEARNED_ODOMETRY).config


def walks(store: Path) -> Rollouts:
    return read_rollouts(store, "test", None, 41)


class KnowsTheWay(VisualOdometry):
    """Odometry that is told the true motions, and adds an error of its own to each."""

    def __init__(self, true: torch.Tensor, error: tuple[float, float, float]) -> None:
        super().__init__(config())
        self._true, self._error = true, torch.tensor(error)

    def motions(self, state: torch.Tensor, looked: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        told = self._true[:, : looked.hidden.shape[1]] + self._error
        return torch.zeros_like(told), told, state[:, :6]


@pytest.mark.parametrize(
    ("error", "cells", "degrees"),
    [((0.0, 0.0, 0.0), 0.0, 0.0), ((0.01, 0.0, 0.0), 0.01, 0.0), ((0.0, 0.0, 0.01), 0.0, 0.573)],
)
def test_drift_is_the_distance_from_the_true_pose(store: Path, error: Any, cells: float, degrees: float) -> None:
    rollouts = walks(store)
    true = motion_between(rollouts.pose[:, :-1], rollouts.pose[:, 1:])
    figures = drift_figures(KnowsTheWay(true, error), rollouts, [1, 40])["frames"]
    assert figures["step"]["cells"]["median"] == pytest.approx(cells, abs=1e-3)
    assert figures["step"]["degrees"]["median"] == pytest.approx(degrees, abs=1e-2)
    assert figures["drift"]["1"]["cells"]["median"] == pytest.approx(cells, abs=1e-3)
    assert figures["drift"]["40"]["degrees"]["median"] == pytest.approx(40 * degrees, abs=0.1)


def test_a_prediction_that_was_put_right_costs_less_than_one_that_was_not() -> None:
    """A walk straight on at a steady pace: only the first prediction, before the pace is known, is off."""
    length = 9
    poses = torch.zeros(1, length, 4)
    poses[..., 0], poses[..., 2] = torch.arange(length) * 0.3, 1.0
    frames, actions = torch.zeros(1, length, 3, 16, 16), torch.zeros(1, length - 1, dtype=torch.int64)
    motions = torch.tensor([0.3, 0.0, 0.0]).repeat(1, length - 1, 1)
    nothing = torch.zeros(1, length - 1, 1)
    looked = Looked(nothing, nothing, motions.clone(), nothing, nothing)
    motions[:, 0] = 0.0
    losses = []
    for change in (0.3, 0.0):
        odometry, changes = VisualOdometry(config()), torch.zeros_like(motions)
        changes[:, 1, 0] = change
        with (
            mock.patch.object(odometry, "look", return_value=looked),
            mock.patch.object(odometry, "motions", return_value=(changes, motions, torch.zeros(1, 6))),
        ):
            losses.append(odometry_loss(odometry, frames, actions, poses).item())
    off = 2 * 0.3 / ERROR_SCALE - 0.5 - LARGE_ERROR / 2  # Huber's costs
    assert losses[0] == pytest.approx(off / (3 * (length - 1)), rel=1e-3)
    assert losses[1] > losses[0] + off / (3 * length)


class Corridors:
    """Walks of an agent that goes 0.25 cells forward or turns by 0.3 radians, and stands still before white walls."""

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        actions = torch.randint(0, 3, (batch_size, length - 1), generator=generator)
        wall = torch.rand(batch_size, length, generator=generator) < 0.5
        motions = torch.zeros(batch_size, length - 1, 3)
        motions[..., 0] = 0.25 * ((actions == 0) & ~wall[:, :-1])
        motions[..., 2] = 0.3 * (actions == 1) - 0.3 * (actions == 2)
        poses = [torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(batch_size, 4)]
        for motion in motions.unbind(1):
            poses.append(moved(poses[-1], motion))
        frames = (wall * 255).to(torch.uint8)[..., None, None, None].expand(-1, -1, 16, 16, 3)
        nothing = torch.zeros(batch_size, length - 1)
        return Batch(frames, actions, nothing, nothing.bool(), torch.stack(poses, 1))


@pytest.mark.parametrize("alone", [False, True])
def test_odometry_learns_to_move_and_to_stop_at_walls(alone: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        odometry = VisualOdometry(config())
    training = OdometryTraining(steps=400, batch_size=16, length=9, learning_rate=1e-2, spoilt_fraction=0.0)
    corridors: Any = Corridors()
    assert train_odometry(odometry, corridors, training) == 400
    walks = corridors.sample(64, 21, torch.Generator().manual_seed(1))
    start = odometry.initial_state(64, torch.device("cpu")), frames_to_model(walks.frames[:, :-1]), walks.actions
    beside = looked_at_beside(torch.full((64,), alone), 20)
    with torch.no_grad():
        poses, _ = odometry.follow(*start, walks.pose[:, 0], beside)
    off = motion_between(walks.pose[:, -1], poses[:, -1])
    assert off[:, :2].norm(dim=-1).median() < 0.25
    assert off[:, 2].abs().median() < 0.1


@pytest.mark.parametrize("wrong", [{"alone_fraction": 1.5}, {"dreamed_fraction": -0.1}, {"spoilt_fraction": 2.0}])
def test_fractions_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        OdometryTraining(**cast(Any, wrong))


def test_frames_looked_at_alone_are_those_after_the_first_few() -> None:
    beside = looked_at_beside(torch.tensor([False, True]), 7)
    assert beside.tolist() == [[True] * 7, [True] * 4 + [False] * 3]


def test_what_is_seen_of_a_motion_costs_nothing_where_a_frame_is_looked_at_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        odometry = VisualOdometry(config())
    corridors: Any = Corridors()
    walks = corridors.sample(8, 9, torch.Generator().manual_seed(1))
    given = frames_to_model(walks.frames), walks.actions, walks.pose
    for alone in (False, True):
        odometry.zero_grad()
        beside = looked_at_beside(torch.full((8,), alone), 8)
        beside[:, :4] = not alone
        odometry_loss(odometry, *given, beside).backward()
        gradient = odometry.seen.weight.grad
        assert gradient is not None
        assert bool(gradient.abs().max() > 0) == (not alone)


class Marked:
    """Dreams whose every frame is one grey level."""

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        batch = Corridors().sample(batch_size, length, generator)
        return batch.__class__(**{**vars(batch), "frames": torch.full_like(batch.frames, 77)})


def test_dreamed_windows_are_looked_at_alone_and_not_spoilt() -> None:
    odometry, seen = VisualOdometry(config()), []
    look = odometry.look
    corridors, dreams = cast(Any, Corridors()), cast(Any, Marked())

    def noted(state: Any, frames: Any, actions: Any, real: Any = None) -> Looked:
        seen.append((frames.clone(), real.clone()))
        return look(state, frames, actions, real)

    training = OdometryTraining(steps=1, batch_size=16, length=9, dreamed_fraction=0.25, spoilt_fraction=1.0)
    with mock.patch.object(odometry, "look", side_effect=noted):
        train_odometry(odometry, corridors, training, dreams)
    frames, real = seen[0]
    grey = frames_to_model(torch.full((1, 1, 1, 1), 77, dtype=torch.uint8)).item()
    dreamed = (frames == grey).flatten(1).all(1)
    assert dreamed.tolist() == [False] * 12 + [True] * 4
    alone = ~real.all(1)
    assert alone[dreamed].all() and alone[~dreamed].sum() == 6


def test_the_command_trains_on_dreams_of_the_model(store: Path, tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "in.safetensors", tiny_model(**PLANAR))
    out = tmp_path / "out.safetensors"
    dreams = ["--dreamed-walks", "3", "--dream-context", "20", "--dream-frames", "12"]
    main(["--data", str(store), "--checkpoint", str(source), "--out", str(out), *QUICK, *dreams])
    assert load_checkpoint(out).metadata["odometry"]["dreamed_walks"] == 3


def test_the_command_adds_odometry_and_leaves_all_else(store: Path, tmp_path: Path, capsys: Any) -> None:
    source = save_tiny_checkpoint(tmp_path / "in.safetensors", tiny_model(**PLANAR))
    out, figures = tmp_path / "out.safetensors", tmp_path / "odometry.json"
    options = ["--evaluate", str(figures), "--evaluation-steps", "10", "20"]
    main(["--data", str(store), "--checkpoint", str(source), "--out", str(out), *QUICK, *options])
    before, after = load_checkpoint(source), load_checkpoint(out)
    assert after.config == {**before.config, "odometry": vars(LEARNED_ODOMETRY)}
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name]), name
    assert {name.split(".")[0] for name in after.tensors.keys() - before.tensors.keys()} == {"odometry"}
    model = WorldModel.from_checkpoint(str(out))
    frames = torch.zeros(1, 3, 16, 16, 3, dtype=torch.uint8)
    state = model.prefill(model.initial_state(1), frames, torch.zeros(1, 2, dtype=torch.int64))
    assert state.pending is not None and state.pending.pose is not None
    record = json.loads(figures.read_text())
    assert record["pieces"] == 4 and record["training"]["steps"] == 3
    assert record["command"].startswith("python -m training.odometry --data")
    assert "20 steps: median" in capsys.readouterr().out


def test_odometry_alone_is_kept_in_a_file_and_added_later(store: Path, tmp_path: Path) -> None:
    alone, out = tmp_path / "alone.safetensors", tmp_path / "out.safetensors"
    main(["--data", str(store), "--out", str(alone), *QUICK])
    kept = load_checkpoint(alone)
    assert all(name.startswith("odometry.") for name in kept.tensors)
    source = save_tiny_checkpoint(tmp_path / "in.safetensors", tiny_model(**PLANAR))
    main(["--init", str(alone), "--checkpoint", str(source), "--out", str(out)])
    assert load_checkpoint(out).metadata["odometry"]["training_seeds"] == [[0, 5]]
    added = load_checkpoint(out).tensors
    assert all(torch.equal(added[name], tensor) for name, tensor in kept.tensors.items())
    assert len(added) == len(kept.tensors) + len(load_checkpoint(source).tensors)


def test_the_same_seed_trains_the_same_odometry(store: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        main(["--data", str(store), "--out", str(tmp_path / name), *QUICK])
        weights.append(load_checkpoint(tmp_path / name).tensors)
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to make odometry from"),
        (["--checkpoint", "VECTOR", "--data", "STORE"], "not conditioned on planar poses"),
        (["--init", "VECTOR", "--checkpoint", "PLANAR"], "has no odometry"),
        (["--data", "STORE", "--dreamed-walks", "2"], "needs the model that dreams them"),
        (["--data", "STORE", "--checkpoint", "PLANAR", "--dreamed-walks", "-2"], "must be at least 0, .* got -2,"),
        (
            ["--data", "STORE", "--checkpoint", "PLANAR", "--dreamed-walks", "2", "--dream-frames", "8"],
            "at least a window's 9, got 2, 400 and 8",
        ),
        (["--data", "STORE", "--checkpoint", "PLANAR", "--dreamed-walks", "9"], "has 6 walks, 9 are to be dreamed"),
        (["--data", "STORE", "--evaluate", "E", "--evaluation-steps", "60"], "a drift of 60 steps needs 61"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(store: Path, tmp_path: Path, options: list[str], message: str) -> None:
    paths = {
        "STORE": str(store),
        "E": str(tmp_path / "e.json"),
        "VECTOR": str(save_tiny_checkpoint(tmp_path / "vector.safetensors", tiny_model(pose=VECTOR_POSE))),
        "PLANAR": str(save_tiny_checkpoint(tmp_path / "planar.safetensors", tiny_model(**PLANAR))),
    }
    with pytest.raises(SystemExit, match=message):
        main(["--out", str(tmp_path / "out"), *[paths.get(option, option) for option in options], *QUICK])


def test_spoilt_windows_are_blurred_as_a_whole_and_others_left_alone() -> None:
    from training.odometry.learning import spoilt

    frames = frames_to_model(torch.randint(0, 256, (40, 2, 16, 16, 3), dtype=torch.uint8))
    changed = (spoilt(frames, 0.5, torch.Generator().manual_seed(0)) - frames).abs().amax((2, 3, 4)) > 0
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert changed[:, 0].sum() == 20
