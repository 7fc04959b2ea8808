"""Where training starts: how long the scans remember before they have learned anything."""

from __future__ import annotations

import math

import torch

from training.baselines.config import BaselineConfig
from wm_gym.nn.block_scan import BlockScan
from wm_gym.world_model import WorldModel

STEP_SIZES = (0.03, 0.3)  # softplus(dt_bias), which is also how strongly a token is written


@torch.no_grad()
def set_memory_length(model: WorldModel, shortest: float, longest: float) -> None:
    """Spreads the decay times of each scan's heads evenly, in the logarithm, from `shortest` to `longest` frames.

    Mamba2's own initialisation (decay rates of 1 to 16, step sizes of 0.001 to 0.1) forgets after 1 to 1,000 tokens:
    in a block of 8x8 tokens after less than 16 frames. What is forgotten cannot be asked for, so nothing then teaches
    the model to keep it.

    Raises:
        ValueError: if the times are not positive and in order.
    """
    if not 0 < shortest <= longest:
        raise ValueError(f"memory_frames must be two numbers, 0 < shortest <= longest, got {shortest} and {longest}.")
    is_baseline = isinstance(model.config, BaselineConfig)
    for scan in model.modules():
        if not isinstance(scan, BlockScan):
            continue
        # The Mamba2 baseline scans all tokens of a frame as if they were frames of one token.
        tokens_per_frame = model.config.num_tokens if is_baseline else scan.block_size**2
        heads = torch.arange(scan.num_heads, device=scan.dt_bias.device)
        # Neighbours share a group's keys: one of them forgets soon, the other late.
        rank = torch.where(heads % 2 == 0, heads // 2, (scan.num_heads + heads) // 2) / max(scan.num_heads - 1, 1)
        frames = shortest * (longest / shortest) ** rank
        low, high = (math.log(size) for size in STEP_SIZES)
        step = torch.exp(torch.empty_like(scan.dt_bias).uniform_(low, high))
        scan.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        scan.log_decay.copy_(-torch.log(frames * tokens_per_frame * step))
