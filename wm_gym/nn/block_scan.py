"""The paper's block-wise scan: Mamba2 over (time, rows, columns) of each spatial block, with a state per block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import Tokens
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.state import LayerState
from wm_gym.ops import causal_conv, ssd_scan

CONV_TAPS = 4


def to_blocks(tokens: Tokens, block_size: int) -> Tensor:
    """Cut the token grid into blocks: ``[B, T, rows, columns, D]`` to sequences ``[B * K, T * block_size**2, D]``.

    Inside a sequence time is the slowest axis, then the block's rows, then its columns.
    """
    batch, frames, rows, columns, width = tokens.shape
    s = block_size
    x = tokens.reshape(batch, frames, rows // s, s, columns // s, s, width)
    return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(batch * (rows // s) * (columns // s), frames * s * s, width)


def from_blocks(sequences: Tensor, block_size: int, shape: torch.Size) -> Tokens:
    """Inverse of :func:`to_blocks`; ``shape`` is that of the token grid."""
    batch, frames, rows, columns, _ = shape
    s = block_size
    x = sequences.reshape(batch, rows // s, columns // s, frames, s, s, sequences.shape[-1])
    return x.permute(0, 3, 1, 4, 2, 5, 6).reshape(batch, frames, rows, columns, sequences.shape[-1])


class BlockScan(nn.Module):
    """Mamba2 mixer (arXiv 2405.21060) applied block by block (arXiv 2505.20171)."""

    def __init__(self, config: WorldModelConfig, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size
        self.num_heads = config.num_scan_heads
        self.num_groups = config.scan.num_groups
        self.head_dim = config.scan.head_dim
        self.state_dim = config.scan.state_dim
        self.inner = config.scan.expand * config.width
        self.mixed = config.num_scan_channels
        self.in_proj = nn.Linear(config.width, self.inner + self.mixed + self.num_heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(CONV_TAPS, self.mixed).uniform_(-1, 1) / math.sqrt(CONV_TAPS))
        self.conv_bias = nn.Parameter(torch.zeros(self.mixed))
        step = torch.exp(torch.empty(self.num_heads).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.log_decay = nn.Parameter(torch.log(torch.empty(self.num_heads).uniform_(1, 16)))
        self.skip = nn.Parameter(torch.ones(self.num_heads))
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, config.width, bias=False)

    def forward(
        self, tokens: Tokens, state: LayerState | None, num_committed: int
    ) -> tuple[Tokens, tuple[Tensor, Tensor] | None]:
        """Mix the tokens of T frames.

        Args:
            tokens: ``[B, T, rows, columns, D]``.
            state: the layer's memory; None starts from nothing and returns no state.
            num_committed: how many of the leading frames enter the memory that is returned. The others read it only.

        Returns:
            Tokens of the same shape, and (ssm_state, conv_state) after ``num_committed`` frames.
        """
        batch = tokens.shape[0]
        sequences = to_blocks(tokens, self.block_size)
        gate, mixed, dt = self.in_proj(sequences).split([self.inner, self.mixed, self.num_heads], dim=-1)
        conv_state = None if state is None else state.conv_state.flatten(0, 1)
        mixed, padded = causal_conv(mixed, self.conv_weight, self.conv_bias, conv_state)
        projection = self.num_groups * self.state_dim
        x, b, c = F.silu(mixed).to(gate.dtype).split([self.inner, projection, projection], dim=-1)
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        b, c = (z.unflatten(-1, (self.num_groups, self.state_dim)) for z in (b, c))
        dt = F.softplus(dt.float() + self.dt_bias)
        a = -torch.exp(self.log_decay.float())
        ssm_state = None if state is None else state.ssm_state.flatten(0, 1)

        committed = None if state is None else num_committed * self.block_size**2
        y, new_ssm_state = ssd_scan(x, dt, a, b, c, self.skip, ssm_state, committed)
        y = y.flatten(-2) * F.silu(gate)
        y = F.rms_norm(y.float(), (self.inner,), self.norm_weight.float(), 1e-5).to(gate.dtype)
        out = from_blocks(self.out_proj(y), self.block_size, tokens.shape)
        if committed is None:
            return out, None
        new_conv_state = padded[:, committed : committed + CONV_TAPS - 1]
        return out, (new_ssm_state.unflatten(0, (batch, -1)), new_conv_state.unflatten(0, (batch, -1)))
