import dataclasses
import json
import sys

import numpy as np
import pytest

from tests.tiny import save_maze_sized_checkpoint
from wm_gym.contexts import load_clips
from wm_gym.demo import Demo, run_demo

pytest.importorskip("imageio_ffmpeg")


@pytest.fixture
def config(tmp_path):
    checkpoint = str(save_maze_sized_checkpoint(tmp_path / "model.safetensors"))
    return Demo(out=tmp_path / "out", context=6, steps=9, checkpoint=checkpoint)


@pytest.fixture
def without_memory_maze(monkeypatch):
    monkeypatch.setitem(sys.modules, "memory_maze", None)


def check_files(config, report):
    assert sorted(path.name for path in config.out.iterdir()) == ["demo.json", "demo.mp4", "demo.png"]
    assert json.loads((config.out / "demo.json").read_text()) == report
    assert (config.out / "demo.mp4").stat().st_size > 1000
    assert (config.out / "demo.png").stat().st_size > 1000
    assert len(report["psnr"]) == len(report["psnr_copy_last"]) == report["steps"] == 9
    assert np.isfinite(report["psnr"]).all()
    assert report["fps_dream"] > 0
    assert report["checkpoint"] == config.checkpoint


def test_without_memory_maze_the_demo_runs_from_a_packaged_clip_and_says_so(config, without_memory_maze, capsys):
    report = run_demo(config)
    check_files(config, report)
    assert (report["seed"], report["source"], report["fps_real"]) == (7_100_000, "packaged clips", None)
    output = capsys.readouterr().out
    assert "using the packaged clips" in output
    assert "copy last (dB)" in output


def test_the_baseline_repeats_the_last_context_frame(config, without_memory_maze):
    frames = load_clips().frames[0].astype(float)
    error = np.square(frames[6:15] - frames[5]).mean((1, 2, 3))
    np.testing.assert_allclose(run_demo(config)["psnr_copy_last"], 10 * np.log10(255**2 / error), atol=1e-3)


def test_the_same_seed_gives_the_same_demo(config, without_memory_maze):
    reports = [run_demo(config) for _ in range(2)]
    assert reports[0]["psnr"] == reports[1]["psnr"]


def test_another_seed_takes_another_clip_and_says_which(config, without_memory_maze, capsys):
    report = run_demo(dataclasses.replace(config, seed=3))
    assert report["seed"] == 7_100_003
    assert "taking maze 7100003" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"context": 0}, ValueError),
        ({"steps": 0}, ValueError),
        ({"steps": 10_000}, ValueError),
        ({"checkpoint": "unknown"}, FileNotFoundError),
        ({"device": "cuda:99"}, ValueError),
    ],
)
def test_a_wrong_argument_is_a_clear_error_and_nothing_is_written(config, without_memory_maze, changes, error):
    with pytest.raises(error):
        run_demo(dataclasses.replace(config, **changes))
    assert not config.out.exists()


@pytest.mark.real_env
def test_the_dream_and_the_real_maze_take_the_same_actions(config, capsys):
    pytest.importorskip("memory_maze")
    report = run_demo(config)
    check_files(config, report)
    assert report["source"] == "wm_gym/MemoryMaze-9x9-v0"
    assert report["fps_real"] > 0
    assert len(report["rewards_real"]) == 9
    assert "packaged clips" not in capsys.readouterr().out


def test_a_demo_that_shall_write_once_needs_a_map(config, without_memory_maze):
    with pytest.raises(ValueError, match="needs a map"):
        run_demo(dataclasses.replace(config, write_once=0.2))
