"""Memories of many dreams in buffers that are written in place: a :class:`ModelState` as a fast step keeps it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wm_gym.array_typing import ModelFrame, RowCount
from wm_gym.nn.block_scan import CONV_TAPS
from wm_gym.nn.config import WorldModelConfig
from wm_gym.nn.map_memory import map_shape
from wm_gym.nn.state import LayerState, ModelState, PendingFrame
from wm_gym.odometry import odometry_state_size

_ROWS_PER_COPY = 64  # bounds the memory that copying takes; a row may have tens of megabytes


@dataclass(frozen=True)
class LayerMemory:
    """One layer's part of the buffers, for B dreams.

    Attributes:
        ssm_state: ``[B, K, h, d, s]``, float32 or bfloat16.
        conv_state: ``[B, K, taps - 1, channels]``.
        kv_ring: ``[B, window, N, 2, h, d]``; the frame that was the n-th to enter memory sits in slot n % window.
        place_map: ``[B, G * G, V + 1]`` float32, in the layer that has a map.
    """

    ssm_state: Tensor
    conv_state: Tensor
    kv_ring: Tensor
    place_map: Tensor | None = None


class StepMemory:
    """Buffers for the memories of B dreams. Tensors never move, so a CUDA graph may write them.

    Layers of one block size share a buffer ``[layers, B, …]``, so that a row is copied by a few calls.

    Attributes:
        layers: views of the buffers, one per layer.
        frame, action, has_action, dreamed, pose, odometry: the pending frame, as in
            :class:`wm_gym.nn.state.PendingFrame`; ``pose`` is None unless the model is conditioned on poses,
            ``odometry`` unless it has odometry.
        place_map: that of the layer that has one, or None.
        only_dreamed: whether it is known, without asking the device, that the pending frames of all rows were dreamed.
        num_committed: frames in memory, ``[B]``.

    Args:
        config: shape of the model.
        batch_size: B.
        device: where the buffers are.
        dtype: that of convolution states, keys and values.
        state_dtype: that of SSM states.
    """

    def __init__(
        self,
        config: WorldModelConfig,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
        if state_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"state_dtype is {state_dtype}; expected torch.float32 or torch.bfloat16.")
        c = self.config = config
        self.batch_size, self.device, self.dtype, self.state_dtype = batch_size, device, dtype, state_dtype
        self._parts: list[Tensor] = []

        def buffer(count: int, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
            # A CUDA graph outlives any inference mode that it was built in.
            with torch.inference_mode(False):
                part = torch.zeros(count, batch_size, *shape, dtype=dtype, device=device)
            self._parts.append(part)
            return part

        head_dim = c.width // c.num_attention_heads
        scan: dict[int, tuple[Tensor, Tensor]] = {}
        for size in sorted(set(c.block_sizes)):
            count, blocks = c.block_sizes.count(size), c.num_tokens // size**2
            scan[size] = (
                buffer(count, blocks, c.num_scan_heads, c.scan.head_dim, c.scan.state_dim, dtype=state_dtype),
                buffer(count, blocks, CONV_TAPS - 1, c.num_scan_channels),
            )
        rings = buffer(len(c.block_sizes), c.window, c.num_tokens, 2, c.num_attention_heads, head_dim)
        place_map = buffer(1, *map_shape(c), dtype=torch.float32)[0] if c.has_map else None
        self.place_map = place_map
        layers = []
        for i, size in enumerate(c.block_sizes):
            number = c.block_sizes[:i].count(size)
            ssm_states, conv_states = scan[size]
            layers.append(
                LayerMemory(ssm_states[number], conv_states[number], rings[i], place_map if i == c.map.layer else None)
            )
        self.layers = tuple(layers)
        self.frame = buffer(1, c.frame_channels, c.frame_height, c.frame_width, dtype=torch.float32)[0]
        if c.action_kind == "discrete":
            self.action = buffer(1, dtype=torch.int64)[0]
        else:
            self.action = buffer(1, c.action_size, dtype=torch.float32)[0]
        self.has_action = buffer(1, dtype=torch.bool)[0]
        self.dreamed = buffer(1, dtype=torch.bool)[0]
        self.pose = buffer(1, c.pose.size, dtype=torch.float32)[0] if c.has_poses else None
        self.odometry = buffer(1, odometry_state_size(c), dtype=torch.float32)[0] if c.has_odometry else None
        self.num_committed = buffer(1, dtype=torch.int64)[0]
        self.only_dreamed = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers; they do not change."""
        return sum(part.numel() * part.element_size() for part in self._parts)

    @torch.no_grad()
    def clear(self) -> None:
        """Zeros everywhere."""
        self.only_dreamed = False
        for part in self._parts:
            part.zero_()

    @torch.no_grad()
    def load(self, state: ModelState, rows: Tensor | None = None) -> None:
        """Take over memories from a state.

        Args:
            state: as `WorldModel.prefill` or `step` give it.
            rows: where its rows go, int64 ``[state.batch_size]``; None: everywhere.

        Raises:
            ValueError: if the state has seen no frame, is of another model, has or lacks poses, or has another number
                of rows.
        """
        self.only_dreamed = False
        if rows is None:
            rows = torch.arange(self.batch_size, device=self.device)
        if len(rows) != state.batch_size:
            raise ValueError(f"a state of {state.batch_size} rows was given for {len(rows)} rows.")
        pairs = self._matched(state)
        for buffer, values in pairs:
            if values.shape[1:] != buffer.shape[1:]:
                raise ValueError(
                    f"the state is of another model: a part of a row has shape {tuple(values.shape[1:])}; "
                    f"expected {tuple(buffer.shape[1:])}."
                )
        rows = rows.to(self.device)
        slots = torch.arange(self.config.window, device=self.device)
        positions = (slots - state.num_committed.to(self.device)[:, None]) % self.config.window
        rings = {id(own.kv_ring) for own in self.layers}
        for buffer, values in pairs:
            values = values.to(buffer.device, buffer.dtype)
            buffer.index_copy_(0, rows, _pick(values, positions) if id(buffer) in rings else values)

    def _matched(self, state: ModelState) -> list[tuple[Tensor, Tensor]]:
        """Buffers and what a state has for them; keys and values are newest last there. Raises as `load` does."""
        pending = state.pending
        if pending is None:
            raise ValueError("the state has seen no frame yet; call prefill with at least one real frame first.")
        if len(state.layers) != len(self.layers):
            raise ValueError(f"the state has {len(state.layers)} layers; expected {len(self.layers)}.")
        if (pending.pose is None) != (self.pose is None):
            raise ValueError("the state must hold a pose exactly if the model is conditioned on poses.")
        if (pending.odometry is None) != (self.odometry is None):
            raise ValueError("the state must hold odometry exactly if the model has odometry.")
        pairs = [
            (self.frame, pending.frame),
            (self.action, pending.action),
            (self.has_action, pending.has_action),
            (self.dreamed, pending.dreamed),
            (self.num_committed, state.num_committed),
        ]
        if self.pose is not None and pending.pose is not None:
            pairs.append((self.pose, pending.pose))
        if self.odometry is not None and pending.odometry is not None:
            pairs.append((self.odometry, pending.odometry))
        for own, layer in zip(self.layers, state.layers, strict=True):
            pairs += [
                (own.ssm_state, layer.ssm_state),
                (own.conv_state, layer.conv_state),
                (own.kv_ring, layer.kv_cache),
            ]
            if (own.place_map is None) != (layer.place_map is None):
                raise ValueError("the state must hold a map exactly if the model has one.")
            if own.place_map is not None and layer.place_map is not None:
                pairs.append((own.place_map, layer.place_map))
        return pairs

    @torch.no_grad()
    def state(self, rows: Tensor | None = None) -> ModelState:
        """A copy as a state: of the given rows, int64 ``[rows]``, or of all. SSM states are float32 in it.

        ``load`` of it gives back the same buffers, bit by bit.
        """
        if rows is None:
            rows = torch.arange(self.batch_size, device=self.device)
        rows = rows.to(self.device)
        num_committed = self.num_committed[rows]
        slots = (num_committed[:, None] + torch.arange(self.config.window, device=self.device)) % self.config.window
        layers = tuple(
            LayerState(
                own.ssm_state[rows].float(),
                own.conv_state[rows],
                _pick(own.kv_ring[rows], slots),
                None if own.place_map is None else own.place_map[rows],
            )
            for own in self.layers
        )
        pose, odometry = (None if part is None else part[rows] for part in (self.pose, self.odometry))
        pending = PendingFrame(
            self.frame[rows], self.action[rows], self.has_action[rows], self.dreamed[rows], pose, odometry
        )
        return ModelState(layers, num_committed, pending)

    @torch.no_grad()
    def correct(self, frame: ModelFrame) -> None:
        """Put real frames ``[B, C, H, W]`` in place of the newest ones; they will enter memory as they are."""
        self.only_dreamed = False
        self.frame.copy_(frame)
        self.dreamed.zero_()

    @torch.no_grad()
    def copy_rows(self, rows: Tensor, source: StepMemory, source_rows: Tensor) -> None:
        """``self[rows] = source[source_rows]``; both int64 ``[n]`` on the device. No host synchronisation.

        The two memories must be of one model and have the same dtypes.
        """
        self.only_dreamed = False
        for some, others in zip(rows.split(_ROWS_PER_COPY), source_rows.split(_ROWS_PER_COPY), strict=True):
            for part, other in zip(self._parts, source._parts, strict=True):
                part.index_copy_(1, some, other.index_select(1, others))

    def resized(self, batch_size: int) -> StepMemory:
        """A copy with more rows; those beyond the old ones are zero."""
        config, device, dtype, state_dtype = self.config, self.device, self.dtype, self.state_dtype
        larger = StepMemory(config, batch_size, device, dtype, state_dtype)
        for part, own in zip(larger._parts, self._parts, strict=True):
            part[:, : self.batch_size] = own
        return larger


def _pick(frames: Tensor, index: RowCount) -> Tensor:
    """``out[b, i] = frames[b, index[b, i]]`` for ``index`` ``[B, n]``."""
    rows = torch.arange(len(frames), device=frames.device)
    return frames[rows[:, None], index]
