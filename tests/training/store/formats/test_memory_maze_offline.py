"""Memory Maze's published NPZ files: their actions, layouts and poses mean in the store what ours mean."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.toy_store import make_toy_store
from training.store.formats.memory_maze_offline import export_memory_maze, import_memory_maze
from training.store.tools import differing_part, problems
from wm_gym.seeds import FIRST_EVALUATION_SEED

STEPS = 30
NUM_TARGETS = 3


def published(seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Arrays with the published names, shapes and alignment."""
    rng = np.random.default_rng(seed)
    num_frames = steps + 1
    angle = rng.uniform(0, 2 * np.pi, num_frames)
    heading = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    position = rng.uniform(0, 9, (num_frames, 2))
    targets = rng.uniform(0, 9, (NUM_TARGETS, 2))
    current = np.sort(rng.integers(0, NUM_TARGETS, num_frames))
    action = np.eye(6, dtype=np.uint8)[rng.integers(0, 6, num_frames)]
    action[0] = 0
    right = np.stack([heading[:, 1], -heading[:, 0]], axis=1)
    offset = targets - position[:, None]
    vectors = np.stack([np.einsum("tkd,td->tk", offset, axis) for axis in (right, heading)], axis=-1)
    return {
        "image": rng.integers(0, 256, (num_frames, 64, 64, 3), np.uint8),
        "action": action,
        "reward": np.append(0, rng.integers(0, 2, steps)).astype(np.float32),
        "maze_layout": np.broadcast_to(rng.integers(0, 2, (9, 9), np.uint8), (num_frames, 9, 9)),
        "agent_pos": position,
        "agent_dir": heading,
        "targets_pos": np.broadcast_to(targets, (num_frames, NUM_TARGETS, 2)),
        "targets_vec": vectors,
        "target_pos": targets[current],
        "target_vec": vectors[np.arange(num_frames), current],
        "target_color": np.eye(3)[current],
    }


def write(folder: Path, seeds: range, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        np.savez_compressed(folder / f"trajectory-{seed:03d}.npz", **{**published(seed), **changes})
    return folder


def test_what_was_published_comes_back(tmp_path: Path) -> None:
    store = import_memory_maze(write(tmp_path / "files", range(3)), tmp_path / "store")
    assert store.seeds() == [0, 1, 2]
    assert list(problems(store)) == []
    result = export_memory_maze(store, tmp_path / "out")
    assert result.lossless and result.num_frames == 3 * (STEPS + 1)
    for seed in range(3):
        expected = published(seed)
        with np.load(tmp_path / f"out/train/episode_{seed:010d}.npz", allow_pickle=False) as content:
            assert set(content.files) == set(expected)
            for name, array in expected.items():
                assert content[name].shape == array.shape, name
                if name in ("image", "action", "reward", "maze_layout"):
                    np.testing.assert_array_equal(content[name], array)
                else:
                    np.testing.assert_allclose(content[name], array, atol=1e-5)
    again = import_memory_maze(tmp_path / "out/train", tmp_path / "again")
    left, right = store.read(1), again.read(1)
    assert left.attributes["file"] == "trajectory-001.npz"
    right.attributes["file"] = left.attributes["file"]
    assert differing_part(left, right) is None


def test_an_action_leads_to_the_next_frame(tmp_path: Path) -> None:
    episode = import_memory_maze(write(tmp_path / "files", range(1)), tmp_path / "store").read(0)
    expected = published(0)
    assert episode.num_frames == STEPS + 1
    np.testing.assert_array_equal(episode.actions, expected["action"][1:].argmax(axis=1))
    np.testing.assert_array_equal(episode.rewards, expected["reward"][1:])
    np.testing.assert_array_equal(episode.attributes["layout"], 1 - expected["maze_layout"][0])
    assert not episode.terminations.any()
    assert np.flatnonzero(episode.truncations).tolist() == [STEPS - 1]


def test_files_of_few_keys_are_enough(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    arrays = {name: published(0)[name] for name in ("image", "action", "reward")}
    np.savez(tmp_path / "files/a.npz", **arrays)
    episode = import_memory_maze(tmp_path / "files", tmp_path / "store").read(0)
    assert episode.pose.shape == (STEPS + 1, 0)
    assert set(episode.attributes) == {"policy", "file"}


def test_held_out_files_get_seeds_that_are_never_trained_on(tmp_path: Path) -> None:
    files = write(tmp_path / "files", range(2))
    store = import_memory_maze(files, tmp_path / "store", split="eval")
    assert store.seeds("eval") == [FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + 1]
    with pytest.raises(ValueError, match="never trained on"):
        import_memory_maze(files, tmp_path / "store", split="eval", first_seed=5)


def test_an_import_goes_on_where_it_stopped_and_takes_no_file_for_another(tmp_path: Path) -> None:
    files = write(tmp_path / "files", range(2))
    import_memory_maze(files, tmp_path / "store")
    write(files, range(2, 4))
    assert import_memory_maze(files, tmp_path / "store").seeds() == [0, 1, 2, 3]
    (files / "trajectory-000.npz").unlink()
    with pytest.raises(ValueError, match=r"Seed 0 of .* is trajectory-000\.npz, not trajectory-001\.npz"):
        import_memory_maze(files, tmp_path / "store")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.zeros((STEPS + 1, 6))}, "one-hot"),
        ({"action": np.zeros(STEPS + 1, np.int64)}, "one-hot"),
        ({"reward": np.zeros(STEPS, np.float32)}, "differ in length"),
        ({"maze_layout": np.eye(STEPS + 1)[:, :, None]}, "maze_layout in .* changes"),
        ({"image": np.array([{}] * (STEPS + 1), object)}, "allow_pickle"),
    ],
)
def test_other_contents_are_an_error_that_names_the_file(tmp_path: Path, changes: dict, message: str) -> None:
    files = write(tmp_path / "files", range(1), **changes)
    with pytest.raises(ValueError, match=message) as error:
        import_memory_maze(files, tmp_path / "store")
    assert "trajectory-000.npz" in str(error.value)
    assert not (tmp_path / "store").exists()


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    files = write(tmp_path / "files", range(2))
    file = files / "trajectory-001.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"trajectory-001\.npz is damaged"):
        import_memory_maze(files, tmp_path / "store")


