"""A walk back through the real Memory Maze, recorded by the policy that the retrieval protocol takes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from training.evaluation.nearest_view import locate
from training.evaluation.options import RecallOptions
from training.evaluation.walks import recorded_walks

pytestmark = [
    pytest.mark.real_env,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("memory_maze") is None, reason="the memory-maze extra is missing"),
]


def test_the_agent_turns_round_and_comes_by_the_places_of_its_context(tmp_path: Path) -> None:
    policy = RecallOptions(protocol="retrieval").walking_policy("navigator", 60)
    walks = recorded_walks(tmp_path / "walks", "wm_gym/MemoryMaze-9x9-v0", policy, range(7_000_000, 7_000_002), 110)
    pose = walks.pose.numpy()
    anywhere = locate(pose, 60, max_distance=0.5, max_angle=180.0)
    assert anywhere.seen.mean() > 0.95
    # It gets as far as places that were left more than 60 frames ago.
    assert (anywhere.frames_back.max(1) > 60).all()
