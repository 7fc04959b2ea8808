import dataclasses
import os
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.toy_store import make_toy_store, toy_episode, toy_header
from training.data.dataset import Batch, EpisodeDataset
from training.store.episode_store import Episode, EpisodeStore, EpisodeWriter, StoreHeader, create_store

HEADER = StoreHeader("tests/Counter-v0", gym.spaces.Box(0, 255, (2, 2, 3), np.uint8), gym.spaces.Discrete(10_000), "x")


def counting_episode(seed: int, num_frames: int, rewarded: tuple[int, ...] = ()) -> Episode:
    """Frames, actions and poses say which episode and which step they are from."""
    steps = np.arange(num_frames)
    frames = np.zeros((num_frames, 2, 2, 3), np.uint8)
    frames[..., 0], frames[..., 1] = seed, steps[:, None, None]
    rewards = np.zeros(num_frames - 1, np.float32)
    rewards[list(rewarded)] = 1.0
    return Episode(
        seed=seed,
        frames=frames,
        actions=seed * 100 + steps[:-1],
        rewards=rewards,
        terminations=steps[:-1] == num_frames - 2,
        truncations=np.zeros(num_frames - 1, np.bool_),
        pose=np.stack([np.full(num_frames, seed), steps], -1).astype(np.float32),
    )


def counting_store(path: Path, lengths: dict[int, int], rewarded: tuple[int, ...] = ()) -> EpisodeStore:
    store = create_store(path, HEADER)
    for seed, length in lengths.items():
        EpisodeWriter(store).write(counting_episode(seed, length, rewarded))
    return store


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(left, right) for left, right in zip(vars(a).values(), vars(b).values(), strict=True))


def windows(batch: Batch) -> list[tuple[int, int]]:
    """Episode and first step of each row, after checking that all of a row is from there."""
    seeds, steps = batch.frames[..., 0, 0, 0].long(), batch.frames[..., 0, 0, 1].long()
    assert (seeds == seeds[:, :1]).all()
    assert (steps == steps[:, :1] + torch.arange(steps.shape[1])).all()
    assert torch.equal(batch.actions, (seeds * 100 + steps)[:, :-1])
    assert torch.equal(batch.pose, torch.stack([seeds, steps], -1).float())
    return list(zip(seeds[:, 0].tolist(), steps[:, 0].tolist(), strict=True))


def test_windows_never_cross_episodes_and_keep_frames_actions_and_poses_together(tmp_path: Path) -> None:
    counting_store(tmp_path / "store", {3: 12, 1: 9, 7: 30})
    dataset = EpisodeDataset(tmp_path / "store")
    batch = dataset.sample(500, 9, generator())
    assert batch.frames.shape == (500, 9, 2, 2, 3)
    assert batch.actions.shape == batch.rewards.shape == batch.terminations.shape == (500, 8)
    drawn = windows(batch)
    last = torch.tensor([{1: 9, 3: 12, 7: 30}[seed] - 9 == step for seed, step in drawn])
    assert torch.equal(batch.terminations[:, -1], last)
    assert not batch.terminations[:, :-1].any()


def test_every_window_is_drawn_equally_often(tmp_path: Path) -> None:
    counting_store(tmp_path / "store", {0: 5, 1: 8, 2: 4})
    counts = Counter(windows(EpisodeDataset(tmp_path / "store").sample(7000, 5, generator())))
    assert set(counts) == {(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)}  # episode 2 is too short
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_batches_depend_on_the_generator_alone(tmp_path: Path) -> None:
    counting_store(tmp_path / "store", dict.fromkeys(range(4), 20), rewarded=(5, 11))
    first, second = EpisodeDataset(tmp_path / "store"), EpisodeDataset(tmp_path / "store", num_threads=1)
    random = generator(1)
    first.sample(3, 8, random, reward_window_fraction=0.5)
    state = random.get_state()
    batches = [first.sample(6, length, random, reward_window_fraction=0.5) for length in (8, 12)]
    random.set_state(state)
    for batch, length in zip(batches, (8, 12), strict=True):
        assert equal(batch, second.sample(6, length, random, reward_window_fraction=0.5))
    assert not equal(batches[0], second.sample(6, 8, random))


def test_batches_hold_what_the_store_holds(tmp_path: Path) -> None:
    store = make_toy_store(tmp_path / "store", seeds=[5])
    batch = EpisodeDataset(tmp_path / "store").sample(1, 41, generator())
    episode = store.read(5)
    for name in ("frames", "actions", "rewards", "terminations", "pose"):
        np.testing.assert_array_equal(getattr(batch, name)[0].numpy(), getattr(episode, name))


def test_rewarded_windows_make_up_the_fraction_asked_for(tmp_path: Path) -> None:
    counting_store(tmp_path / "store", {0: 50, 1: 50}, rewarded=(0, 30, 48))
    dataset = EpisodeDataset(tmp_path / "store")
    always = dataset.sample(400, 6, generator(), reward_window_fraction=1.0)
    assert (always.rewards.sum(1) > 0).all()
    first_steps = {step for _, step in windows(always)}
    assert first_steps == {0, *range(26, 31), 44}  # all windows around transitions 0, 30 and 48, and no others

    half = dataset.sample(400, 6, generator(), reward_window_fraction=0.5).rewards.sum(1) > 0
    never = dataset.sample(400, 6, generator()).rewards.sum(1) > 0
    assert never.float().mean() < 0.25
    assert 0.45 < half.float().mean() < 0.7
    windows(dataset.sample(400, 6, generator(), reward_window_fraction=0.5))


