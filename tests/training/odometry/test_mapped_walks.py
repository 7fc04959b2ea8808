"""What moves in dreams of a model with a map is learned from maps and walks: to stop at walls, and to be led back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, SMALL_MAP, save_tiny_checkpoint, tiny_model
from tests.toy_store import make_toy_store
from training.odometry.__main__ import main
from training.odometry.mapped_walks import MappedWalks, MapTraining, map_walks, train_by_map
from training.probes.memories import map_part
from wm_gym.checkpoint import load_checkpoint, save_checkpoint
from wm_gym.odometry.visual import PAST_ACTIONS, VisualOdometry

MAP: dict[str, Any] = {"pose": PLANAR_POSE, "hide_noise": True}
MAP |= {"map": SMALL_MAP}
STEP, WALL = 0.1, 1.5  # cells; walks go to the right, up to the wall


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks"
    make_toy_store(path, range(6))
    return path


def walks_up_to_a_wall(num_walks: int = 8, length: int = 40) -> MappedWalks:
    """Everything beyond x = 1.9 is written as wall; an agent comes no nearer than 0.4 cells, from different places."""
    cell = 0.3
    x = torch.arange(24).view(-1, 1).expand(24, 24) * cell
    place_map = torch.zeros(24, 24, 4)
    place_map[..., 0] = (x > 1.8).float()
    place_map[..., 3] = 1.0
    maps = place_map.flatten(0, 1).expand(num_walks, 1, -1, -1)
    start = torch.linspace(-1.5, 0.5, num_walks)[:, None]
    along = (start + STEP * torch.arange(length)).clamp(max=WALL)
    zeros = torch.zeros_like(along)
    poses = torch.stack([along, zeros, torch.ones_like(along), zeros], dim=-1)
    return MappedWalks(maps, [PAST_ACTIONS], poses, torch.ones(num_walks, length, dtype=torch.int64))


def test_odometry_learns_to_stop_at_what_is_written_as_a_wall_and_to_leave_it() -> None:
    torch.manual_seed(0)
    odometry = VisualOdometry(tiny_model(**MAP, odometry=LEARNED_ODOMETRY).config)
    walks = walks_up_to_a_wall()
    before = {name: value.clone() for name, value in odometry.state_dict().items()}
    assert train_by_map(odometry, walks, MapTraining(steps=700, batch_size=64, length=8)) == 700
    by_map = odometry.by_map
    assert by_map is not None
    place_map = walks.maps[:1, 0]
    ahead = torch.nn.functional.one_hot(torch.ones(1, PAST_ACTIONS + 1, dtype=torch.int64), 3).float().flatten(1)
    pose, recent = torch.tensor([[-0.5, 0.0, 1.0, 0.0]]), torch.tensor([[STEP, 0.0, 0.0, STEP, 0.0, 0.0]])
    with torch.no_grad():
        for t in range(60):
            pose, recent = by_map.step(place_map, pose, recent, ahead)
            if t == 9:
                assert pose[0, 0] == pytest.approx(0.5, abs=0.1)
        assert pose[0, 0] == pytest.approx(WALL, abs=0.1)
        inside = torch.tensor([[WALL + 0.12, 0.0, 1.0, 0.0]])
        led_out, _ = by_map.step(place_map, inside, torch.zeros(1, 6), ahead)
        assert led_out[0, 0] < inside[0, 0] - 0.02
    for name, value in odometry.state_dict().items():  # nothing else has changed
        assert torch.equal(value, before[name]) == (not name.startswith("by_map.")), name


def test_the_first_layers_make_the_same_map(store: Path) -> None:
    model = tiny_model(**MAP, block_sizes=(2, 1, 2))
    part = map_part(model)
    assert len(part.backbone.layers) == 2
    walks = map_walks(model, store, 3, 10)
    whole = map_walks_of_all_layers(model, store)
    assert walks.maps.float().abs().sum() > 0
    torch.testing.assert_close(walks.maps[:, 0].float(), whole, rtol=2e-3, atol=1e-3)


def map_walks_of_all_layers(model: Any, store: Path) -> torch.Tensor:
    from training.recording.rollouts import read_rollouts
    from wm_gym.poses import relative_to_first

    walks = read_rollouts(store, "train", [0, 1, 2], 30)
    poses = relative_to_first(walks.pose.float())
    with torch.no_grad():
        state = model.prefill(model.initial_state(3), walks.frames[:, :10], walks.actions[:, :9], poses[:, :10])
    assert state.place_map is not None
    return state.place_map


def test_windows_follow_their_map_and_end_with_their_walk() -> None:
    walks = walks_up_to_a_wall(4, 20)
    training = MapTraining(batch_size=200, length=5, ahead=1000)
    window = walks.sample(training, torch.Generator().manual_seed(0))
    assert window.poses.shape == (200, PAST_ACTIONS + 6, 4) and window.actions.shape == (200, PAST_ACTIONS + 5)
    assert set(window.rows.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="no window of 17"):
        walks.sample(MapTraining(length=17), torch.Generator())


def test_the_command_trains_what_moves_by_the_map_and_says_so(store: Path, tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "in.safetensors", tiny_model(**MAP))
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    quick = ["--training.steps", "2", "--training.batch-size", "4", "--training.length", "9", "--device", "cpu"]
    maps = ["--mapped-walks", "3", "--map-every", "10", "--by-map.steps", "4", "--by-map.length", "4"]
    main(["--data", str(store), "--checkpoint", str(source), "--out", str(out), *quick, *maps])
    made = load_checkpoint(out)
    assert made.metadata["odometry"]["by_map"] == {
        "steps": 4,
        "walks": 3,
        "map_every": 10,
        "training_seeds": [[0, 2]],
    }
    assert any(name.startswith("odometry.by_map.") for name in made.tensors)
    main(["--init", str(out), "--checkpoint", str(source), "--out", str(again)])
    assert all(torch.equal(value, load_checkpoint(again).tensors[name]) for name, value in made.tensors.items())


def odometry_by_eye(folder: Path) -> Path:
    """A checkpoint whose odometry knows no map."""
    model = tiny_model(pose=PLANAR_POSE, odometry=LEARNED_ODOMETRY)
    return save_tiny_checkpoint(folder / "by_eye.safetensors", model)


def test_what_moves_by_the_map_is_trained_alone_and_the_history_of_the_eyes_is_kept(
    store: Path, tmp_path: Path
) -> None:
    source = save_tiny_checkpoint(tmp_path / "in.safetensors", tiny_model(**MAP))
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    quick = ["--training.steps", "2", "--training.batch-size", "4", "--training.length", "9", "--device", "cpu"]
    maps = ["--map-every", "10", "--by-map.length", "4", "--mapped-walks"]
    of = ["--data", str(store), "--checkpoint", str(source)]
    main([*of, "--out", str(first), *quick, *maps, "1", "--by-map.steps", "1"])
    by_map = ["--training.steps", "0", *maps, "3", "--by-map.steps", "4", "--device", "cpu"]
    main([*of, "--init", str(first), "--out", str(second), *by_map])
    before, after = load_checkpoint(first), load_checkpoint(second)
    changed = {name for name, value in after.tensors.items() if not torch.equal(value, before.tensors[name])}
    assert changed and all(name.startswith("odometry.by_map.") for name in changed)
    history = after.metadata["odometry"]
    assert (history["steps"], history["num_frames"]) == (2, before.metadata["odometry"]["num_frames"])
    assert history["by_map"]["training_seeds"] == [[0, 2]]
    assert history["training_seeds"] == before.metadata["odometry"]["training_seeds"] == [[0, 5]]
    eyes = [*of, "--init", str(second), "--out", str(tmp_path / "third.safetensors"), *quick, "--by-map.steps", "0"]
    main(eyes)
    assert load_checkpoint(tmp_path / "third.safetensors").metadata["odometry"]["by_map"] == history["by_map"]


def test_training_without_steps_and_without_a_map_is_refused(store: Path, tmp_path: Path) -> None:
    source = save_tiny_checkpoint(tmp_path / "in.safetensors", tiny_model(pose=PLANAR_POSE))
    arguments = ["--data", str(store), "--checkpoint", str(source), "--out", str(tmp_path / "out.safetensors")]
    arguments += ["--training.steps", "0", "--device", "cpu"]
    with pytest.raises(SystemExit, match="give --init"):
        main(arguments)
    with pytest.raises(SystemExit, match=r"training\.steps is 0"):
        main([*arguments, "--init", str(odometry_by_eye(tmp_path))])


def test_walks_of_another_environment_make_no_maps(store: Path, tmp_path: Path) -> None:
    model = tiny_model(**MAP)
    save_checkpoint(
        source := tmp_path / "in.safetensors",
        config=model.config.to_dict(),
        tensors=model.state_dict(),
        observation_space=gym.spaces.Box(0, 255, (16, 16, 3), np.uint8),
        action_space=gym.spaces.Discrete(3),
        metadata={"name": "tiny", "env_id": "wm_gym/MemoryMaze-9x9-v0"},
    )
    arguments = ["--data", str(store), "--checkpoint", str(source), "--out", str(tmp_path / "out.safetensors")]
    arguments += ["--init", str(odometry_by_eye(tmp_path)), "--training.steps", "0", "--device", "cpu"]
    with pytest.raises(SystemExit, match="the model is of wm_gym/MemoryMaze-9x9-v0"):
        main(arguments)
    assert not (tmp_path / "out.safetensors").exists()


def test_odometry_without_a_map_is_no_odometry_of_a_model_with_one(store: Path, tmp_path: Path) -> None:
    old = odometry_by_eye(tmp_path)
    source = save_tiny_checkpoint(tmp_path / "in.safetensors", tiny_model(**MAP))
    with pytest.raises(SystemExit, match="does not move by a map"):
        main(["--init", str(old), "--checkpoint", str(source), "--out", str(tmp_path / "out.safetensors")])
    few = ["--data", str(store), "--mapped-walks", "7", "--device", "cpu", "--training.steps", "0"]
    few += ["--init", str(old)]
    with pytest.raises(SystemExit, match="has 6 walks, maps of 7"):
        main(["--checkpoint", str(source), "--out", str(tmp_path / "out.safetensors"), *few])


@pytest.mark.parametrize("wrong", [{"length": 0}, {"offset": -1.0}, {"kept_offset": 1.5}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MapTraining(**wrong)