def test_a_store_of_another_environment_is_not_exported(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[0])
    with pytest.raises(ValueError, match="has 6 actions"):
        export_memory_maze(store, tmp_path / "out")


@pytest.mark.real_env
def test_upstream_s_own_observables_become_what_our_environment_records(tmp_path: Path) -> None:
    pytest.importorskip("memory_maze")
    env = gym.make("wm_gym:wm_gym/MemoryMaze-9x9-v0")
    tasks = importlib.import_module("memory_maze.tasks")
    upstream = tasks.memory_maze_9x9(seed=3, global_observables=True)
    actions = np.random.default_rng(0).choice(6, 40, p=[0.05, 0.5, 0.15, 0.1, 0.1, 0.1])
    obs, info = env.reset(seed=3)
    frames, poses = [obs], [info["pose"]]
    rows = [{**upstream.reset().observation, "action": np.zeros(6, np.uint8), "reward": np.float32(0)}]
    for action in actions:
        obs, _, _, _, info = env.step(action)
        frames.append(obs)
        poses.append(info["pose"])
        step = upstream.step(action)
        rows.append({**step.observation, "action": np.eye(6, dtype=np.uint8)[action], "reward": step.reward})
    arrays: dict[str, Any] = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    (tmp_path / "files").mkdir()
    np.savez(tmp_path / "files/0.npz", **arrays)

    store = import_memory_maze(tmp_path / "files", tmp_path / "store")
    episode = store.read(0)
    np.testing.assert_array_equal(episode.frames, np.stack(frames))
    np.testing.assert_array_equal(episode.actions, actions)
    np.testing.assert_allclose(episode.pose, np.stack(poses), atol=1e-5)
    np.testing.assert_array_equal(episode.attributes["layout"], info["layout"])
    np.testing.assert_allclose(episode.attributes["targets"], info["targets"], atol=1e-5)
    assert episode.attributes["target_changes"][-1][1] == info["target_index"]
    export_memory_maze(store, tmp_path / "out")
    with np.load(tmp_path / "out/train/episode_0000000000.npz") as content:
        for name in ("targets_vec", "target_vec", "target_pos", "target_color", "agent_dir", "maze_layout"):
            np.testing.assert_allclose(content[name], arrays[name], atol=2e-3, err_msg=name)
    env.close()
