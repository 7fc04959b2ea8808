"""A staged recipe makes its model by one command, whenever it is stopped or killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.toy_store import make_toy_store
from tests.training.test_train import assert_equal_files
from training.staged import STAGED_RECIPES, Phase, StagedArguments, StagedRecipe
from training.train import main, parse_arguments, train
from wm_gym.checkpoint import load_checkpoint

PHASES = 5
FLAGS = ["--recipe", "memory_maze_tiny", "--device", "cpu", "--recipe.odometry.training.steps", "6"]
FLAGS += ["--recipe.odometry.training.batch-size", "4", "--recipe.odometry.training.length", "9"]
FLAGS += ["--recipe.odometry.by-map.steps", "6", "--recipe.odometry.by-map.batch-size", "4"]
FLAGS += ["--recipe.odometry.map-every", "12", "--recipe.odometry.by-map.length", "4"]
FLAGS += ["--recipe.odometry.bearings.steps", "0"]
for number in range(PHASES):
    of_phase = f"--recipe.phases.{number}.recipe"
    FLAGS += [f"{of_phase}.steps", "6", f"{of_phase}.checkpoint-steps", "2", f"{of_phase}.model.width", "32"]
    for stage in range(3 if number < 2 else 2):
        FLAGS += [f"{of_phase}.stages.{stage}.length", "10", f"{of_phase}.stages.{stage}.batch-size", "2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    make_toy_store(path, range(8))
    return path


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    main([*FLAGS, "--data", str(store), "--out", str(out)])
    return out


def test_the_model_has_gone_through_all_phases_and_has_odometry(whole: Path) -> None:
    made = load_checkpoint(whole / "model.safetensors")
    assert any(name.startswith("odometry.by_map.") for name in made.tensors)
    names, history = [], made.metadata
    while history is not None:
        names.append(history["name"].rpartition(".")[2])
        history = history.get("continues")
    assert names[::-1] == [phase.name for phase in STAGED_RECIPES["memory_maze"]().phases]
    assert made.metadata["odometry"]["by_map"]["steps"] == 6


def test_a_staged_run_that_is_stopped_again_and_again_makes_the_same_model(
    whole: Path, store: Path, tmp_path: Path
) -> None:
    command = [*FLAGS, "--data", str(store), "--out", str(tmp_path), "--stop-after-steps", "4"]
    sessions = 0
    while not (tmp_path / "model.safetensors").exists():
        main(command)
        sessions += 1
    assert sessions == PHASES + 1  # each ends in the middle of a phase
    assert_equal_files(whole / "model.safetensors", tmp_path / "model.safetensors")
    assert not list(tmp_path.glob("*.training"))


@pytest.mark.slow
def test_a_staged_run_that_is_killed_at_any_moment_makes_the_same_model(
    whole: Path, store: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "training.train", *FLAGS, "--data", str(store), "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for seconds in (6.0, 9.0, 12.0, 15.0, 600.0):
        process = subprocess.Popen(command, env=environment)
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert_equal_files(whole / "model.safetensors", tmp_path / "model.safetensors")


def test_a_finished_run_is_left_as_it_is(whole: Path, store: Path) -> None:
    before = (whole / "model.safetensors").stat().st_mtime_ns
    main([*FLAGS, "--data", str(store), "--out", str(whole)])
    assert (whole / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_of_a_finished_phase_are_refused(
    whole: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"recipe.learning_rate was .* and is 0.5"):
        main([*FLAGS, "--data", str(store), "--out", str(whole), "--recipe.phases.1.recipe.learning-rate", "0.5"])


def test_minutes_are_shared_by_the_steps_of_the_phases(store: Path, tmp_path: Path) -> None:
    arguments = parse_arguments([*FLAGS, "--data", str(store), "--out", str(tmp_path), "--recipe.max-minutes", "10"])
    assert isinstance(arguments, StagedArguments)
    assert [arguments.run(i, 0.0).recipe.max_minutes for i in range(PHASES)] == pytest.approx([2.0] * PHASES)


def test_phases_need_names_of_their_own() -> None:
    phase = STAGED_RECIPES["memory_maze"]().phases[0]
    with pytest.raises(ValueError, match="phases of different names, got"):
        StagedRecipe((phase, Phase(phase.name, phase.recipe)))


def test_help_without_a_recipe_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert not exit_info.value.code
    shown = capsys.readouterr().out
    assert "memory_maze " in shown and "--recipe NAME --help" in shown


def test_a_model_without_odometry_is_that_of_the_last_phase(store: Path, tmp_path: Path) -> None:
    arguments = parse_arguments([*FLAGS, "--data", str(store), "--out", str(tmp_path)])

    assert isinstance(arguments, StagedArguments)
    first = StagedRecipe(arguments.recipe.phases[:1])
    made = train(dataclasses.replace(arguments, recipe=first))
    assert_equal_files(made, tmp_path / first.phases[0].name / "model.safetensors")
