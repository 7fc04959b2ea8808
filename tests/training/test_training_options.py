"""Options of a recipe that are off by default: a run with them goes on exactly, and wrong ones are one sentence."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.toy_store import make_toy_store
from training.loss_weights import LearnedWeights
from training.recipes import tiny
from training.run_state import checkpoints
from training.train import parse_arguments, train
from wm_gym.checkpoint import load_checkpoint

SIZES = {"model.width": 32, "model.head-dim": 16, "model.state-dim": 8, "stages.0.length": 6, "stages.1.length": 10}
FAST = ["--recipe", "tiny", "--device", "cpu", "--recipe.max-minutes", "0", "--recipe.steps", "8"]
FAST += ["--recipe.log-steps", "4", "--recipe.model.pose-size", "4", "--recipe.model.pose-kind", "planar"]
FAST += [text for name, size in SIZES.items() for text in (f"--recipe.{name}", str(size))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    make_toy_store(path, range(4))
    return path


def weights(store: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    train(parse_arguments([*FAST, "--data", str(store), "--out", str(out), *options]))
    return safetensors.torch.load_file(checkpoints(out / "checkpoints")[-1])


def test_a_run_with_all_options_goes_on_bit_for_bit(store: Path, tmp_path: Path) -> None:
    options = ["--recipe.carried-frames", "4", "--recipe.state-reconstruction", "0.5", "--recipe.attention-drop", "0.3"]
    options += ["--recipe.memory-replay", "0.4", "--recipe.replay-segments", "12", "--recipe.loss.learned-weights"]
    whole = weights(store, tmp_path / "whole", *options)
    weights(store, tmp_path / "parts", *options, "--stop-after-steps", "3")
    again = weights(store, tmp_path / "parts", *options)
    assert whole.keys() == again.keys()
    assert not [name for name in whole if not torch.equal(whole[name], again[name])]


OPTIONS = ["carried-frames 4", "attention-drop 0.5", "memory-replay 0.25", "loss.learned-weights"]


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_what_is_learned(store: Path, tmp_path: Path, option: str) -> None:
    without = weights(store, tmp_path / "without")
    given = weights(store, tmp_path / "with", *f"--recipe.{option}".split())
    assert any(not torch.equal(without[key], given[key]) for key in without)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learned_weights_move_ten_times_as_fast_and_stay_out_of_the_exported_model(
    store: Path, tmp_path: Path, optimizer: str
) -> None:
    options = ("--recipe.loss.learned-weights", "--recipe.optimizer", optimizer, "--recipe.warmup-steps", "0")
    kept = weights(store, tmp_path / "run", *options, "--stop-after-steps", "1")
    moved = kept["loss_weights.log_variances"] - LearnedWeights(tiny().loss).log_variances.detach()
    step = 10 * tiny().learning_rate  # a first step of Adam; the toy maze has rewards and no terminations
    assert moved.abs().tolist() == pytest.approx([step, step, 0.0], rel=0.01)
    exported = load_checkpoint(tmp_path / "run" / "model.safetensors").tensors
    assert exported.keys() == {name.removeprefix("model.") for name in kept if name.startswith("model.")}


@pytest.mark.slow
def test_two_processes_remember_segments_of_their_own(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "training.train", *FAST, "--data", str(store), "--out", str(tmp_path)]
    command += ["--recipe.memory-replay", "0.5", "--recipe.loss.learned-weights"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert process.returncode == 0, process.stderr
    kept = safetensors.torch.load_file(checkpoints(tmp_path / "checkpoints")[-1])
    first, second = (torch.stack([kept[f"replay.{rank}.{name}"] for name in ("seeds", "starts")]) for rank in (0, 1))
    assert kept["replay.0.counts"].tolist() == kept["replay.1.counts"].tolist() == [4 + 3 * 2, 10]
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_drop": 1.0}, "attention_drop must be"),
        ({"carried_frames": -1}, "must not be negative"),
        ({"state_reconstruction": 0.1}, "set carried_frames"),
        ({"memory_replay": 1.0}, "memory_replay must be"),
        ({"memory_replay": 0.1}, "of a batch of 4 is 0 segments"),
        ({"memory_replay": 0.9}, "of a batch of 4 is 4 segments"),
        ({"memory_replay": 0.5, "replay_segments": 7}, "of a batch of 8 is 4 segments, of 7"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny(), **changes)
