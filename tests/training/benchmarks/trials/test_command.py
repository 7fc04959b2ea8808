"""The trials from the command line to their files, in small; and that the ring can be recalled at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from training.benchmarks.trials import measure
from training.benchmarks.trials.__main__ import changes, main
from training.benchmarks.trials.measure import Scale, once, recall_of, record_data, trained
from training.benchmarks.trials.recipes import OPTIONS, baseline
from training.recipes import Recipe
from training.train import train
from wm_gym.checkpoint import load_checkpoint

SMALL = Scale(steps=2, data_frames=512, walks=3, context=20, frames=6, long_frames=10, refresh_steps=3)
GIVEN = ["--seeds", "1"]
GIVEN += [text for name, size in vars(SMALL).items() for text in (f"--scale.{name.replace('_', '-')}", str(size))]


TRIED = ("memory_replay", "learned_weights")


def test_the_command_tries_options_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "trials.json", tmp_path / "runs"
    command = ["--out", str(out), "--runs", str(folder), "--options", *TRIED, *GIVEN]
    with monkeypatch.context() as patch:
        patch.setattr(measure, "train", lambda run: train(dataclasses.replace(run, stop_after_steps=1)))
        with pytest.raises(SystemExit, match="Stopped; the same command goes on"):
            main(command)
    assert not (folder / "baseline_0" / "recall.json").exists(), "a run that was stopped is not measured"
    main(command)
    record = json.loads(out.read_text())
    assert list(record["runs"]) == ["baseline", *TRIED]
    assert record["changes"]["memory_replay"] == {"memory_replay.fraction": 0.25, "memory_replay.num_segments": 256}
    assert record["changes"]["learned_weights"] == {"learned_weights.enabled": True}
    assert {"never", "refreshed"} <= record["state_refresh"]["0"].keys()
    assert len(record["state_refresh"]["1"]["refreshed_per_frame"]) == SMALL.long_frames
    assert record["command"].startswith("python -m training.trials --out trials.json")
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert load_checkpoint(folder / "baseline_0" / "model.safetensors").metadata["steps"] == SMALL.steps


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert once(path, lambda: {"kept": 1}) == once(path, lambda: {"kept": 2}) == {"kept": 1}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_an_option_changes_nothing_but_itself(option: object) -> None:
    assert callable(option)
    plain = baseline(10, 0)
    changed = option(plain)
    assert isinstance(changed, Recipe)
    assert 1 <= len(changes(plain, changed)) <= 2


@pytest.mark.parametrize(
    "given", [["--seeds", "0"], ["--scale.walks", "0"], ["--scale.refresh-steps", "500"], ["--options", "x"]]
)
def test_sizes_that_cannot_be_meant_are_one_sentence(tmp_path: Path, given: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "trials.json"), "--runs", str(tmp_path), *given])
    assert stop.value.code


@pytest.mark.slow
def test_the_baseline_recalls_the_ring(tmp_path: Path) -> None:
    scale = Scale(walks=16)
    data, walks = record_data(tmp_path, scale)
    figures = recall_of(trained(tmp_path, "baseline", baseline(scale.steps, 0), data), walks, scale)
    assert np.mean(figures["kept"]) > np.mean(figures["cleared"]) + 3
