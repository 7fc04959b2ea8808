"""Layers of the baselines: one mixer of tokens and a feed-forward part, each under gated AdaLN as in ours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from training.baselines.attention import FrameAttention, KVState
from training.baselines.config import BaselineConfig
from wm_gym.array_typing import Condition, Heads, Tokens
from wm_gym.nn.block_scan import CONV_TAPS, BlockScan
from wm_gym.nn.layers import FeedForward, modulate
from wm_gym.nn.local_attention import Rotary
from wm_gym.nn.state import LayerState


def _start_small(config: BaselineConfig, *linears: nn.Module) -> None:
    """Residual branches start small (GPT-2's rule), so gates can start open; as in our layer."""
    for linear in linears:
        assert isinstance(linear, nn.Linear)
        linear.weight.data.mul_(1 / math.sqrt(2 * config.num_layers))


def _modulation(config: BaselineConfig) -> nn.Linear:
    linear = nn.Linear(config.condition_width, 6 * config.width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class TransformerLayer(nn.Module):
    """Attention and feed-forward part."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.modulation = _modulation(config)
        self.attention = FrameAttention(config)
        self.feed_forward = FeedForward(config)
        self.heads_shape = (config.num_tokens, self.attention.num_heads, self.attention.head_dim)
        _start_small(config, self.attention.out_proj, self.feed_forward[-1])

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> KVState:
        """The empty cache of a layer."""
        shape = (batch_size, self.attention.capacity(0), *self.heads_shape)
        return KVState(*(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))

    def forward(
        self,
        tokens: Tokens,
        condition: Condition,
        rotary: Rotary,
        state: KVState | None,
        num_cached: int,
        num_committed: int,
        block_mask: BlockMask | None,
    ) -> tuple[Tokens, KVState | None]:
        """Run T frames; see :class:`FrameAttention` for the arguments."""
        query, key, value, modulation = self.before_attention(tokens, condition, rotary)
        y, state = self.attention.attend(query, key, value, state, num_cached, num_committed, block_mask)
        return self.after_attention(tokens, y, modulation), state

    # Apart from the attention nothing depends on the length of the context: these two may be compiled once.
    def before_attention(
        self, tokens: Tokens, condition: Condition, rotary: Rotary
    ) -> tuple[Heads, Heads, Heads, Tensor]:
        """Projects tokens to queries, keys and values, and returns the modulation too."""
        modulation = self.modulation(condition)[:, :, None, None]
        shift, scale = modulation.chunk(6, dim=-1)[:2]
        return *self.attention.project(modulate(tokens, shift, scale), rotary), modulation

    def after_attention(self, tokens: Tokens, y: Heads, modulation: Tensor) -> Tokens:
        """Adds the attention's result `y`, and then the feed-forward part, to the tokens."""
        _, _, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        tokens = tokens + (1 + gate1) * self.attention.out_proj(y.reshape(tokens.shape))
        return tokens + (1 + gate2) * self.feed_forward(modulate(tokens, shift2, scale2))


class MambaLayer(nn.Module):
    """One Mamba2 scan over all tokens of all frames in raster order, and a feed-forward part."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.modulation = _modulation(config)
        self.scan = BlockScan(config, 1)
        self.feed_forward = FeedForward(config)
        self.heads_shape = (config.num_scan_heads, config.scan.head_dim, config.scan.state_dim)
        _start_small(config, self.scan.out_proj, self.feed_forward[-1])

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The empty states of a layer."""
        return LayerState(
            torch.zeros(batch_size, 1, *self.heads_shape, device=device),
            torch.zeros(batch_size, 1, CONV_TAPS - 1, self.scan.mixed, device=device, dtype=dtype),
            torch.zeros(batch_size, 0, 0, 2, 0, 0, device=device, dtype=dtype),
        )

    def forward(
        self,
        tokens: Tokens,
        condition: Condition,
        rotary: Rotary | None,
        state: LayerState | None,
        num_cached: int,
        num_committed: int,
        block_mask: BlockMask | None,
    ) -> tuple[Tokens, LayerState | None]:
        """Run T frames; of the arguments that only attention has a use for, nothing is read."""
        batch, frames, rows, columns, width = tokens.shape
        modulation = self.modulation(condition)[:, :, None, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        # To the block-wise scan the sequence is a film of single tokens, which are one block.
        sequence = modulate(tokens, shift1, scale1).reshape(batch, frames * rows * columns, 1, 1, width)
        mixed, after = self.scan(sequence, state, num_committed * rows * columns)
        tokens = tokens + (1 + gate1) * mixed.reshape(tokens.shape)
        tokens = tokens + (1 + gate2) * self.feed_forward(modulate(tokens, shift2, scale2))
        if state is None or after is None:
            return tokens, None
        return tokens, LayerState(after[0], after[1], state.kv_cache)
