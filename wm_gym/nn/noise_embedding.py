"""What a frame that is made in one pass leaves to chance: its noise, as tokens."""

from __future__ import annotations

from torch import nn

from wm_gym.array_typing import ModelFrames, Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.heads import patchify


class NoiseEmbedding(nn.Module):
    """Embeds pure noise, patch by patch. Weights begin as 0, so that a model that gets one goes on as it was."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(config.frame_channels * config.patch_size**2, config.width, bias=False)
        nn.init.zeros_(self.proj.weight)

    def forward(self, noise: ModelFrames) -> Tokens:
        """What noise ``[B, T, C, H, W]``, or zeros for none, adds to tokens ``[B, T, rows, columns, D]``."""
        return self.proj(patchify(noise, self.patch_size))
