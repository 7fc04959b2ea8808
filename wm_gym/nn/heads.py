"""Heads that read the finished tokens of a frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import Condition, ModelFrames, Poses, RewardLogits, TerminationLogits, Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.layers import modulate
from wm_gym.nn.pose_embedding import RayEmbedding


class FrameHead(nn.Module):
    """Tokens to pixels: the prediction of the clean frame."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.patch_size, self.channels = config.patch_size, config.frame_channels
        self.modulation = nn.Linear(config.condition_width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.frame_channels * config.patch_size**2)
        for parameter in (self.modulation.weight, self.modulation.bias, self.proj.bias):
            nn.init.zeros_(parameter)
        nn.init.normal_(self.proj.weight, std=0.02)

    def forward(self, tokens: Tokens, condition: Condition) -> ModelFrames:
        """Predicts frames ``[B, T, C, H, W]`` from tokens ``[B, T, rows, columns, D]`` and conditions."""
        shift, scale = self.modulation(condition)[:, :, None, None].chunk(2, dim=-1)
        pixels = self.proj(modulate(tokens, shift, scale)).float()
        batch, frames, rows, columns, _ = pixels.shape
        p = self.patch_size
        pixels = pixels.reshape(batch, frames, rows, columns, self.channels, p, p)
        return pixels.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, self.channels, rows * p, columns * p)


class EventHead(nn.Module):
    """Tokens to logits of the reward classes and of termination, both of the transition that led to the frame."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, len(config.reward_values) + 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        # Ends are rare: a dream goes on until the data have taught it otherwise.
        nn.init.constant_(self.out.bias[-1:], -4.0)

    def forward(self, tokens: Tokens) -> tuple[RewardLogits, TerminationLogits]:
        """Predicts logits ``[B, T, R]`` of the rewards and ``[B, T]`` of termination."""
        # The hidden map comes before the mean: an event may sit in a single token.
        hidden = F.gelu(self.hidden(modulate(tokens, tokens.new_zeros(1), tokens.new_zeros(1))))
        logits: Tensor = self.out(hidden.float().mean(dim=(2, 3)).to(hidden.dtype)).float()
        return logits[..., :-1], logits[..., -1]


def patchify(frames: ModelFrames, patch_size: int) -> Tensor:
    """``[B, T, C, H, W]`` to ``[B, T, H / p, W / p, C * p * p]``."""
    batch, num_frames, channels, height, width = frames.shape
    p = patch_size
    x = frames.reshape(batch, num_frames, channels, height // p, p, width // p, p)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, num_frames, height // p, width // p, channels * p * p)


class PatchEmbedding(nn.Module):
    """Pixels to tokens, with a learned position, and the direction they look in if poses are planar."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(config.frame_channels * config.patch_size**2, config.width)
        self.position = nn.Parameter(torch.randn(config.token_rows, config.token_columns, config.width) * 0.02)
        self.ray = RayEmbedding(config) if config.pose.kind == "planar" else None

    def forward(self, frames: ModelFrames, pose: Poses | None = None) -> Tokens:
        """Embeds frames ``[B, T, C, H, W]`` as tokens ``[B, T, rows, columns, D]``."""
        tokens = self.proj(patchify(frames, self.patch_size))
        tokens = tokens + self.position.to(tokens.dtype)
        if self.ray is not None and pose is not None:
            tokens = tokens + self.ray(pose).to(tokens.dtype)
        return tokens
