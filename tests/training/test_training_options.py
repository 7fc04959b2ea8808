"""Options of a recipe that are off by default: a run with them goes on exactly, and wrong ones are one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.toy_store import make_toy_store
from training.recipes import tiny
from training.run_state import checkpoints
from training.train import parse_arguments, train

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
    whole = weights(store, tmp_path / "whole", *options)
    weights(store, tmp_path / "parts", *options, "--stop-after-steps", "3")
    again = weights(store, tmp_path / "parts", *options)
    assert whole.keys() == again.keys()
    assert not [name for name in whole if not torch.equal(whole[name], again[name])]


@pytest.mark.parametrize("option", ["carried-frames 4", "attention-drop 0.5"])
def test_each_option_changes_what_is_learned(store: Path, tmp_path: Path, option: str) -> None:
    name, value = option.split()
    without = weights(store, tmp_path / "without")
    given = weights(store, tmp_path / "with", f"--recipe.{name}", value)
    assert any(not torch.equal(without[key], given[key]) for key in without)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_drop": 1.0}, "attention_drop must be"),
        ({"carried_frames": -1}, "must not be negative"),
        ({"state_reconstruction": 0.1}, "set carried_frames"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        type(tiny())(**vars(tiny()) | changes)
