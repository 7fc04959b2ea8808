"""A training of odometry that is killed goes on exactly where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import PLANAR_POSE, save_tiny_checkpoint, tiny_model
from tests.toy_store import make_toy_store
from training.odometry import mapped_walks
from training.odometry.__main__ import main
from training.odometry.progress import PartProgress
from wm_gym.checkpoint import load_checkpoint
from wm_gym.nn.config import MapConfig

QUICK = ["--training.steps", "4", "--training.batch-size", "4", "--training.length", "9", "--device", "cpu"]
QUICK += ["--mapped-walks", "2", "--map-every", "12", "--by-map.steps", "4", "--by-map.batch-size", "4"]
QUICK += ["--by-map.length", "4"]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    make_toy_store(folder / "walks", range(6))
    model = tiny_model(pose=PLANAR_POSE, map=MapConfig(size=16, layer=1))
    checkpoint = save_tiny_checkpoint(folder / "in.safetensors", model)
    return [*QUICK, "--data", str(folder / "walks"), "--checkpoint", str(checkpoint)]


@pytest.mark.parametrize("dies_at", [2, 6])  # among the steps on frames, and among those by the map
def test_a_killed_training_goes_on_exactly(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    main([*command, "--out", str(tmp_path / "whole")])
    monkeypatch.setattr(PartProgress, "is_due", lambda self: True)
    original, steps = torch.optim.AdamW.step, 0

    def dies(optimizer: Any, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == dies_at:
            raise InterruptedError("killed")
        return original(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", dies)
    with pytest.raises(InterruptedError):
        main([*command, "--out", str(tmp_path / "killed")])
    assert not (tmp_path / "killed").exists()
    main([*command, "--out", str(tmp_path / "killed")])
    assert steps == dies_at + 8 - (dies_at - 1)  # nothing was done twice
    whole, killed = (load_checkpoint(tmp_path / name).tensors for name in ("whole", "killed"))
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
    assert not (tmp_path / "killed.training").exists()


def test_other_settings_do_not_go_on_with_what_was_kept(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(mapped_walks, "minimise", killed)
        main([*command, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="begun with other settings; give the same ones to go on"):
        main([*command, "--out", str(tmp_path / "out"), "--training.learning-rate", "1"])
    (tmp_path / "out.training" / "frames.safetensors").write_bytes(b"torn")
    with pytest.raises(SystemExit, match=r"is damaged .*; remove it to begin this part again"):
        main([*command, "--out", str(tmp_path / "out")])
