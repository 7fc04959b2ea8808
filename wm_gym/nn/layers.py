"""One layer: block-wise scan, frame-local attention and feed-forward part, each under gated AdaLN."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from wm_gym.array_typing import Condition, RowCount, Tokens
from wm_gym.nn.block_scan import BlockScan
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.local_attention import LocalAttention, Rotary
from wm_gym.nn.state import LayerState


def modulate(tokens: Tokens, shift: Tensor, scale: Tensor) -> Tokens:
    """Adaptive layer norm (arXiv 2212.09748, section 3.2): scale and shift set by the frame's condition."""
    normalised = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=1e-6)
    return (normalised * (1 + scale.float()) + shift.float()).to(tokens.dtype)


class FeedForward(nn.Sequential):
    """Two linear maps with a GELU between them."""

    def __init__(self, config: WorldModelConfig) -> None:
        hidden = config.feed_forward_multiplier * config.width
        super().__init__(nn.Linear(config.width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, config.width))


class Layer(nn.Module):
    """The paper's layer (arXiv 2505.20171): x + gate * part(modulate(x)), three times."""

    def __init__(self, config: WorldModelConfig, block_size: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.condition_width, 9 * config.width)
        self.block_scan = BlockScan(config, block_size)
        self.local_attention = LocalAttention(config)
        self.feed_forward = FeedForward(config)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        # Residual branches start small (GPT-2's rule), so gates can start open.
        for linear in (self.block_scan.out_proj, self.local_attention.out_proj, self.feed_forward[-1]):
            assert isinstance(linear, nn.Linear)
            linear.weight.data.mul_(1 / math.sqrt(3 * len(config.block_sizes)))

    def forward(
        self,
        tokens: Tokens,
        condition: Condition,
        rotary: Rotary,
        state: LayerState | None,
        num_cached: RowCount | None,
        num_committed: int,
        block_mask: BlockMask | None,
    ) -> tuple[Tokens, LayerState | None]:
        """Run T frames; see :class:`BlockScan` and :class:`LocalAttention` for the arguments.

        ``condition`` is ``[B, T, condition_width]``, already activated.
        """
        modulation = self.modulation(condition)[:, :, None, None]
        shift1, scale1, gate1, shift2, scale2, gate2, shift3, scale3, gate3 = modulation.chunk(9, dim=-1)
        mixed, scan_state = self.block_scan(modulate(tokens, shift1, scale1), state, num_committed)
        tokens = tokens + (1 + gate1) * mixed
        attended, kv_cache = self.local_attention(
            modulate(tokens, shift2, scale2), rotary, state, num_cached, num_committed, block_mask
        )
        tokens = tokens + (1 + gate2) * attended
        tokens = tokens + (1 + gate3) * self.feed_forward(modulate(tokens, shift3, scale3))
        if scan_state is None or kv_cache is None:
            return tokens, None
        return tokens, LayerState(scan_state[0], scan_state[1], kv_cache)


def fourier_features(level: Tensor, size: int) -> Tensor:
    """Sines and cosines of a noise level in [0, 1], ``[..., size]``, with frequencies from 1 to 1000 radians."""
    frequency = torch.exp(torch.linspace(0, math.log(1000.0), size // 2, device=level.device))
    angle = level.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
