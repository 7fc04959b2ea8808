"""States in half of the bytes, measured against states in float32."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import save_tiny_checkpoint, save_tiny_clips, tiny_model
from training.benchmarks.state_dtype import StateDtypeConfig, compare, make_dreams, read_contexts, run


def tiny_config(folder: Path) -> StateDtypeConfig:
    checkpoint, clips = save_tiny_checkpoint(folder / "tiny.safetensors"), save_tiny_clips(folder / "clips.npz")
    return StateDtypeConfig(
        None, "cpu", str(checkpoint), str(clips), context_frames=6, dreams=4, steps=12, marks=(1, 10, 100)
    )


def test_rounded_states_change_a_dream_a_little_and_a_brighter_pixel_changes_it_too(tmp_path: Path) -> None:
    found = run(tiny_config(tmp_path))["against"]
    for pair in found.values():
        for parts in pair.values():
            assert list(parts) == ["1-1", "2-10", "11-12"]
            assert all(part["psnr_between"] < 100 for part in list(parts.values())[:2])
    ratios = {name: found["bfloat16"][name]["11-12"]["psnr_between"] for name in ("following", "free")}
    assert 40 < ratios["free"] < ratios["following"] < 100  # in a free dream the frames part too


def test_equal_dreams_are_equal(tmp_path: Path) -> None:
    config, model = tiny_config(tmp_path), tiny_model()
    with torch.no_grad():
        state = read_contexts(model, config)
        pair = [make_dreams(model, state, torch.arange(4), torch.float32, 1) for _ in range(2)]
        parts = compare(pair[0], pair[1], torch.zeros(5, 4, dtype=torch.int64), False, (5,))
    assert parts["1-5"]["psnr_between"] == 100 and parts["1-5"]["equal_rewards"] == 1
