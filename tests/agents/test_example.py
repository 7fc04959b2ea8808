"""The example goes the whole way: a world, its dream, an agent and a planner in it, and their scores in the world."""

import json
import os
import subprocess
import sys

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

from tests.paths import ROOT


def test_its_world_is_a_gymnasium_environment():
    pytest.importorskip("stable_baselines3")
    check_env(gym.make("examples.agent_in_a_dream:Line-v0").unwrapped, skip_render_check=True)


@pytest.mark.slow
def test_the_example_learns_and_plans_in_the_dream_far_above_random_in_the_world(tmp_path):
    pytest.importorskip("stable_baselines3")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "examples.agent_in_a_dream"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=220)
    assert result.returncode == 0, result.stderr
    scores = {
        name: json.loads((tmp_path / "outputs" / "line" / f"score_{name}.json").read_text())["mean_return"]
        for name in ("random", "agent", "plan")
    }
    assert scores["random"] < 10 and min(scores["agent"], scores["plan"]) > 17, scores
