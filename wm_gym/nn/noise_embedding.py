"""What a frame that is made in one pass leaves to chance: its noise, as tokens and as a part of the condition."""

from __future__ import annotations

from torch import Tensor, nn

from wm_gym.array_typing import ModelFrames, Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.heads import patchify


class NoiseEmbedding(nn.Module):
    """Embeds pure noise. Each token sees that of its patch; all see, through the condition, one vector of the frame.

    The vector decides about whole frames: a few numbers that condition all of a network, trained by a proper score,
    suffice for coherent samples (functional generative networks, arXiv 2506.10772). Weights begin as 0, so that a model
    that is given the embedding goes on as it was.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        size = config.frame_channels * config.patch_size**2
        self.of_tokens = nn.Linear(size, config.width, bias=False)
        self.of_condition = nn.Linear(size, config.condition_width, bias=False)
        nn.init.zeros_(self.of_tokens.weight)
        nn.init.zeros_(self.of_condition.weight)

    def forward(self, noise: ModelFrames) -> tuple[Tokens, Tensor]:
        """Of noise ``[B, T, C, H, W]``, zeros where a frame has none.

        Returns:
            What is added to the tokens, ``[B, T, rows, columns, D]``, and to the condition before its activation,
            ``[B, T, condition_width]``.
        """
        patches = patchify(noise, self.patch_size)
        num_tokens = patches.shape[2] * patches.shape[3]
        vector = patches.sum((2, 3)) * num_tokens**-0.5  # again of variance 1
        return self.of_tokens(patches), self.of_condition(vector)
