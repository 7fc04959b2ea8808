"""LeRobotDataset v3.0: what goes out comes back; the files are laid out as LeRobot 0.4 reads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow.parquet as pq

from tests.toy_store import make_toy_store, toy_episode, toy_header
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store
from training.store.formats.common import METADATA_FILE
from training.store.formats.lerobot import export_lerobot, import_lerobot
from training.store.tools import differing_part


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    make_toy_store(tmp_path / "store", seeds=[7_000_003], split="test")
    return make_toy_store(tmp_path / "store", seeds=[2, 5, 6])


@pytest.mark.parametrize("options", [{}, {"images": "png"}, {"frames_per_file": 50}])
def test_a_lossless_export_comes_back_bit_for_bit(tmp_path: Path, store: EpisodeStore, options: dict) -> None:
    result = export_lerobot(store, tmp_path / "out", **options)
    assert result.lossless
    assert (result.num_episodes, result.num_frames) == (4, 164)
    num_files = 2 if "frames_per_file" in options else 1
    assert len(list((tmp_path / "out/data").rglob("*.parquet"))) == num_files
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == (0 if "images" in options else num_files)
    back = import_lerobot(tmp_path / "out", tmp_path / "back")
    assert back.header == store.header
    assert (back.seeds(), back.seeds("test")) == ([2, 5, 6], [7_000_003])
    for split, seed in [("train", 2), ("train", 5), ("train", 6), ("test", 7_000_003)]:
        assert differing_part(back.read(seed, split), store.read(seed, split)) is None


def test_a_lossy_export_says_so_in_result_metadata_and_imported_episodes(tmp_path: Path, store: EpisodeStore) -> None:
    result = export_lerobot(store, tmp_path / "out", lossless=False)
    assert not result.lossless and "LOSSY" in str(result)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())["features"]["observation.image"]["info"]
    assert (info["lossless"], info["video.pix_fmt"]) == (False, "yuv420p")
    assert info["psnr_db"] == pytest.approx(result.psnr, abs=1e-3)
    episode = import_lerobot(tmp_path / "out", tmp_path / "back").read(5)
    assert episode.attributes["lossy_source"]["psnr_db"] == info["psnr_db"]
    assert differing_part(episode, store.read(5)) == "frames"
    with pytest.raises(ValueError, match="PNG is lossless"):
        export_lerobot(store, tmp_path / "png", lossless=False, images="png")


def test_continuous_actions_and_a_missing_pose_come_back(tmp_path: Path) -> None:
    header = dataclasses.replace(toy_header(), action_space=gym.spaces.Box(-1, 1, (2,), np.float32))
    store = create_store(tmp_path / "store", header)
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    pose = np.zeros((41, 0), np.float32)
    EpisodeWriter(store).write(dataclasses.replace(toy_episode(0), actions=actions, pose=pose))
    export_lerobot(store, tmp_path / "out")
    back = import_lerobot(tmp_path / "out", tmp_path / "back")
    assert back.header == header
    assert differing_part(back.read(0), store.read(0)) is None


def test_the_layout_is_that_of_version_3(tmp_path: Path, store: EpisodeStore) -> None:
    export_lerobot(store, tmp_path / "out", fps=5)
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/wm_gym.json",
        "videos/observation.image/chunk-000/file-000.mp4",
    ]
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (4, 164, 5)
    assert info["splits"] == {"train": "0:3", "test": "3:4"}
    data = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert data.num_rows == 164
    scalar = {name for name, feature in info["features"].items() if feature["dtype"] != "video"}
    assert set(data.column_names) == scalar
    assert data["index"].to_pylist() == list(range(164))
    assert data["frame_index"].to_pylist() == [*range(41)] * 4
    assert data["timestamp"].to_pylist()[:3] == pytest.approx([0, 0.2, 0.4])
    assert data["action"].to_pylist()[:40] == toy_episode(2).actions.tolist()
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in episodes] == [0, 41, 82, 123]
    prefix = "videos/observation.image"
    assert episodes[1][f"{prefix}/from_timestamp"] == pytest.approx(41 / 5)
    assert episodes[0][f"{prefix}/to_timestamp"] == episodes[1][f"{prefix}/from_timestamp"]
    tasks = pq.read_schema(tmp_path / "out/meta/tasks.parquet")
    assert json.loads(tasks.metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_are_those_of_all_frames(tmp_path: Path, store: EpisodeStore) -> None:
    export_lerobot(store, tmp_path / "out")
    statistics = json.loads((tmp_path / "out/meta/stats.json").read_text())
    episodes = [store.read(seed) for seed in (2, 5, 6)] + [store.read(7_000_003, "test")]
    frames = np.concatenate([episode.frames for episode in episodes]) / 255
    pose = np.concatenate([episode.pose for episode in episodes]).astype(np.float64)
    image, state = statistics["observation.image"], statistics["observation.state"]
    assert np.shape(image["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(image["mean"]), frames.mean((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(image["std"]), frames.std((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(image["max"]), frames.max((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(image["min"]), frames.min((0, 1, 2)))
    np.testing.assert_allclose(state["mean"], pose.mean(0), atol=1e-9)
    np.testing.assert_allclose(state["std"], pose.std(0), atol=1e-6)
    assert image["count"] == state["count"] == [164]


def test_a_dataset_of_others_is_imported_without_the_last_actions(tmp_path: Path, store: EpisodeStore) -> None:
    export_lerobot(store, tmp_path / "out")
    (tmp_path / "out/meta" / METADATA_FILE).unlink()
    with pytest.raises(ValueError, match="name it with --env"):
        import_lerobot(tmp_path / "out", tmp_path / "back")
    back = import_lerobot(tmp_path / "out", tmp_path / "back", env_id="robot/Arm-v0", first_seed=10)
    assert back.seeds() == [10, 11, 12, 13]
    assert back.header.frame_shape == (16, 16, 3)
    assert back.header.action_space == gym.spaces.Discrete(3)
    episode, original = back.read(11), store.read(5)
    np.testing.assert_array_equal(episode.frames, original.frames)
    np.testing.assert_array_equal(episode.actions, original.actions)
    np.testing.assert_array_equal(episode.pose, original.pose)
    assert episode.attributes["lossy_source"] == {"format": "lerobot-v3.0", "lossless": False, "psnr_db": None}


def test_an_import_goes_on_where_it_stopped(tmp_path: Path, store: EpisodeStore) -> None:
    export_lerobot(store, tmp_path / "out", frames_per_file=50)
    video = sorted((tmp_path / "out").rglob("*.mp4"))[1]
    content = video.read_bytes()
    video.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"file-001\.mp4 is damaged"):
        import_lerobot(tmp_path / "out", tmp_path / "back")
    video.write_bytes(content)
    back = import_lerobot(tmp_path / "out", tmp_path / "back")
    assert (back.seeds(), back.seeds("test")) == ([2, 5, 6], [7_000_003])
    assert differing_part(back.read(6), store.read(6)) is None


def test_an_older_version_is_an_error(tmp_path: Path, store: EpisodeStore) -> None:
    export_lerobot(store, tmp_path / "out")
    info = tmp_path / "out/meta/info.json"
    info.write_text(info.read_text().replace('"v3.0"', '"v2.1"'))
    with pytest.raises(ValueError, match=r"LeRobotDataset v2\.1, this code reads v3\.0"):
        import_lerobot(tmp_path / "out", tmp_path / "back")
