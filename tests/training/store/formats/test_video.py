"""Plain mp4 + npz: what goes out comes back, and a lossy export says so."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests.toy_store import make_toy_store, toy_episode, toy_header
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store
from training.store.formats.common import SquaredError
from training.store.formats.video import decode_video, export_mp4, import_mp4
from training.store.tools import differing_part


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    make_toy_store(tmp_path / "store", seeds=[7_000_000], split="eval")
    return make_toy_store(tmp_path / "store", seeds=[2, 5])


def test_a_lossless_export_comes_back_bit_for_bit(tmp_path: Path, store: EpisodeStore) -> None:
    result = export_mp4(store, tmp_path / "out")
    assert result.lossless
    assert (result.num_episodes, result.num_frames) == (3, 123)
    back = import_mp4(tmp_path / "out", tmp_path / "back")
    assert back.header == store.header
    assert (back.seeds(), back.seeds("eval")) == ([2, 5], [7_000_000])
    for split, seed in [("train", 2), ("train", 5), ("eval", 7_000_000)]:
        assert differing_part(back.read(seed, split), store.read(seed, split)) is None


def test_a_lossy_export_says_so_in_result_metadata_and_imported_episodes(tmp_path: Path, store: EpisodeStore) -> None:
    result = export_mp4(store, tmp_path / "out", lossless=False)
    assert not result.lossless
    assert "LOSSY" in str(result) and f"{result.psnr:.1f} dB" in str(result)
    metadata = json.loads((tmp_path / "out/wm_gym.json").read_text())
    assert metadata["frames"] == {"lossless": False, "psnr_db": pytest.approx(result.psnr, abs=1e-3)}
    episode = import_mp4(tmp_path / "out", tmp_path / "back").read(2)
    assert episode.attributes["lossy_source"]["psnr_db"] == pytest.approx(result.psnr, abs=1e-3)
    original = store.read(2)
    assert differing_part(episode, original) == "frames"
    error = SquaredError()
    error.add(original.frames, episode.frames)
    assert 20 < error.psnr < 60
    without_frames = dataclasses.replace(episode, frames=original.frames, attributes=original.attributes)
    assert differing_part(without_frames, original) is None


def test_noise_is_lossless_too(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", toy_header())
    noise = np.random.default_rng(0).integers(0, 256, (41, 16, 16, 3), np.uint8)
    EpisodeWriter(store).write(dataclasses.replace(toy_episode(0), frames=noise))
    assert export_mp4(store, tmp_path / "out").lossless
    frames = decode_video(tmp_path / "out/train/episode_0000000000.mp4", (16, 16, 3))
    np.testing.assert_array_equal(np.stack(list(frames)), noise)


def test_psnr_is_that_of_all_pixels_together() -> None:
    error = SquaredError()
    assert math.isinf(error.psnr)
    error.add(np.full((1, 2, 2, 3), 100, np.uint8), np.full((1, 2, 2, 3), 110, np.uint8))
    error.add(np.zeros((3, 2, 2, 3), np.uint8), np.zeros((3, 2, 2, 3), np.uint8))
    assert error.psnr == pytest.approx(10 * math.log10(255**2 / 25))
    with pytest.raises(RuntimeError, match="came back"):
        error.add(np.zeros((3, 2, 2, 3), np.uint8), np.zeros((2, 2, 2, 3), np.uint8))


def test_a_damaged_file_is_named_and_nothing_half_written_stays(tmp_path: Path, store: EpisodeStore) -> None:
    export_mp4(store, tmp_path / "out")
    (tmp_path / "out/train/episode_0000000005.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"episode_0000000005\.mp4 is damaged"):
        import_mp4(tmp_path / "out", tmp_path / "back")
    npz = tmp_path / "out/train/episode_0000000002.npz"
    npz.write_bytes(npz.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"episode_0000000002\.npz is damaged"):
        import_mp4(tmp_path / "out", tmp_path / "other")
    (store.episode_path(5) / "rewards/c/0").unlink()
    with pytest.raises(ValueError, match="episode_0000000005 is damaged"):
        export_mp4(store, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not list(tmp_path.glob(".*"))


def test_frames_that_a_video_cannot_hold_are_refused(tmp_path: Path) -> None:
    for shape, lossless, message in [((16, 16, 1), True, "RGB"), ((15, 16, 3), False, "even size")]:
        space = gym.spaces.Box(0, 255, shape, np.uint8)
        store = create_store(tmp_path / message, dataclasses.replace(toy_header(), observation_space=space))
        EpisodeWriter(store).write(dataclasses.replace(toy_episode(0), frames=np.zeros((41, *shape), np.uint8)))
        with pytest.raises(ValueError, match=message):
            export_mp4(store, tmp_path / "out", lossless)
    store = create_store(tmp_path / "even size", store.header)
    assert export_mp4(store, tmp_path / "out").lossless  # odd sizes are no matter in RGB
