"""The network of a :class:`WorldModel` for a single step: packed weights, memories written in place, few kernels.

Computes what `Backbone.forward` does with one or two frames after a memory; a test holds one against the other.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.array_typing import Action, FrameMask, ModelFrame, ModelFrames, NoiseLevels, Pose
from wm_gym.engine.memory import LayerMemory, StepMemory
from wm_gym.nn.backbone import ConditionEmbedding
from wm_gym.nn.heads import patchify
from wm_gym.nn.layers import Layer, fourier_features
from wm_gym.nn.local_attention import Rotary
from wm_gym.nn.map_memory import MapMemory, Places
from wm_gym.ops import step as ops
from wm_gym.world_model import WorldModel

_PARTS_PER_LAYER = 9  # shift, scale and gate of scan, attention and feed-forward part


class NetworkOutput(NamedTuple):
    """What the network says of the newest frame of each dream: see `wm_gym.nn.backbone.Output`."""

    frame: ModelFrame  # [B, C, H, W]
    reward_logits: Tensor  # [B, R]
    termination_logits: Tensor  # [B]


class StepNetwork:
    """A frozen copy of a model's weights, arranged for steps.

    Args:
        model: where the weights come from; later changes to it are not seen.
        dtype: of activations and of the weights of matrix products.
        backend: which version of the operations runs.
    """

    def __init__(self, model: WorldModel, dtype: torch.dtype, backend: ops.Backend = "auto") -> None:
        backbone = model.backbone
        self.config, self.dtype = model.config, dtype
        self._backend: ops.Backend = backend
        self._condition = _ConditionTable(backbone.condition)
        layers = [layer for layer in backbone.layers if isinstance(layer, Layer)]
        self._layers = [_LayerWeights(layer, dtype, backend) for layer in layers]
        modulations = [layer.modulation for layer in layers] + [backbone.frame_head.modulation]
        self._modulation = torch.cat([m.weight.detach() for m in modulations]).to(dtype)
        self._modulation_bias = torch.cat([m.bias.detach() for m in modulations]).to(dtype)
        embedding, head, events = backbone.embedding, backbone.frame_head, backbone.event_head
        self._embed = _cast(embedding.proj.weight, dtype)
        self._position = _cast(embedding.position.flatten(0, 1) + embedding.proj.bias, dtype)
        self._ray = _frozen(embedding.ray)
        self._map = _map_in(backbone.map_memory, dtype)
        self._noise = _frozen(backbone.noise)
        self._pixels = _LinearWeights(head.proj, dtype)
        self._events = (_LinearWeights(events.hidden, dtype), _LinearWeights(events.out, dtype))
        c = model.config
        head_dim = c.width // c.num_attention_heads
        rotary = Rotary.create(c.window + 2, c.token_rows, c.token_columns, head_dim, model.device)
        self._cos, self._sin = rotary.cos.contiguous(), rotary.sin.contiguous()

    def embed_actions(self, actions: tuple[Action, ...], has_action: FrameMask, poses: tuple[Pose, ...]) -> Tensor:
        """What the condition holds beside the noise level: ``[B, F, condition_width]`` for F frames.

        Args:
            actions: F times ``[B]`` or ``[B, A]``, the action that led to each frame.
            has_action: ``[B, F]``, False where there is none.
            poses: F times ``[B, P]``, or nothing.
        """
        if self.config.pose.hide_actions:
            has_action = torch.zeros_like(has_action)
        return self._condition(actions, has_action, poses)

    def embed_levels(self, levels: tuple[float, ...]) -> Tensor:
        """The part of F noise levels in the condition, ``[F, condition_width]``."""
        device = self._modulation.device
        return self._condition.levels(torch.tensor(levels, device=device))

    def __call__(
        self,
        frames: ModelFrames,
        condition: Tensor,
        memory: StepMemory,
        num_committed: int,
        poses: tuple[Pose, ...] = (),
        levels: NoiseLevels | None = None,
        noise: ModelFrame | None = None,
    ) -> NetworkOutput:
        """Run F frames of each dream after its memory and say what the last of them is.

        Args:
            frames: ``[B, F, C, H, W]`` with F 1 or 2.
            condition: ``[B, F, condition_width]``, sum of the two embeddings.
            memory: the first ``num_committed`` (0 or 1) frames enter it, but for its counters and its pending frame.
            poses: F times ``[B, P]``, or nothing.
            levels: noise levels of the frames that enter memory, ``[B, num_committed]``, for a map.
            noise: ``[B, C, H, W]`` where the last frames are nothing but noise; None where they are not.
        """
        grid = (*frames.shape[:2], self.config.token_rows, self.config.token_columns, -1)
        tokens, modulation = self._begin(frames, condition, poses, noise)
        branch: Tensor | None = None
        gate: Tensor | None = None
        for i, own in enumerate(memory.layers):
            if self._map is not None and own.place_map is not None:
                tokens, branch, gate = _summed(tokens, branch, gate)
                assert levels is not None, "a map needs noise levels"
                seen_from = Places(levels, torch.stack(poses, dim=1))
                tokens.add_(self._map.step(tokens.view(grid), seen_from, own.place_map, num_committed).view_as(tokens))
            branch, gate = self._layer(i, tokens, branch, gate, modulation, memory, num_committed)
        x = self._adaln(tokens, branch, gate, modulation[-2], modulation[-1])
        newest = (*frames.shape[:2], self.config.num_tokens, self.config.width)
        # Contiguous, for a matrix product of strided rows would be one of many small ones.
        x, tokens = (part.view(newest)[:, -1].contiguous() for part in (x, tokens))
        return NetworkOutput(self._frame(x), *self._event_logits(tokens))

    def fill_in(self, condition: Tensor, memory: StepMemory) -> None:
        """Writes the pending frames that were dreamed into the map where it knew nothing: `Backbone.filled_map`.

        Args:
            condition: of the pending frames without noise, ``[B, 1, condition_width]``.
            memory: of which only the map changes.
        """
        assert self._map is not None and memory.pose is not None and memory.place_map is not None
        frames = memory.frame[:, None]
        tokens, modulation = self._begin(frames, condition, (memory.pose,))
        branch: Tensor | None = None
        gate: Tensor | None = None
        for i in range(self.config.map.layer):
            branch, gate = self._layer(i, tokens, branch, gate, modulation, memory, 0)
        tokens = _summed(tokens, branch, gate)[0]
        grid = (len(frames), 1, self.config.token_rows, self.config.token_columns, -1)
        self._map.fill_in(tokens.view(grid), memory.pose, memory.place_map, memory.dreamed, self.config.write_once)

    def _begin(
        self, frames: ModelFrames, condition: Tensor, poses: tuple[Pose, ...], noise: ModelFrame | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens ``[B * F, N, D]`` before the first layer, and the modulation of all layers, each ``[B * F, D]``.

        ``noise`` is that of the last frames, if they are nothing else and the model sees it.
        """
        c = self.config
        batch, length = frames.shape[:2]
        tokens = F.linear(patchify(frames.to(self.dtype), c.patch_size), self._embed)
        tokens = tokens.view(batch * length, c.num_tokens, c.width).add_(self._position)
        if self._ray is not None:
            tokens.add_(self._ray(torch.stack(poses, dim=1)).view_as(tokens))
        if self._noise is not None and noise is not None:
            tokens.view(batch, length, c.num_tokens, c.width)[:, -1].add_(self._noise(noise[:, None]).flatten(1, 3))
        modulation = F.linear(F.silu(condition).to(self.dtype).flatten(0, 1), self._modulation, self._modulation_bias)
        return tokens, modulation.split(c.width, dim=-1)

    def _layer(
        self,
        index: int,
        tokens: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        modulation: tuple[Tensor, ...],
        memory: StepMemory,
        num_committed: int,
    ) -> tuple[Tensor, Tensor]:
        """One layer over `tokens`, to which the branch before it is added in place; its last branch and that gate."""
        c, weights, own = self.config, self._layers[index], memory.layers[index]
        length = len(tokens) // memory.batch_size
        grid = (memory.batch_size, length, c.token_rows, c.token_columns, -1)
        heads = (memory.batch_size, length, c.num_tokens, 3, c.num_attention_heads, c.width // c.num_attention_heads)
        angles = self._cos[: c.window + length], self._sin[: c.window + length]
        part = modulation[index * _PARTS_PER_LAYER : (index + 1) * _PARTS_PER_LAYER]
        x = self._adaln(tokens, branch, gate, part[0], part[1])
        branch = weights.scan(x.view(grid), own, num_committed).view_as(tokens)
        x = self._adaln(tokens, branch, part[2], part[3], part[4])
        branch = weights.attend(x, heads, angles, own, memory.num_committed, num_committed).view_as(tokens)
        x = self._adaln(tokens, branch, part[5], part[6], part[7])
        return weights.feed_forward(x), part[8]

    def _adaln(
        self, tokens: Tensor, branch: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor
    ) -> Tensor:
        return ops.residual_adaln(tokens, branch, gate, shift, scale, backend=self._backend)

    def _frame(self, tokens: Tensor) -> ModelFrame:
        c = self.config
        pixels = self._pixels(tokens).view(
            -1, c.token_rows, c.token_columns, c.frame_channels, c.patch_size, c.patch_size
        )
        pixels = pixels.permute(0, 3, 1, 4, 2, 5).float()
        return pixels.reshape(-1, c.frame_channels, c.frame_height, c.frame_width)

    def _event_logits(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden, out = self._events
        x = F.gelu(hidden(F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)))
        logits = out(x.mean(dim=1, dtype=torch.float32).to(self.dtype)).float()
        return logits[:, :-1], logits[:, -1]


def _summed(tokens: Tensor, branch: Tensor | None, gate: Tensor | None) -> tuple[Tensor, None, None]:
    """The tokens with the branch that waited to be added to them, in place."""
    if branch is not None and gate is not None:
        tokens.add_((1 + gate[:, None]) * branch)
    return tokens, None, None


class _LinearWeights:
    """Weight and bias of a linear map, cast once."""

    def __init__(self, linear: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(linear, nn.Linear)
        self.weight = _cast(linear.weight, dtype)
        self.bias = None if linear.bias is None else _cast(linear.bias, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """The map and then the tanh form of GELU; on a GPU in the epilogue of the matrix product."""
        if x.is_cuda and self.bias is not None:
            y = torch.ops.aten._addmm_activation(self.bias, x.flatten(0, -2), self.weight.t(), use_gelu=True)
            return y.view(*x.shape[:-1], -1)
        return F.gelu(self(x), approximate="tanh")


class _LayerWeights:
    """Weights of one layer, and its three parts without norms and residuals."""

    def __init__(self, layer: Layer, dtype: torch.dtype, backend: ops.Backend) -> None:
        scan, attention, feed_forward = layer.block_scan, layer.local_attention, layer.feed_forward
        self.block_size = scan.block_size
        self.backend: ops.Backend = backend
        self.in_proj, self.scan_out = _LinearWeights(scan.in_proj, dtype), _LinearWeights(scan.out_proj, dtype)
        self.conv_weight, self.conv_bias = _cast(scan.conv_weight), _cast(scan.conv_bias)
        self.dt_bias, self.skip = _cast(scan.dt_bias), _cast(scan.skip)
        self.a = -torch.exp(_cast(scan.log_decay))
        self.norm_weight = _cast(scan.norm_weight)
        self.qkv, self.attention_out = _LinearWeights(attention.qkv, dtype), _LinearWeights(attention.out_proj, dtype)
        self.query_norm, self.key_norm = _cast(attention.query_norm), _cast(attention.key_norm)
        self.hidden, self.out = _LinearWeights(feed_forward[0], dtype), _LinearWeights(feed_forward[2], dtype)

    def scan(self, x: Tensor, memory: LayerMemory, num_committed: int) -> Tensor:
        """Block-wise scan of ``[B, F, rows, columns, D]``, as `BlockScan.forward`."""
        y = ops.scan_step(
            self.in_proj(x),
            self.conv_weight,
            self.conv_bias,
            self.dt_bias,
            self.a,
            self.skip,
            memory.ssm_state,
            memory.conv_state,
            self.block_size,
            num_committed,
            backend=self.backend,
        )
        return self.scan_out(ops.gated_norm(y, self.norm_weight, backend=self.backend))

    def attend(
        self,
        x: Tensor,
        heads: tuple[int, ...],
        angles: tuple[Tensor, Tensor],
        memory: LayerMemory,
        num_cached: Tensor,
        num_committed: int,
    ) -> Tensor:
        """Frame-local attention, as `LocalAttention.forward`; ``heads`` is the shape of queries, keys and values."""
        qkv = self.qkv(x).view(heads)
        y = ops.ring_attention(
            qkv,
            self.query_norm,
            self.key_norm,
            *angles,
            memory.kv_ring,
            num_cached,
            num_committed,
            backend=self.backend,
        )
        return self.attention_out(y)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden.gelu(x))


class _ConditionTable:
    """`ConditionEmbedding` in parts: the noise level, which is known ahead, and the rest. In float32."""

    def __init__(self, embedding: ConditionEmbedding) -> None:
        self.width = embedding.width
        self._noise, self._pose = _frozen(embedding.noise), _frozen(embedding.pose)
        self._no_action = _cast(embedding.no_action)
        self._table: Tensor | None = None
        self._action = None
        if isinstance(embedding.action, nn.Embedding):
            self._table = torch.cat([_cast(embedding.action.weight), self._no_action[None]])
        else:
            self._action = _frozen(embedding.action)

    def levels(self, levels: NoiseLevels) -> Tensor:
        assert self._noise is not None
        return self._noise(fourier_features(levels, self.width))

    def __call__(self, actions: tuple[Action, ...], has_action: FrameMask, poses: tuple[Pose, ...]) -> Tensor:
        given = torch.stack(actions, dim=1)
        if self._table is not None:
            condition = F.embedding(given.masked_fill(~has_action, len(self._table) - 1), self._table)
        else:
            assert self._action is not None
            condition = torch.where(has_action[..., None], self._action(given), self._no_action)
        if self._pose is not None:
            condition = condition + self._pose(torch.stack(poses, dim=1))
        return condition


def _cast(parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return parameter.detach().to(dtype).contiguous()


def _map_in(module: MapMemory | None, dtype: torch.dtype) -> MapMemory | None:
    """A copy that later training leaves alone, with weights of matrix products in `dtype`."""
    if module is None:
        return None
    copied = copy.deepcopy(module).requires_grad_(False)
    for linear in (copied.narrow, copied.lift, copied.gather, copied.out):
        linear.to(dtype)
    return copied


def _frozen(module: nn.Module | None) -> nn.Module | None:
    """A copy that later training leaves alone."""
    if module is None:
        return None
    return copy.deepcopy(module).float().requires_grad_(False)
