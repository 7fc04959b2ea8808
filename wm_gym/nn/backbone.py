"""The raw network: noisy frames and conditions in, clean frames and event logits out."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from wm_gym.array_typing import (
    Actions,
    Condition,
    FrameMask,
    ModelFrames,
    NoiseLevels,
    Poses,
    RewardLogits,
    RowCount,
    TerminationLogits,
    Tokens,
)
from wm_gym.flow import expand_level
from wm_gym.nn.block_scan import CONV_TAPS
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.heads import EventHead, FrameHead, PatchEmbedding
from wm_gym.nn.layers import Layer, fourier_features
from wm_gym.nn.local_attention import Rotary
from wm_gym.nn.map_memory import MapMemory, Places, map_shape
from wm_gym.nn.noise_embedding import NoiseEmbedding
from wm_gym.nn.pose_embedding import PlanarPose
from wm_gym.nn.state import LayerState, PendingFrame
from wm_gym.ops import frame_block_mask


class Output(NamedTuple):
    """What the network says of each of T frames.

    Attributes:
        frame: prediction of the clean frame, in [-1, 1] up to error.
        reward_logits: over ``config.reward_values``, for the transition that led to the frame.
        termination_logits: whether that transition ended the episode.
    """

    frame: ModelFrames
    reward_logits: RewardLogits
    termination_logits: TerminationLogits


class ConditionEmbedding(nn.Module):
    """Noise level + action that led to the frame + optional pose, as one vector per frame."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width = config.condition_width
        self.width = width
        self.hide_actions = config.pose.hide_actions
        self.noise = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.no_action = nn.Parameter(torch.randn(width) * 0.02)
        if config.action_kind == "discrete":
            self.action: nn.Module = nn.Embedding(config.action_size, width)
            nn.init.normal_(self.action.weight, std=0.5)  # pyright: ignore[reportArgumentType]
        else:
            self.action = nn.Sequential(nn.Linear(config.action_size, width), nn.SiLU(), nn.Linear(width, width))
        self.pose = None
        if config.pose.kind == "planar":
            self.pose = PlanarPose(config)
        elif config.has_poses:
            self.pose = nn.Sequential(nn.Linear(config.pose.size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(
        self, noise_level: NoiseLevels, actions: Actions, has_action: FrameMask, pose: Poses | None
    ) -> Condition:
        """Embed; ``actions[:, t]`` led to frame t and is ignored where ``has_action`` is False."""
        if self.hide_actions:
            has_action = torch.zeros_like(has_action)
        action = torch.where(has_action[..., None], self.action(actions), self.no_action)
        condition = self.noise(fourier_features(noise_level, self.width)) + action
        if self.pose is not None and pose is not None:
            condition = condition + self.pose(pose)
        return F.silu(condition)


class Backbone(nn.Module):
    """Patch embedding, layers and heads."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = PatchEmbedding(config)
        self.condition = ConditionEmbedding(config)
        self.layers = nn.ModuleList(self.make_layers())
        self.map_memory = MapMemory(config) if config.has_map else None
        self.noise = NoiseEmbedding(config) if config.sample_noise else None
        self.frame_head = FrameHead(config)
        self.event_head = EventHead(config)
        # Whether a pass without memory runs on the fused kernels where it can; the results differ by rounding only.
        self.use_fused_kernels = True
        # Whether a pass with gradients keeps only each layer's input and computes the rest again when it is needed.
        self.checkpoint_layers = False

    def make_layers(self) -> list[nn.Module]:
        """The layers between embedding and heads. Networks to compare with put others here (`training.baselines`)."""
        return [Layer(self.config, size) for size in self.config.block_sizes]

    def initial_layers(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> tuple[LayerState, ...]:
        """Empty memories; ``dtype`` is that of activations, SSM states are float32."""
        c = self.config
        states = []
        for i, size in enumerate(c.block_sizes):
            has_map = self.map_memory is not None and i == c.map.layer
            blocks = c.num_tokens // size**2
            kv_shape = (batch_size, c.window, c.num_tokens, 2, c.num_attention_heads, c.width // c.num_attention_heads)
            states.append(
                LayerState(
                    torch.zeros(batch_size, blocks, c.num_scan_heads, c.scan.head_dim, c.scan.state_dim, device=device),
                    torch.zeros(batch_size, blocks, CONV_TAPS - 1, c.num_scan_channels, device=device, dtype=dtype),
                    torch.zeros(kv_shape, device=device, dtype=dtype),
                    torch.zeros(batch_size, *map_shape(c), device=device) if has_map else None,
                )
            )
        return tuple(states)

    def forward(
        self,
        frames: ModelFrames,
        noise_level: NoiseLevels,
        actions: Actions,
        has_action: FrameMask,
        pose: Poses | None,
        layers: tuple[LayerState, ...] | None = None,
        num_cached: RowCount | None = None,
        num_committed: int = 0,
    ) -> tuple[Output, tuple[LayerState, ...]]:
        """Run T frames after the memory in ``layers`` (None: from nothing, and no memory is returned).

        Args:
            frames: ``[B, T, C, H, W]`` at their noise levels ``[B, T]``.
            actions: ``[B, T]`` or ``[B, T, A]``; the action that led to each frame, where ``has_action`` ``[B, T]``.
            pose: ``[B, T, P]`` or None.
            num_cached: frames in memory per row.
            num_committed: leading frames that enter the memory that is returned; the others only read it.
        """
        condition = self.condition(noise_level, actions, has_action, pose)
        # Of frames that are nothing but noise.
        noise = None if self.noise is None else frames * expand_level(noise_level == 1, frames)
        if self.config.hide_noise:
            frames = frames * (1 - expand_level(noise_level, frames))
        tokens = self.embedding(frames, pose)
        if noise is not None and self.noise is not None:
            tokens = tokens + self.noise(noise).to(tokens.dtype)
        tokens, new_layers = self.run_layers(
            tokens, condition, layers, num_cached, num_committed, Places(noise_level, pose)
        )
        reward_logits, termination_logits = self.event_head(tokens)
        return Output(self.frame_head(tokens, condition), reward_logits, termination_logits), new_layers

    def filled_map(
        self, newest: PendingFrame, layers: tuple[LayerState, ...], num_cached: RowCount, known_from: float
    ) -> tuple[LayerState, ...]:
        """`layers`, in whose map the newest frames of dreams are written where nothing was known (`write_once`).

        A pass of one frame through the layers before the map; of what it makes, the map alone is kept. Real frames are
        not written: they enter memory as a whole. ``known_from``: weight from which on a place counts as known.
        """
        c, frame = self.config, newest.with_time()
        before = layers[c.map.layer].place_map
        assert self.map_memory is not None and before is not None and newest.pose is not None
        level = frame.frame.new_zeros(len(before), 1)
        condition = self.condition(level, frame.action, frame.has_action, frame.pose)
        tokens = self.embedding(frame.frame, frame.pose)
        head_dim = c.width // c.num_attention_heads
        rotary = Rotary.create(c.window + 1, c.token_rows, c.token_columns, head_dim, tokens.device)
        for layer, state in zip(self.layers[: c.map.layer], layers, strict=False):
            tokens = layer(tokens, condition, rotary, state, num_cached, 0, None)[0]
        place_map = before.clone()
        self.map_memory.fill_in(tokens, newest.pose, place_map, newest.dreamed, known_from)
        changed = dataclasses.replace(layers[c.map.layer], place_map=place_map)
        return (*layers[: c.map.layer], changed, *layers[c.map.layer + 1 :])

    def run_layers(
        self,
        tokens: Tokens,
        condition: Condition,
        layers: tuple[LayerState, ...] | None,
        num_cached: RowCount | None,
        num_committed: int,
        places: Places,
    ) -> tuple[Tokens, tuple[LayerState, ...]]:
        """All layers after each other; arguments as in `forward`, `places` for the map."""
        c = self.config
        frames = tokens.shape[1]
        length = frames + (0 if layers is None else c.window)
        head_dim = c.width // c.num_attention_heads
        rotary = Rotary.create(length, c.token_rows, c.token_columns, head_dim, tokens.device)
        fused = self.use_fused_kernels and tokens.dtype == torch.bfloat16 and fused_kernels_fit(c, tokens.device)
        if layers is None and fused:
            from wm_gym.nn.fused import run_layers

            before = {}
            if (map_memory := self.map_memory) is not None:
                before[c.map.layer] = lambda tokens: map_memory(tokens, places, None, 0)[0]
            layers_ = cast(Sequence[Layer], self.layers)
            return run_layers(layers_, tokens, condition, rotary, self.checkpoint_layers, before), ()
        block_mask = None
        if layers is None and tokens.is_cuda:
            block_mask = frame_block_mask(frames, c.num_tokens, c.window, tokens.device)
        new_layers = []
        for i, layer in enumerate(self.layers):
            before = None if layers is None else layers[i]
            place_map = None
            if self.map_memory is not None and i == c.map.layer:
                given = None if before is None else before.place_map
                read, place_map = self.map_memory(tokens, places, given, num_committed)
                tokens = tokens + read
            arguments = (tokens, condition, rotary, before, num_cached, num_committed, block_mask)
            tokens, after = self.run_layer(layer, *arguments)
            if after is not None:
                new_layers.append(dataclasses.replace(after, place_map=place_map))
        return tokens, tuple(new_layers)

    def run_layer(self, layer: nn.Module, *arguments: Any) -> tuple[Tokens, Any]:
        """One layer, of which only the input is kept for the backward pass if so configured."""
        if self.checkpoint_layers and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]
        return layer(*arguments)


def fused_kernels_fit(config: WorldModelConfig, device: torch.device) -> bool:
    """Whether the fused kernels of a pass without memory run on this device and take these sizes."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    head_dims = (config.scan.head_dim, config.scan.state_dim, config.width // config.num_attention_heads)
    # Tiles of the matrix units: powers of two, neither too small nor too large for a program's registers.
    return all(size in (16, 32, 64) for size in head_dims) and config.num_tokens % 16 == 0
