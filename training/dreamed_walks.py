"""Walks whose frames a model dreams, each for its true pose: what odometry sees in dreams."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.dataset import Batch
from training.recall.imagine import Dreamer
from training.rollouts import Rollouts, read_rollouts
from training.store import open_store
from wm_gym.world_model import WorldModel

ROWS = 64  # dreams at a time; bounds the memory


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
    """Dreams on from the beginnings of recorded walks, the poses given.

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
    frames = Dreamer(model, min(ROWS, num_walks)).imagine(walks, num_context, "kept")
    return DreamedWalks(walks, frames, model.device)
