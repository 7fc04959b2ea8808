"""Dreams into the unknown and back: rows, what they are compared with, and from the command line to the files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import TINY_MAP, save_tiny_checkpoint, tiny_model_with_odometry
from tests.toy_store import TOY_ENV, make_toy_store
from training.evaluate import main
from training.evaluation.frame_reader import FrameReader, frechet_distance, load_frame_reader, save_reader
from training.evaluation.imagination import returning, with_context_of
from training.evaluation.imagination_measures import gradient_energy, row_figures
from training.evaluation.imagination_rows import parse_row
from training.recording.rollouts import Rollouts, read_rollouts
from wm_gym.poses import motion_between

FIRST, CONTEXT, STEPS = 7_000_000, 6, 54


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks"
    make_toy_store(path, range(FIRST, FIRST + 4), max_episode_steps=CONTEXT + STEPS - 1, split="test")
    return path


@pytest.fixture(scope="module")
def walks(store: Path) -> Rollouts:
    return read_rollouts(store, "test", None, CONTEXT + STEPS)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader") / "reader.safetensors"
    torch.manual_seed(0)
    save_reader(FrameReader(3), path)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none:1", (0, 0.0, 1)), ("all:4", (1, 0.0, 4)), ("once:2", (0, 0.2, 2)), ("once0.05:1", (0, 0.05, 1))],
)
def test_rows_are_read(text: str, expected: tuple[int, float, int]) -> None:
    row = parse_row(text)
    assert (row.feedback_interval, row.write_once, row.num_denoising_steps) == expected


@pytest.mark.parametrize("text", ["once", "some:1", "none:0", "once-1:1"])
def test_what_is_no_row_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="A row is given as FEEDBACK:STEPS"):
        parse_row(text)


def test_the_way_back_is_the_way_there_in_reverse(walks: Rollouts) -> None:
    both, length = returning(walks), CONTEXT + STEPS
    assert torch.equal(both.frames[:, length:], walks.frames[:, :-1].flip(1))
    assert torch.equal(both.pose[:, length:], walks.pose[:, :-1].flip(1))
    assert both.actions.shape[1] == both.frames.shape[1] - 1


def test_the_context_of_another_maze_ends_where_the_walk_goes_on(walks: Rollouts) -> None:
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(4, CONTEXT + STEPS, generator=generator) * 6
    pose = torch.cat(
        [torch.rand(4, CONTEXT + STEPS, 2, generator=generator), angle.cos()[..., None], angle.sin()[..., None]], -1
    )
    ours, others = walks, dataclasses.replace(walks, frames=walks.frames.flip(0), pose=pose)
    mixed = with_context_of(others, ours, CONTEXT)
    assert torch.equal(mixed.frames[:, :CONTEXT], others.frames[:, :CONTEXT])
    assert torch.equal(mixed.pose[:, CONTEXT:], ours.pose[:, CONTEXT:])
    torch.testing.assert_close(mixed.pose[:, CONTEXT - 1], ours.pose[:, CONTEXT - 1])
    motions = [motion_between(each[:, 0], each[:, CONTEXT - 1]) for each in (mixed.pose, others.pose)]
    torch.testing.assert_close(*motions, atol=1e-4, rtol=1e-4)


def test_the_frechet_distance_of_normal_distributions() -> None:
    mean, scale = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    assert frechet_distance((mean, scale), (mean, scale)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance((mean, scale), (mean + 2, 4 * scale)) == pytest.approx(3 * 4 + 3 * (2 - 1) ** 2)


def test_a_blurred_frame_has_less_gradient_energy() -> None:
    sharp = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16, 3), dtype=np.uint8)
    blurred = ((sharp.astype(float) + np.roll(sharp, 1, 2)) / 2).astype(np.uint8)
    assert gradient_energy(blurred)[0, 0] < 0.9 * gradient_energy(sharp)[0, 0]
    assert gradient_energy(np.full_like(sharp, 7))[0, 0] == 0


def test_a_missing_reader_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m training\.evaluation\.frame_reader"):
        load_frame_reader(tmp_path / "none.safetensors")


def test_the_command_writes_figures_plot_and_strips(
    store: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model_with_odometry(**TINY_MAP, feedback_interval=0)
    checkpoint, out = save_tiny_checkpoint(tmp_path / "model.safetensors", model), tmp_path / "imagination.json"
    given = ["--env", TOY_ENV, "--policy", "random", "--seeds", f"{FIRST}-{FIRST + 3}", "--rollouts", str(store)]
    given += [
        "--protocol",
        "imagination",
        "--conditioning",
        "action",
        "--device",
        "cpu",
        "--checkpoint",
        str(checkpoint),
    ]
    given += ["--context", str(CONTEXT), "--frames", str(STEPS), "--imagination.reader", str(reader)]
    command = [*given, "--out", str(out), "--imagination.rows", "none:1", "once:2"]
    done: list[Any] = []

    def dies_in_the_second_row(*arguments: Any) -> Any:
        if done:
            raise InterruptedError
        done.append(row_figures(*arguments))
        return done[0]

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr("training.evaluation.imagination.row_figures", dies_in_the_second_row)
        main(command)
    assert list(json.loads(out.read_text())["rows"]) == ["none:1"]  # what was measured is kept
    main(command)
    record = json.loads(out.read_text())
    assert list(record["rows"]) == ["none:1", "once:2"]
    assert record["rows"]["once:2"]["write_once"] == 0.2
    figures = record["rows"]["once:2"]["figures"]
    names = {
        "return_psnr",
        "sharpness",
        "frechet",
        "diversity_unknown",
        "diversity_known",
        "actions",
        "history",
        "recall",
    }
    assert names | {"sharpness_by_action"} <= figures.keys()
    assert figures["sharpness"]["low"] <= figures["sharpness"]["value"] <= figures["sharpness"]["high"]
    assert record["rows"]["none:1"]["figures"]["diversity_unknown"]["value"] in (0, None)  # nothing is sampled
    assert out.with_suffix(".png").exists() and (tmp_path / "imagination_strips" / "maze_0.png").exists()
