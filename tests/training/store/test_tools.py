"""Stores as a whole: described, validated, merged, divided by seed."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests.paths import ROOT
from tests.toy_store import make_toy_store, toy_episode, toy_header
from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store, open_store
from training.store.tools import choose_seeds, differing_part, merge, merged_header, move, problems, summarize


def assert_holds(store: EpisodeStore, seeds: list[int], split: str = "train") -> None:
    assert store.seeds(split) == seeds
    assert all(differing_part(store.read(seed, split), toy_episode(seed)) is None for seed in seeds)


def test_a_summary_counts_what_is_there(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[2, 5])
    summary = summarize(store, "train")
    rewards = np.concatenate([toy_episode(seed).rewards for seed in (2, 5)])
    assert (summary.seeds, summary.num_episodes, summary.num_frames) == ([2, 5], 2, 82)
    assert summary.num_rewards == np.count_nonzero(rewards)
    assert summary.total_reward == pytest.approx(rewards.sum())
    assert summary.num_bytes > 1000
    assert summarize(store, "eval").num_episodes == 0


def test_a_good_store_has_no_problem(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=range(3))
    store = make_toy_store(tmp_path / "store", seeds=[7_000_000], split="test")
    assert list(problems(store)) == []


def test_every_damaged_episode_is_named_and_no_other(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=range(4))
    (store.episode_path(1) / "rewards/c/0").unlink()
    shard = store.episode_path(3) / "frames/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-9])
    found = list(problems(store))
    assert len(found) == 2
    assert "episode_0000000001 is damaged (rewards:" in found[0]
    assert "episode_0000000003 is damaged (frames:" in found[1]


def test_what_does_not_belong_there_is_named(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[0])
    (store.path / "notes.txt").write_text("hello")
    (store.path / "train/episode_7").mkdir()
    (store.episode_path(0) / "depth").mkdir()
    shutil.copytree(store.episode_path(0), store.split_path("train") / "episode_0007000001")
    found = "\n".join(problems(store))
    assert "notes.txt does not belong to an episode store" in found
    assert "episode_7 does not belong to an episode store" in found
    assert "has a foreign file: depth" in found
    assert "episode_0007000001 is in the wrong split" in found
    assert "it says seed 0" in found


def test_an_episode_of_another_environment_is_named(tmp_path: Path) -> None:
    other_space = dataclasses.replace(toy_header(), action_space=gym.spaces.Discrete(2))
    target = create_store(tmp_path / "store", other_space)
    make_toy_store(tmp_path / "other", seeds=[0])
    shutil.copytree(tmp_path / "other/train", target.path / "train")
    assert "actions must be from 0 to 1" in "\n".join(problems(target))


def test_what_a_dead_writer_left_is_a_problem_and_what_a_live_one_writes_is_none(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[0])
    writer = EpisodeWriter(store)
    with writer._temporary(1) as alive:
        alive.mkdir()
        assert list(problems(store)) == []
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        dead = alive.with_name(f"{alive.name.rpartition('-')[0]}-{process.pid}.0")
        dead.mkdir()
        assert ["is half-written" in problem for problem in problems(store)] == [True]
        assert writer.remove_abandoned() == 1
        assert list(problems(store)) == []


def test_an_end_in_the_middle_is_a_problem(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", toy_header())
    episode = toy_episode(0)
    EpisodeWriter(store).write(dataclasses.replace(episode, terminations=np.ones_like(episode.terminations)))
    assert "goes on after its end" in "\n".join(problems(store))


def test_a_merged_store_has_the_episodes_of_both(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "a", seeds=[0, 1])
    make_toy_store(tmp_path / "b", seeds=[1, 4])
    make_toy_store(tmp_path / "b", seeds=[7_000_000], split="eval")
    store = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert_holds(store, [0, 1, 4])
    assert_holds(store, [7_000_000], "eval")
    assert list(problems(store)) == []
    assert_holds(merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c"), [0, 1, 4])


def test_two_different_episodes_of_one_seed_are_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "a", seeds=[0, 1])
    other = create_store(tmp_path / "b", toy_header())
    EpisodeWriter(other).write(dataclasses.replace(toy_episode(2), seed=1))
    with pytest.raises(ValueError, match=r"a/train/episode_0000000001 and .*b/train.* same seed, but frames differ"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_stores_of_different_environments_are_not_merged(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "a", seeds=[0])
    create_store(tmp_path / "b", dataclasses.replace(toy_header(), env_id="other/Maze-v0"))
    with pytest.raises(ValueError, match="same environment can be merged, but env_id is"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    with pytest.raises(ValueError, match="merged into itself"):
        merge([tmp_path / "a"], tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no episode store"):
        merge([tmp_path / "a", tmp_path / "nothing"], tmp_path / "c")


def test_policies_and_limits_are_united() -> None:
    header = dataclasses.replace(toy_header(), max_episode_steps=7)
    other = dataclasses.replace(header, policy="navigator", max_episode_steps=9)
    merged = merged_header(header, other)
    assert (merged.policy, merged.max_episode_steps) == ("random + navigator", 9)
    assert merged_header(merged, header) == merged
    assert merged_header(header, toy_header()).max_episode_steps is None


def test_a_merge_that_was_killed_goes_on(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "a", seeds=range(60))
    command = [sys.executable, "-m", "training.store", "merge", str(tmp_path / "a"), "--out", str(tmp_path / "c")]
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None and len(list((tmp_path / "c/train").glob("episode_*"))) < 5:
        pass
    process.kill()
    process.wait()
    store = open_store(tmp_path / "c")
    assert 5 <= len(store.seeds()) < 60
    assert_holds(store, store.seeds())
    assert_holds(merge([tmp_path / "a"], tmp_path / "c"), list(range(60)))
    assert list(problems(store)) == []


def test_seeds_are_chosen_by_themselves_and_not_by_their_neighbours() -> None:
    chosen = choose_seeds(range(1000), 0.2)
    assert 150 < len(chosen) < 250
    assert choose_seeds(range(2000), 0.2)[: len(chosen)] == chosen
    assert choose_seeds([3, 4], 0.0) == []
    assert choose_seeds([4, 3], 1.0) == [3, 4]
    with pytest.raises(ValueError, match="fraction must be from 0 to 1"):
        choose_seeds([], 1.5)


def test_whole_episodes_move_between_held_out_splits_and_never_into_training(tmp_path: Path) -> None:
    seeds = list(range(7_000_000, 7_000_004))
    store = make_toy_store(tmp_path / "store", seeds=seeds, split="test")
    make_toy_store(tmp_path / "store", seeds=[1])
    assert move(store, seeds[:2], "test", "eval") == 2
    assert_holds(store, seeds[2:], "test")
    assert_holds(store, seeds[:2], "eval")
    with pytest.raises(ValueError, match="for evaluation only"):
        move(store, seeds[2:], "test", "train")
    with pytest.raises(ValueError, match="never trained on"):
        move(store, [1], "train", "test")
    with pytest.raises(FileNotFoundError, match="no episode of seed"):
        move(store, seeds, "test", "eval")
    make_toy_store(tmp_path / "store", seeds=seeds[:1], split="test")
    with pytest.raises(ValueError, match="has an episode of seed 7000000 already"):
        move(store, seeds[:1], "test", "eval")
    assert_holds(store, [seeds[0], *seeds[2:]], "test")
