"""Modules that have moved are found under their old names for one release."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import wm_gym  # noqa: F401 (accepts old names)
from agents.policies.loading import load_ppo
from tests.paths import ROOT
from wm_gym.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_gives_the_module_of_the_new_one_and_says_so(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert not (ROOT / f"{old.replace('.', '/')}.py").exists()


def test_a_name_that_never_was_is_not_found() -> None:
    assert importlib.util.find_spec("wm_gym.never_was") is None


def test_a_command_runs_under_its_old_name() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "always", "-m", "training.trials", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "training.trials is now training.benchmarks.trials" in result.stderr
    assert "--out" in result.stdout


@pytest.mark.parametrize(
    "agent", sorted((ROOT / "docs" / "results" / "agents").rglob("*.zip")), ids=lambda path: path.parent.name
)
def test_agents_that_were_saved_under_old_names_load(agent: Path) -> None:
    for old in MOVED:
        sys.modules.pop(old, None)
    model = load_ppo(agent, gym.spaces.Box(0, 255, (64, 64, 3), np.uint8), gym.spaces.Discrete(6))
    action, _ = model.predict(np.zeros((1, 64, 64, 3), np.uint8))
    assert 0 <= action[0] < 6


def test_there_are_such_agents() -> None:
    assert list((ROOT / "docs" / "results" / "agents").rglob("*.zip"))
