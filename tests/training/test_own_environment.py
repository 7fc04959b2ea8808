"""The example that users copy goes the whole way, from an environment to acting in its dream."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from examples.own_environment import ENV_ID
from tests.paths import ROOT
from training.make_clips import clips_from_store
from training.recording.episode import record_episode
from training.recording.policies import make_policy
from training.store.episode import Episode
from training.store.episode_store import open_store


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_the_example_records_trains_registers_and_dreams(tmp_path: Path) -> None:
    result = run(
        "-m",
        "examples.own_environment",
        *("--out", str(tmp_path), "--minutes", "0.03", "--frames", "300", "--workers", "1"),
    )
    assert result.returncode == 0, result.stderr
    assert "read 50 real frames, the last one is the first observation: (32, 32, 3) uint8" in result.stdout
    assert "dreamed 50 frames" in result.stdout
    assert re.search(r"20 dreamed frames: \d+\.\d dB to the real ones; a still picture has \d+\.\d dB", result.stdout)
    store = open_store(tmp_path / "data")
    assert store.seeds("train") == [0, 1, 2]
    assert store.seeds("test") == list(range(7_000_000, 7_000_008))
    assert store.header.policy == "examples.own_environment:wander"

    clips = clips_from_store(tmp_path / "data", "test", num_clips=2, num_frames=11)
    np.testing.assert_array_equal(clips.frames[1], store.read(7_000_001, "test").frames[:11])
    np.testing.assert_array_equal(clips.actions[1], store.read(7_000_001, "test").actions[:10])
    with pytest.raises(ValueError, match="has 8 episodes of 101 frames or more in split 'test', 9 are needed"):
        clips_from_store(tmp_path / "data", "test", num_clips=9, num_frames=101)


def recorded(env: gym.Env[Any, Any], seed: int) -> Episode:
    return record_episode(env, make_policy("examples.own_environment:wander", env, seed), seed)


def test_its_environment_follows_gymnasiums_rules_and_its_door_is_found() -> None:
    env = gym.make(ENV_ID)
    check_env(env.unwrapped, skip_render_check=True)
    episodes = [recorded(env, seed) for seed in range(20)]
    np.testing.assert_array_equal(episodes[0].frames, recorded(env, 0).frames)
    assert (episodes[0].frames[0] != episodes[1].frames[0]).any()
    rewards = np.stack([episode.rewards for episode in episodes])
    assert rewards.shape == (20, 100)
    assert set(rewards.flat) == {0.0, 1.0}
    assert rewards.sum(1).mean() > 0.5
