"""`training.evaluate` with a protocol, from the command line to its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import LEARNED_ODOMETRY, PLANAR_POSE, VECTOR_POSE, save_tiny_checkpoint, tiny_model
from tests.toy_store import TOY_ENV, toy_episode, toy_header
from training.evaluate import main
from training.evaluation.pictures import main as draw
from training.store.episode_store import EpisodeWriter, create_store
from wm_gym.checkpoint import load_checkpoint, save_checkpoint

FIRST = 7_000_000
SEEDS = f"{FIRST}-{FIRST + 2}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks"
    writer = EpisodeWriter(create_store(path, replace(toy_header(), max_episode_steps=40)), "test")
    for seed in range(FIRST, FIRST + 3):
        writer.write(toy_episode(seed))
    return path


def run(tmp_path: Path, store: Path, checkpoint: Path, *options: str) -> Path:
    out = tmp_path / "recall.json"
    given = ["--env", TOY_ENV, "--policy", "random", "--seeds", SEEDS, "--device", "cpu", "--rollouts", str(store)]
    main(["--checkpoint", str(checkpoint), "--context", "20", "--out", str(out), *given, *options])
    return out


def refusal(tmp_path: Path, store: Path, checkpoint: Path, *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, store, checkpoint, *options)
    message = str(stop.value.code)
    assert "\n" not in message
    return message


def test_reasoning_by_action_writes_figures_plots_and_strips(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors")
    out = run(tmp_path, store, checkpoint, "--protocol", "reasoning", "--frames", "12", "--batch-size", "2")
    record = json.loads(out.read_text())
    psnr = record["columns"]["psnr"]
    assert list(psnr) == ["kept", "cleared", "copy_last", "copy_nearest", "kept_minus_cleared"]
    difference = np.array(psnr["kept"]["per_maze"]) - np.array(psnr["cleared"]["per_maze"])
    assert psnr["kept_minus_cleared"]["per_maze"] == pytest.approx(difference, abs=2e-4)
    assert len(psnr["kept"]["per_frame"]) == 12
    assert psnr["kept"]["all"]["low"] <= psnr["kept"]["all"]["value"] <= psnr["kept"]["all"]["high"]
    assert psnr["kept"]["seen"]["num_frames"] + psnr["kept"]["unseen"]["num_frames"] == 36
    assert "ssim" in record["columns"]
    assert "64x64" in record["metrics"]["lpips"]["not_measured"]
    assert (record["protocol"], record["conditioning"], record["seeds"][0]) == ("reasoning", "action", FIRST)
    assert record["command"].startswith("python -m training.evaluate --checkpoint model.safetensors")
    strips = sorted(path.name for path in (tmp_path / "recall_strips").iterdir())
    assert strips == [f"{name}_{memory}.png" for name in ("best", "median", "worst") for memory in ("cleared", "kept")]
    table = capsys.readouterr().out
    assert "copy_nearest" in table and "lpips: not measured" in table
    plot = tmp_path / "recall.png"
    plot.unlink()
    draw([str(out)])
    assert plot.stat().st_size > 10_000


def test_retrieval_by_pose_goes_back_through_what_was_seen(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", tiny_model(pose=VECTOR_POSE))
    options = ("--protocol", "retrieval", "--conditioning", "pose", "--frames", "20", "--memory", "kept")
    record = json.loads(run(tmp_path, store, checkpoint, *options).read_text())
    assert record["seen_fraction"] == 1.0
    assert list(record["columns"]["psnr"]) == ["kept", "copy_last"]  # a copy of the nearest would be the answer itself
    assert record["columns"]["psnr"]["kept"]["unseen"]["num_frames"] == 0


def test_a_dream_that_is_measured_twice_is_the_same(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors")
    options = ("--protocol", "reasoning", "--frames", "4", "--memory", "kept")
    first, again = (
        json.loads(run(tmp_path, store, checkpoint, *options, "--batch-size", size).read_text())["columns"]
        for size in ("3", "3")
    )
    assert first == again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "reasoning", "--conditioning", "pose"], "not conditioned on poses"),
        (["--protocol", "retrieval"], "'random' does not"),
        (["--protocol", "reasoning", "--data", "somewhere"], "leave out --data"),
        (["--protocol", "reasoning", "--frames", "100"], "walks of 41 frames, and 120 are needed"),
        (["--protocol", "reasoning", "--seeds", "17-18"], "is for training"),
        (["--protocol", "reasoning", "--seen-angle", "0"], "must be positive"),
        (["--protocol", "reasoning", "--memory", "kept", "kept"], "each once"),
        (["--protocol", "reasoning", "--memory"], "memory is empty"),
        (["--protocol", "reasoning", "--workers", "-1"], "at least 0"),
        (["--protocol", "reasoning", "--frames", "0"], "at least 1"),
        (["--protocol", "reasoning", "--refresh-steps", "-1"], "at least 0"),
        (["--protocol", "reasoning", "--refresh-frames", "4"], "refresh_frames needs refresh_steps"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(store: Path, tmp_path: Path, options: list[str], message: str) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors")
    assert message in refusal(tmp_path, store, checkpoint, *options)


def test_a_model_that_needs_poses_is_not_measured_without(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", tiny_model(pose=VECTOR_POSE))
    assert "take --conditioning pose" in refusal(tmp_path, store, checkpoint, "--protocol", "reasoning")


def test_a_model_with_odometry_is_measured_both_ways(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(pose=PLANAR_POSE, odometry=LEARNED_ODOMETRY)
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors", model)
    options = ("--protocol", "reasoning", "--frames", "4", "--memory", "kept")
    action, pose = (
        json.loads(run(tmp_path, store, checkpoint, *options, "--conditioning", told).read_text())
        for told in ("action", "pose")
    )
    assert (action["conditioning"], pose["conditioning"]) == ("action", "pose")
    assert action["columns"]["psnr"]["copy_last"] == pose["columns"]["psnr"]["copy_last"]
    assert action["columns"]["psnr"]["kept"] != pose["columns"]["psnr"]["kept"]
    drift = action["pose_drift"]["by_steps"]
    assert list(drift) == ["kept"] and list(drift["kept"]) == ["0", "1"]
    assert 0 < drift["kept"]["1"]["cells"]["median"] <= drift["kept"]["1"]["cells"]["p90"]
    assert "pose_drift" not in pose
    printed = capsys.readouterr().out
    assert printed.count("memory kept) after steps 0: ") == 1
    before = (tmp_path / "recall.png").stat().st_size
    (tmp_path / "recall.json").write_text(json.dumps(action))
    draw([str(tmp_path / "recall.json")])
    assert (tmp_path / "recall.png").stat().st_size > before, "a row more"


def test_memories_are_refreshed_when_asked_and_the_record_says_so(store: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model.safetensors")
    options = ("--protocol", "reasoning", "--frames", "8", "--memory", "kept")
    without, refreshed = (
        json.loads(run(tmp_path, store, checkpoint, *options, *given).read_text())
        for given in ((), ("--refresh-steps", "3", "--refresh-frames", "5"))
    )
    assert (without["refresh_steps"], refreshed["refresh_steps"]) == (0, 3)
    assert refreshed["definitions"]["refreshed"] == "every 3 frames memory is made anew from the newest 5"
    before, after = (record["columns"]["psnr"]["kept"]["per_frame"] for record in (without, refreshed))
    assert before[:3] == after[:3] and before[3:] != after[3:]


def test_seeds_that_were_trained_on_are_refused_before_anything_is_recorded(store: Path, tmp_path: Path) -> None:
    contents = load_checkpoint(save_tiny_checkpoint(tmp_path / "model.safetensors"))
    trained = tmp_path / "trained.safetensors"
    save_checkpoint(
        trained,
        config=contents.config,
        tensors=contents.tensors,
        observation_space=contents.observation_space,
        action_space=contents.action_space,
        metadata={"training_seeds": [[FIRST + 1, FIRST + 1]]},
    )
    options = ("--protocol", "reasoning", "--rollouts", str(tmp_path / "new"))
    assert f"trained on seed {FIRST + 1}" in refusal(tmp_path, store, trained, *options)
    assert not (tmp_path / "new").exists()


def test_walks_of_other_spaces_are_refused(store: Path, tmp_path: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other.safetensors", tiny_model(frame_height=32, frame_width=32))
    assert "have spaces" in refusal(tmp_path, store, other, "--protocol", "reasoning")


def test_drawing_what_is_no_record_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"error: .*x\.json cannot be drawn"):
        draw([str(tmp_path / "x.json")])
