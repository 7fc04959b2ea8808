"""The baselines' backbone and model: `WorldModel` with other layers between the same embeddings and heads."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.baselines.attention import rotary_angles
from training.baselines.config import Architecture, BaselineConfig, baseline_config
from training.baselines.layers import MambaLayer, TransformerLayer
from wm_gym.array_typing import Condition, RowCount, Tokens
from wm_gym.nn.backbone import Backbone
from wm_gym.nn.map_memory import Places
from wm_gym.ops import frame_block_mask
from wm_gym.world_model import ModelState, WorldModel, WorldModelConfig

PARAMETER_TOLERANCE = 0.03  # within which networks count as equally large


@dataclass(frozen=True)
class WindowState:
    """All memory of the bidirectional transformer: its last frames as they enter the layers, newest last.

    Attributes:
        tokens: ``[B, window, rows, columns, D]``.
        condition: ``[B, window, condition_width]``.
    """

    tokens: Tokens
    condition: Condition


class BaselineBackbone(Backbone):
    """Our embeddings and heads around the layers of a baseline."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__(config)
        self.use_fused_kernels = False  # they are those of our layers; `training.loop.step` compiles these instead

    def make_layers(self) -> list[nn.Module]:
        """The layers that the architecture has."""
        assert isinstance(self.config, BaselineConfig), "a baseline is built from a BaselineConfig"
        self.architecture: Architecture = self.config.architecture
        layer = MambaLayer if self.architecture == "mamba2" else TransformerLayer
        return [layer(self.config) for _ in range(self.config.num_layers)]

    def initial_layers(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        """Empty memories; ``dtype`` is that of activations."""
        c = self.config
        if self.architecture != "bidirectional":
            return tuple(layer.initial_state(batch_size, device, dtype) for layer in self._layers())
        tokens = torch.zeros(batch_size, c.window, c.token_rows, c.token_columns, c.width, device=device, dtype=dtype)
        return (WindowState(tokens, tokens.new_zeros(batch_size, c.window, c.condition_width)),)

    def run_layers(
        self,
        tokens: Tokens,
        condition: Condition,
        layers: tuple[Any, ...] | None,
        num_cached: RowCount | None,
        num_committed: int,
        places: Places,
    ) -> tuple[Tokens, tuple[Any, ...]]:
        """All layers after each other; arguments as in `Backbone.run_layers`, without a map.

        Raises:
            ValueError: if rows hold different numbers of frames, or the bidirectional transformer is given more frames
                than its window and the newest one.
        """
        count = 0 if layers is None or num_cached is None else _common_count(num_cached)
        if self.architecture == "bidirectional":
            return self._run_window(tokens, condition, layers, count, num_committed)
        return self._run_causal(tokens, condition, layers, count, num_committed)

    def _run_causal(
        self, tokens: Tokens, condition: Condition, layers: tuple[Any, ...] | None, count: int, num_committed: int
    ) -> tuple[Tokens, tuple[Any, ...]]:
        c, frames = self.config, tokens.shape[1]
        assert isinstance(c, BaselineConfig)
        rotary, block_mask = None, None
        if self.architecture != "mamba2":
            rotary = rotary_angles(count, frames, c, tokens.device)
            if layers is None and tokens.is_cuda and self.architecture != "bidirectional":
                window = c.window if self.architecture == "sliding_transformer" else frames
                block_mask = frame_block_mask(frames, c.num_tokens, window, tokens.device)
        states = []
        for i, layer in enumerate(self._layers()):
            before = None if layers is None else layers[i]
            arguments = (tokens, condition, rotary, before, count, num_committed, block_mask)
            tokens, after = self.run_layer(layer, *arguments)
            states.append(after)
        return tokens, () if layers is None else tuple(states)

    def _run_window(
        self, tokens: Tokens, condition: Condition, layers: tuple[Any, ...] | None, count: int, num_committed: int
    ) -> tuple[Tokens, tuple[Any, ...]]:
        window, fresh = self.config.window, tokens.shape[1]
        if layers is None:
            if fresh > window + 1:
                raise ValueError(
                    f"{fresh} frames given to a bidirectional transformer of {window + 1}; train it on stages of "
                    f"length {window + 1} or less, or set model.window."
                )
            return self._run_causal(tokens, condition, None, 0, 0)
        (before,) = layers
        tokens_then = torch.cat([before.tokens, tokens.to(before.tokens.dtype)], dim=1)
        condition_then = torch.cat([before.condition, condition.to(before.condition.dtype)], dim=1)
        entered = slice(num_committed, num_committed + window)
        after = (WindowState(tokens_then[:, entered], condition_then[:, entered]),)
        if num_committed == fresh:  # the frames are the memory: taking them in needs no pass, and nothing is predicted
            return tokens, after
        length = min(min(count, window) + fresh, window + 1)
        output, _ = self._run_causal(tokens_then[:, -length:], condition_then[:, -length:], None, 0, 0)
        return output[:, -fresh:], after

    def _layers(self) -> list[Any]:
        return list(self.layers)


def _common_count(num_cached: Tensor) -> int:
    low, high = (int(count) for count in num_cached.aminmax())
    if low != high:
        raise ValueError(
            f"rows hold {low} to {high} frames; this baseline's cache has one length for all rows, so give rows of "
            "equal age."
        )
    return high


class BaselineModel(WorldModel):
    """A world model of another architecture; everything that `WorldModel` does.

    Counts of frames live on the CPU, where they set the sizes of slices without waiting for the device. A full KV cache
    is extended in place: ``clone()`` a state before following two futures of it.
    """

    config_type = BaselineConfig
    backbone_type = BaselineBackbone

    def initial_state(self, batch_size: int) -> ModelState:
        """A memory in which nothing has been seen yet, for ``batch_size`` dreams."""
        state = super().initial_state(batch_size)
        return dataclasses.replace(state, num_committed=state.num_committed.cpu())


def build_model(config: WorldModelConfig) -> WorldModel:
    """The model of a configuration: ours, or the baseline that it names."""
    return BaselineModel(config) if isinstance(config, BaselineConfig) else WorldModel(config)


def model_type(config: dict[str, Any]) -> type[WorldModel]:
    """`WorldModel` or `BaselineModel`: the class of a checkpoint's configuration."""
    return BaselineModel if "architecture" in config else WorldModel


def num_parameters(config: WorldModelConfig) -> int:
    """Counted without allocating any."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def matching_config(architecture: Architecture, ours: WorldModelConfig, **changes: Any) -> BaselineConfig:
    """The baseline with the number of layers that comes closest to the parameters of `ours`.

    Where a whole layer is too coarse a step for `PARAMETER_TOLERANCE`, the hidden width of the feed-forward part
    changes too, to the nearest multiple of the width that is within it, or comes closest.
    """
    target = num_parameters(ours)
    wanted = changes.get("feed_forward_multiplier", ours.feed_forward_multiplier)
    best, error = None, math.inf
    for multiplier in sorted(range(1, 2 * wanted + 1), key=lambda m: abs(m - wanted)):
        sizes = changes | {"feed_forward_multiplier": multiplier}
        one, two = (num_parameters(baseline_config(architecture, n, ours, **sizes)) for n in (1, 2))
        num_layers = max(1, round(1 + (target - one) / (two - one)))
        config = baseline_config(architecture, num_layers, ours, **sizes)
        if (now := abs(num_parameters(config) / target - 1)) < error:
            best, error = config, now
        if best is not None and error <= PARAMETER_TOLERANCE:
            return best
    assert best is not None
    return best
