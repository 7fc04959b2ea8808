"""Walks whose frames a model dreams, each for its true pose or one near it: what odometry sees in dreams."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.dataset import Batch
from training.evaluation.imagine import Dreamer
from training.recording.rollouts import Rollouts, read_rollouts
from training.store.episode_store import open_store
from wm_gym.array_typing import Poses
from wm_gym.poses import moved
from wm_gym.world_model import WorldModel

ROWS = 64  # dreams at a time; bounds the memory
OFF_CELLS, OFF_DEGREES = 0.25, 5.0  # scale of how far poses are off in dreams, which odometry must not mind


class DreamedWalks:
    """Windows of dreamed walks, drawn as an `EpisodeDataset` draws them.

    Args:
        walks: M real walks of T frames.
        frames: dreamed in the place of their last F frames, uint8 ``[M, F, H, W, C]``.
        device: of the windows.
    """

    def __init__(self, walks: Rollouts, frames: Tensor, device: torch.device) -> None:
        first = walks.frames.shape[1] - frames.shape[1]
        self._frames = frames.to(device)
        self._actions, self._rewards = (part[:, first:].to(device) for part in (walks.actions, walks.rewards))
        self._pose = walks.pose[:, first:].to(device)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        """Draws windows, with replacement and uniformly; see `EpisodeDataset.sample`.

        Raises:
            ValueError: the dreams are shorter than `length`.
        """
        num_walks, num_frames = self._frames.shape[:2]
        if num_frames < length:
            raise ValueError(f"The dreams have {num_frames} frames, windows of {length} are asked for.")
        device = self._frames.device
        walk, start = (
            torch.randint(limit, (batch_size,), generator=generator, device=generator.device).to(device)
            for limit in (num_walks, num_frames - length + 1)
        )
        places = start[:, None] + torch.arange(length, device=device)
        rewards = self._rewards[walk[:, None], places[:, :-1]]
        return Batch(
            frames=self._frames[walk[:, None], places],
            actions=self._actions[walk[:, None], places[:, :-1]],
            rewards=rewards,
            terminations=torch.zeros_like(rewards, dtype=torch.bool),  # a dream ends with its window at the latest
            pose=self._pose[walk[:, None], places],
        )


def dream_walks(model: WorldModel, data: Path, num_walks: int, num_context: int, num_frames: int) -> DreamedWalks:
    """Dreams on from the beginnings of recorded walks, the poses given, but all of a dream off by a little.

    So a frame shows a wall from somewhat nearer or farther than where the walk was stopped by it.

    Args:
        model: conditioned on planar poses, frozen; on the device of the windows.
        data: store of the walks, of which the first `num_walks` of the split train are taken.
        num_context: real frames before each dream.
        num_frames: dreamed ones.

    Raises:
        ValueError: there are fewer walks, or shorter ones.
    """
    seeds = open_store(data).seeds("train")
    if len(seeds) < num_walks:
        raise ValueError(f"{data} has {len(seeds)} walks, {num_walks} are to be dreamed.")
    walks = read_rollouts(data, "train", seeds[:num_walks], num_context + num_frames)
    given = torch.cat([walks.pose[:, :num_context], slightly_off(walks.pose[:, num_context:])], dim=1)
    dreamer = Dreamer(model, min(ROWS, num_walks))
    frames = dreamer.imagine(dataclasses.replace(walks, pose=given), num_context, "kept")
    return DreamedWalks(walks, frames, model.device)


def slightly_off(poses: Poses, seed: int = 0) -> Poses:
    """Planar poses ``[M, T, 4]``, those of each walk off by the same, some hardly, others up to the scales above."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(len(poses), 1, 1, generator=generator)
    offset = scale * torch.randn(len(poses), 1, 3, generator=generator)
    turns = F.pad(offset[..., 2:] * math.radians(OFF_DEGREES), (2, 0)).expand(-1, poses.shape[1], -1)
    return torch.cat([poses[..., :2] + OFF_CELLS * offset[..., :2], moved(poses, turns)[..., 2:]], dim=-1)
