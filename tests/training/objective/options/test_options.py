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

from tests.paths import ROOT
from tests.toy_store import make_toy_store
from training.loop.run_state import checkpoints
from training.objective.options import EARLIER_FLAGS, Options
from training.objective.options.carried_states import CarriedStatesSettings
from training.objective.options.learned_weights import LearnedWeights
from training.objective.options.memory_replay import MemoryReplaySettings
from training.objective.options.stochastic_depth import StochasticDepthSettings
from training.recipes import Recipe, tiny
from training.train import parse_arguments, train
from wm_gym.checkpoint import load_checkpoint

SIZES = {
    "model.width": 32,
    "model.scan.head-dim": 16,
    "model.scan.state-dim": 8,
    "stages.0.length": 6,
    "stages.1.length": 10,
}
FAST = ["--recipe", "tiny", "--device", "cpu", "--recipe.max-minutes", "0", "--recipe.steps", "8"]
FAST += ["--recipe.log-steps", "4", "--recipe.model.pose.size", "4", "--recipe.model.pose.kind", "planar"]
ALL_OPTIONS = (
    "--recipe.options.carried-states.part-frames 4 --recipe.options.carried-states.reconstruction-weight 0.5",
    "--recipe.options.stochastic-depth.probability 0.3",
    "--recipe.options.memory-replay.fraction 0.4 --recipe.options.memory-replay.num-segments 12",
    "--recipe.options.learned-weights.enabled",
)
SINGLE_OPTIONS = (ALL_OPTIONS[0].partition(" --")[0], *ALL_OPTIONS[1:])
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
    options = [word for option in ALL_OPTIONS for word in option.split()]
    whole = weights(store, tmp_path / "whole", *options)
    weights(store, tmp_path / "parts", *options, "--stop-after-steps", "3")
    again = weights(store, tmp_path / "parts", *options)
    assert whole.keys() == again.keys()
    assert not [name for name in whole if not torch.equal(whole[name], again[name])]


@pytest.mark.parametrize("option", SINGLE_OPTIONS)
def test_each_option_changes_what_is_learned(store: Path, tmp_path: Path, option: str) -> None:
    without = weights(store, tmp_path / "without")
    given = weights(store, tmp_path / "with", *option.split())
    assert any(not torch.equal(without[key], given[key]) for key in without)


def test_flags_before_options_were_nested_still_work_with_a_warning() -> None:
    paths = ["--data", "store", "--out", "run"]
    earlier = ["--recipe.carried_frames=4", "--recipe.state-reconstruction", "0.5", "--recipe.attention-drop", "0.3"]
    earlier += ["--recipe.memory-replay", "0.4", "--recipe.replay-segments", "12", "--recipe.loss.learned-weights"]
    with pytest.warns(DeprecationWarning, match=r"--recipe.options.memory-replay.fraction"):
        before = parse_arguments([*FAST, *earlier, *paths])
    now = parse_arguments([*FAST, *(word for option in ALL_OPTIONS for word in option.split()), *paths])
    assert before.recipe == now.recipe
    assert isinstance(before.recipe, Recipe)
    assert before.recipe.options.active().keys() == vars(Options()).keys() - {"distilled_steps"}


def test_trainer_loss_and_run_state_name_no_option() -> None:
    sources = [ROOT / "training/train.py", *(ROOT / "training/loop").glob("*.py")]
    sources += [ROOT / "training/recipes.py", *(ROOT / "training/objective").glob("*.py")]
    # "self_context" and "own_generations" are the loss's own; what follows are names and words of the options.
    words = [*vars(Options()), *EARLIER_FLAGS, "replay", "carried", "reconstruct", "attention_drop", "learned_weight"]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in sources
        for word in words
        if word.replace("_", "-") in path.read_text().lower().replace("_", "-")
    ]
    assert len(sources) > 10 and not found, found


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learned_weights_move_ten_times_as_fast_and_stay_out_of_the_exported_model(
    store: Path, tmp_path: Path, optimizer: str
) -> None:
    options = (ALL_OPTIONS[3], "--recipe.optimizer", optimizer, "--recipe.warmup-steps", "0")
    kept = weights(store, tmp_path / "run", *options, "--stop-after-steps", "1")
    moved = kept["options.0.learned_weights.log_variances"] - LearnedWeights(tiny().loss).log_variances.detach()
    step = 10 * tiny().learning_rate  # a first step of Adam; the toy maze has rewards and no terminations
    assert moved.abs().tolist() == pytest.approx([step, step, 0.0], rel=0.01)
    exported = load_checkpoint(tmp_path / "run" / "model.safetensors").tensors
    assert exported.keys() == {name.removeprefix("model.") for name in kept if name.startswith("model.")}


@pytest.mark.slow
def test_two_processes_remember_segments_of_their_own(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "training.train", *FAST, "--data", str(store), "--out", str(tmp_path)]
    command += ["--recipe.options.memory-replay.fraction", "0.5", ALL_OPTIONS[3]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert process.returncode == 0, process.stderr
    kept = safetensors.torch.load_file(checkpoints(tmp_path / "checkpoints")[-1])
    ranks = [{key.split(".", 2)[2]: kept[key] for key in kept if key.startswith(f"options.{r}.")} for r in (0, 1)]
    first, second = (torch.stack([rank["memory_replay.seeds"], rank["memory_replay.starts"]]) for rank in ranks)
    assert [rank["memory_replay.counts"].tolist() for rank in ranks] == [[4 + 3 * 2, 10]] * 2
    assert torch.equal(*(rank["learned_weights.log_variances"] for rank in ranks))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stochastic_depth": StochasticDepthSettings(1.0)}, "stochastic_depth.probability must be"),
        ({"carried_states": CarriedStatesSettings(-1)}, "must not be negative"),
        ({"carried_states": CarriedStatesSettings(0, 0.1)}, r"set .part_frames"),
        ({"memory_replay": MemoryReplaySettings(1.0)}, "memory_replay.fraction must be"),
        ({"memory_replay": MemoryReplaySettings(0.1)}, "of a batch of 4 is 0 segments"),
        ({"memory_replay": MemoryReplaySettings(0.9)}, "of a batch of 4 is 4 segments"),
        ({"memory_replay": MemoryReplaySettings(0.5, 7)}, "of a batch of 8 is 4 segments, of 7"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny(), options=Options(**changes))