def test_rewarded_windows_without_a_reward_are_an_error(tmp_path: Path) -> None:
    counting_store(tmp_path / "store", {0: 9})
    with pytest.raises(ValueError, match="has a reward"):
        EpisodeDataset(tmp_path / "store").sample(2, 5, generator(), reward_window_fraction=0.1)


def test_windows_longer_than_all_episodes_are_an_error(tmp_path: Path) -> None:
    counting_store(tmp_path / "store", {0: 9, 1: 11})
    dataset = EpisodeDataset(tmp_path / "store")
    assert dataset.sample(2, 11, generator()).frames.shape[1] == 11
    for length in (12, 0):
        with pytest.raises(ValueError, match=f"from 1 to 11 frames.*got {length}"):
            dataset.sample(2, length, generator())


def test_refresh_picks_up_new_episodes_as_a_new_dataset_would(tmp_path: Path) -> None:
    counting_store(tmp_path / "store", {2: 10, 4: 20})
    dataset = EpisodeDataset(tmp_path / "store")
    assert dataset.refresh() == 0
    dataset.sample(1, 10, generator())
    counting_store(tmp_path / "store", {1: 15, 9: 12}, rewarded=(3,))
    assert dataset.refresh() == 2
    assert (dataset.num_episodes, dataset.num_frames, dataset.seeds) == (4, 57, [1, 2, 4, 9])
    fresh = EpisodeDataset(tmp_path / "store")
    drawn = dataset.sample(200, 10, generator(), reward_window_fraction=0.3)
    windows(drawn)
    assert equal(drawn, fresh.sample(200, 10, generator(), reward_window_fraction=0.3))


def test_max_bytes_limits_the_frames(tmp_path: Path) -> None:
    counting_store(tmp_path / "store", {0: 10, 1: 10, 2: 10})
    dataset = EpisodeDataset(tmp_path / "store", max_bytes=25 * 12)
    assert dataset.seeds == [0, 1]
    assert dataset.frames.numel() <= 25 * 12
    assert dataset.refresh() == 0
    with pytest.raises(ValueError, match="no episode that fits into 100 bytes"):
        EpisodeDataset(tmp_path / "store", max_bytes=100)


def test_spaces_and_environment_come_from_the_store(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[0])
    dataset = EpisodeDataset(tmp_path / "store", env_id="tests/ToyMaze-v0")
    env = gym.make(dataset.env_id)
    assert (dataset.observation_space, dataset.action_space) == (env.observation_space, env.action_space)
    assert dataset.frames.is_contiguous()
    assert dataset.pose.shape == (41, 4)


def test_bad_stores_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no episode store"):
        EpisodeDataset(tmp_path / "nothing")
    make_toy_store(tmp_path / "store", seeds=[0, 1])
    with pytest.raises(ValueError, match="no episode in split 'test'"):
        EpisodeDataset(tmp_path / "store", split="test")
    with pytest.raises(ValueError, match=r"is a store of tests\.toy_env:tests/ToyMaze-v0, expected other/Maze-v0"):
        EpisodeDataset(tmp_path / "store", env_id="other/Maze-v0")
    shard = tmp_path / "store/train/episode_0000000001/frames/c/0/0/0/0"
    os.truncate(shard, 1000)
    with pytest.raises(ValueError, match=r"episode_0000000001 is damaged \(frames: "):
        EpisodeDataset(tmp_path / "store")


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=[0])
    with pytest.raises(ValueError, match="cuda:99"):
        EpisodeDataset(tmp_path / "store", device="cuda:99")


@pytest.mark.gpu
def test_a_dataset_on_the_gpu_gives_the_batches_of_one_on_the_cpu(tmp_path: Path) -> None:
    make_toy_store(tmp_path / "store", seeds=range(3))
    on_cpu, on_gpu = EpisodeDataset(tmp_path / "store"), EpisodeDataset(tmp_path / "store", device="cuda")
    left, right = (dataset.sample(16, 10, generator()) for dataset in (on_cpu, on_gpu))
    assert right.frames.is_cuda
    assert equal(left, Batch(**{name: tensor.cpu() for name, tensor in vars(right).items()}))


def test_episodes_of_an_environment_that_tells_no_pose_are_loaded_and_added(tmp_path: Path) -> None:
    store = create_store(tmp_path / "data", toy_header())
    writer = EpisodeWriter(store, "train")
    first, second = (dataclasses.replace(toy_episode(seed), pose=np.zeros((41, 0), np.float32)) for seed in range(2))
    writer.write(first)
    dataset = EpisodeDataset(tmp_path / "data")
    writer.write(second)
    assert dataset.refresh() == 1
    assert dataset.pose.shape == (82, 0) and dataset.num_episodes == 2
