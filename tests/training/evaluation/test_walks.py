"""Walks: recorded once, refused when they are others, and turned round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toy_store import TOY_ENV, make_toy_store, toy_episode, toy_header
from training.collect import CollectConfig
from training.evaluation.options import RecallOptions
from training.evaluation.walks import recorded_walks, reversed_walks
from training.recording.episode import make_env
from training.recording.frames import RecordingOptions
from training.recording.policies import make_policy
from training.store.episode_store import EpisodeWriter, create_store, open_store
from wm_gym.policies.backtrack import Backtracker

FIRST = 7_000_000
SEEDS = range(FIRST, FIRST + 2)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Walks of 13 frames, as `recorded_walks` would record them."""
    path = tmp_path / "walks"
    writer = EpisodeWriter(create_store(path, replace(toy_header(), max_episode_steps=12)), "test")
    for seed in SEEDS:
        writer.write(toy_episode(seed, 12))
    return path


def test_walks_that_are_there_are_not_recorded_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.evaluation.walks.collect", lambda config: pytest.fail("recorded"))
    walks = recorded_walks(store, TOY_ENV, "random", SEEDS, 10)
    assert walks.frames.shape == (2, 10, 16, 16, 3)
    assert walks.seeds == tuple(SEEDS)


def test_what_is_missing_is_collected_as_long_as_the_walks_that_are_there(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[CollectConfig] = []

    def record(config: CollectConfig) -> None:
        asked.append(config)
        EpisodeWriter(open_store(store), "test").write(toy_episode(FIRST + 2, 12))

    monkeypatch.setattr("training.evaluation.walks.collect", record)
    assert recorded_walks(store, TOY_ENV, "random", range(FIRST, FIRST + 3), 10, workers=5).frames.shape[:2] == (3, 10)
    (config,) = asked
    assert (config.seed, config.frames, config.max_episode_steps, config.split) == (FIRST, 3 * 13, 12, "test")
    assert config.workers == 1


@pytest.mark.slow
def test_missing_walks_are_recorded_beside_the_others(store: Path) -> None:
    before = recorded_walks(store, TOY_ENV, "random", SEEDS, 13)
    walks = recorded_walks(store, TOY_ENV, "random", range(FIRST, FIRST + 3), 13, workers=1)
    assert walks.seeds == (FIRST, FIRST + 1, FIRST + 2)
    assert torch.equal(walks.frames[:2], before.frames)
    assert not torch.equal(walks.frames[2], walks.frames[1])


@pytest.mark.parametrize(
    ("env_id", "policy", "num_frames", "message"),
    [
        (TOY_ENV, "navigator", 10, "walks of random in .*, not of navigator"),
        ("tests/Other-v0", "random", 10, "not of random in tests/Other-v0"),
        (TOY_ENV, "random", 42, "walks of 13 frames, and 42 are needed"),
    ],
)
def test_other_walks_are_refused(store: Path, env_id: str, policy: str, num_frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recorded_walks(store, env_id, policy, SEEDS, num_frames)


def test_walks_that_were_recorded_in_another_way_are_refused(store: Path) -> None:
    with pytest.raises(ValueError, match=r"recorded with \{\}, not with \{'resize': 8\}"):
        recorded_walks(store, TOY_ENV, "random", SEEDS, 10, RecordingOptions(resize=8))


def test_a_store_of_whole_episodes_is_read_and_not_extended(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", SEEDS, split="test")
    assert recorded_walks(tmp_path / "store", TOY_ENV, "random", SEEDS, 30).frames.shape[1] == 30
    with pytest.raises(ValueError, match=f"none of seed {FIRST + 2}"):
        recorded_walks(tmp_path / "store", TOY_ENV, "random", range(FIRST, FIRST + 3), 30)


def test_a_reversed_walk_shows_the_context_backwards_with_poses_and_the_actions_between(store: Path) -> None:
    walks = recorded_walks(store, TOY_ENV, "random", SEEDS, 5)
    there_and_back = reversed_walks(walks, 12)
    order = [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 4, 3]
    assert torch.equal(there_and_back.frames, walks.frames[:, order])
    assert torch.equal(there_and_back.pose, walks.pose[:, order])
    crossed = [0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 0, 1, 2, 3, 3, 3]
    assert torch.equal(there_and_back.actions, walks.actions[:, crossed])


def test_the_agent_turns_round_at_the_end_of_the_context_and_only_where_it_must() -> None:
    def policy(**options: str) -> str:
        return RecallOptions(**options).walking_policy("navigator", 400)  # pyright: ignore[reportArgumentType]

    assert policy(protocol="retrieval") == "backtrack-399"
    assert policy(protocol="retrieval", conditioning="pose") == policy(protocol="reasoning") == "navigator"
    assert RecallOptions(protocol="retrieval").walking_policy("a.module:walk", 400) == "a.module:walk"
    with pytest.raises(ValueError, match="'random' does not"):
        RecallOptions(protocol="retrieval").walking_policy("random", 400)


def test_a_walk_back_is_refused_where_nobody_can_walk() -> None:
    with pytest.raises(ValueError, match="Memory Maze"):
        make_policy("backtrack-5", make_env(TOY_ENV), 0)


@pytest.mark.real_env
def test_backtrack_is_a_policy_of_its_own_name() -> None:
    env = make_env("wm_gym/MemoryMaze-9x9-v0")
    try:
        assert isinstance(make_policy("backtrack-5", env, 0), Backtracker)
    finally:
        env.close()
