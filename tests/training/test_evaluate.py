"""Evaluation of a tiny random model: figures with known answers, held-out seeds, agreement of fast and plain ways."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rounding import assert_same_dream
from tests.tiny import save_tiny_checkpoint, tiny_model
from tests.toy_store import TOY_ENV, make_toy_store
from training.evaluate import Arguments, dream, frame_figures, main
from training.evaluation.reward_head import detection_figures, head_figures
from training.recording.rollouts import check_held_out, read_rollouts, record_rollouts
from wm_gym.checkpoint import load_checkpoint, save_checkpoint
from wm_gym.codec import frames_to_model
from wm_gym.ops.step import frame_noise
from wm_gym.seeds import parse_seeds, seed_ranges

FIRST = 7_000_000
ARGUMENTS = Arguments(checkpoint="", out=Path("out.json"), context=6, frames=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    make_toy_store(path, range(FIRST, FIRST + 3), split="test")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "model.safetensors")


def exit_message(*options: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(option) for option in options])
    message = str(stop.value.code)
    assert "\n" not in message
    return message


def test_the_command_writes_figures_with_what_stands_behind_them(store: Path, checkpoint: Path, tmp_path: Path) -> None:
    out, strips = tmp_path / "figures.json", tmp_path / "strips"
    options = ["--checkpoint", checkpoint, "--data", store, "--context", 6, "--frames", 4, "--out", out]
    main([str(option) for option in [*options, "--strips", strips, "--device", "cpu", "--head-frames", 30]])
    figures = json.loads(out.read_text())
    assert figures["seeds"] == [FIRST, FIRST + 1, FIRST + 2]
    assert len(figures["frame"]["psnr_per_frame"]) == 4
    gap = figures["frame"]["psnr"] - figures["frame"]["psnr_copy_last"]
    assert figures["frame"]["psnr_gap"] == pytest.approx(gap, abs=0.002)
    assert figures["reward"]["from_noise"]["num_frames"] == figures["reward"]["on_frame"]["num_frames"] == 3 * 29
    assert figures["command"].startswith("python -m training.evaluate --checkpoint model.safetensors --data store")
    assert figures["hardware"]
    assert figures["date"]
    assert figures["packages"]["torch"] == torch.__version__
    assert sorted(path.name for path in strips.iterdir()) == ["best.png", "median.png", "worst.png"]


def test_recording_on_the_spot_gives_the_rollouts_of_a_store(store: Path) -> None:
    recorded = record_rollouts(TOY_ENV, "random", [FIRST, FIRST + 2], 20)
    read = read_rollouts(store, "test", [FIRST, FIRST + 2], 20)
    assert recorded.seeds == read.seeds
    for name in ("frames", "actions", "rewards", "pose"):
        assert torch.equal(getattr(recorded, name), getattr(read, name)), name


def test_a_dream_depends_on_its_maze_and_not_on_the_batch(store: Path) -> None:
    rollouts = read_rollouts(store, "test", None, 10)
    model = tiny_model()
    together, alone = dream(model, rollouts, ARGUMENTS, 3), dream(model, rollouts, ARGUMENTS, 1)
    assert together.shape == (3, 4, 16, 16, 3)
    assert_same_dream(together, alone)
    assert not torch.equal(together[0], together[1])


def test_rewards_from_noise_are_those_of_denoise_before_each_real_frame_is_taken_in(store: Path) -> None:
    rollouts = read_rollouts(store, "test", None, 12)
    model = tiny_model()
    keys = torch.tensor(rollouts.seeds) + 5
    state = model.prefill(model.initial_state(3), rollouts.frames[:, :1], rollouts.actions[:, :0])
    rewards = []
    with torch.no_grad():
        for t in range(1, 12):
            noise = frame_noise(keys, torch.full_like(keys, t - 1), (3, 16, 16))
            rewards.append(model.denoise(state, noise, torch.ones(3), rollouts.actions[:, t - 1]).reward)
            state = model.advance(state, rollouts.frames[:, t], rollouts.actions[:, t - 1])
    predicted = torch.stack(rewards, dim=1)
    assert predicted.unique().numel() == 2, "the model has to say both for this test to mean something"
    figures = head_figures(model, replace(rollouts, rewards=predicted), 12, noise_seed=5, batch_size=3)
    assert figures["from_noise"]["precision"] == figures["from_noise"]["recall"] == 1.0


def test_rewards_on_the_frame_are_those_of_reading_frame_by_frame(store: Path) -> None:
    rollouts = read_rollouts(store, "test", None, 12)
    model = tiny_model()
    state = model.prefill(model.initial_state(3), rollouts.frames[:, :1], rollouts.actions[:, :0])
    rewards = []
    with torch.no_grad():
        for t in range(1, 12):
            clean, action = frames_to_model(rollouts.frames[:, t]), rollouts.actions[:, t - 1]
            rewards.append(model.denoise(state, clean, torch.zeros(3), action).reward)
            state = model.advance(state, rollouts.frames[:, t], action)
    predicted = torch.stack(rewards, dim=1)
    assert predicted.unique().numel() == 2, "the model has to say both for this test to mean something"
    figures = head_figures(model, replace(rollouts, rewards=predicted), 12, noise_seed=5, batch_size=2)
    assert figures["on_frame"]["precision"] == figures["on_frame"]["recall"] == 1.0


def test_psnr_of_a_perfect_dream_is_that_of_rounding_and_copying_is_measured_beside_it() -> None:
    real = torch.zeros(2, 3, 4, 4, 3, dtype=torch.uint8)
    last = torch.full((2, 1, 4, 4, 3), 51, dtype=torch.uint8)  # a fifth of the range: 20 log10(5) = 13.979 dB
    figures = frame_figures(real, real, last)
    best = 10 * math.log10(255**2 * 12)
    assert figures["psnr"] == pytest.approx(best, abs=0.001)
    assert figures["psnr_copy_last_per_frame"] == [13.979] * 3
    assert figures["psnr_gap"] == pytest.approx(best - 13.979, abs=0.002)


def test_precision_and_recall_count_exact_hits() -> None:
    real = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0]])
    predicted = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0]])
    figures = detection_figures(predicted, real)
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0.6667, 0.6667, 0.6667)
    nothing = detection_figures(torch.zeros(1, 5), torch.zeros(1, 5))
    assert nothing["precision"] is nothing["recall"] is nothing["f1"] is None


def test_seeds_that_were_trained_on_are_refused(store: Path, checkpoint: Path, tmp_path: Path) -> None:
    contents = load_checkpoint(checkpoint)
    trained = tmp_path / "trained.safetensors"
    save_checkpoint(
        trained,
        config=contents.config,
        tensors=contents.tensors,
        observation_space=contents.observation_space,
        action_space=contents.action_space,
        metadata={"training_seeds": [[0, 99], [FIRST + 1, FIRST + 1]]},
    )
    message = exit_message("--checkpoint", trained, "--data", store, "--out", tmp_path / "x.json", "--context", 6)
    assert f"trained on seed {FIRST + 1}" in message
    assert not (tmp_path / "x.json").exists()


def test_seeds_for_training_are_refused_even_if_nobody_trained_on_them() -> None:
    with pytest.raises(ValueError, match="Seed 6999999 is for training"):
        check_held_out([FIRST - 1, FIRST], [])


def test_seed_ranges_cover_exactly_the_seeds() -> None:
    assert seed_ranges([7, 1, 3, 2, 9, 8]) == [[1, 3], [7, 9]]
    assert seed_ranges([]) == []


@pytest.mark.parametrize("text", ["", "5-3", "a-b", "1-2-3", "-4"])
def test_malformed_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"numbers and ranges|goes upward"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --data"),
        (["--env", TOY_ENV], "--seeds A-B"),
        (["--env", "nowhere/Nothing-v0", "--seeds", "7000000"], "nowhere/Nothing-v0"),
        (["--env", TOY_ENV, "--policy", "random", "--seeds", "17"], "is for training"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_sentence(checkpoint: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in exit_message(
        "--checkpoint", checkpoint, "--out", tmp_path / "x.json", "--device", "cpu", *options
    )


def test_data_of_another_environment_is_refused(store: Path, tmp_path: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other.safetensors", tiny_model(frame_height=32, frame_width=32))
    options = ("--checkpoint", other, "--data", store, "--out", tmp_path / "x.json", "--context", 6, "--frames", 4)
    assert "have spaces" in exit_message(*options)


def test_rollouts_that_are_too_short_are_refused(store: Path) -> None:
    with pytest.raises(ValueError, match=f"seed {FIRST} has 41 frames; 42 are needed"):
        read_rollouts(store, "test", None, 42)
    assert read_rollouts(store, "test", None, 41).frames.dtype == torch.uint8
    assert np.isfinite(read_rollouts(store, "test", [FIRST], 41).pose.numpy()).all()
