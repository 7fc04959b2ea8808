"""The memory of a dream: values that go in and come out of the network, never hidden in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from wm_gym.array_typing import (
    Action,
    ConvState,
    FrameMap,
    KVCache,
    ModelFrame,
    OdometryState,
    Pose,
    RowCount,
    RowMask,
    SSMState,
)

T = TypeVar("T")


@dataclass(frozen=True)
class LayerState:
    """What one layer keeps of the frames in memory.

    Attributes:
        ssm_state: one SSM state per block, float32.
        conv_state: the last inputs of the scan's short convolution, per block.
        kv_cache: keys (before rotation) and values of the last ``window`` frames, newest last.
        place_map: what was written by place (`wm_gym.nn.map_memory`), float32, in the one layer that has it.
    """

    ssm_state: SSMState
    conv_state: ConvState
    kv_cache: KVCache
    place_map: FrameMap | None = None


@dataclass(frozen=True)
class PendingFrame:
    """The newest frame: known, not yet in memory. It enters in the pass that denoises the next one.

    Attributes:
        frame: in [-1, 1].
        action: the action that led to it; anything where ``has_action`` is False.
        has_action: False for the first frame of a dream.
        dreamed: whether the model made it itself. How much of such a frame enters memory, `feedback_interval` says, and
            odometry does not look at it: it shows what was expected.
        pose: its pose, if the model is conditioned on poses.
        odometry: from which, beside this frame, a model with odometry predicts the pose of the next one. A sequence
            of frames has none.
    """

    frame: ModelFrame
    action: Action
    has_action: RowMask
    dreamed: RowMask
    pose: Pose | None
    odometry: OdometryState | None = None

    def corrected(self, frame: ModelFrame) -> PendingFrame:
        """The same with a real frame in place of a dreamed one; it enters memory as it is."""
        return dataclasses.replace(self, frame=frame, dreamed=torch.zeros_like(self.dreamed))

    def with_time(self) -> PendingFrame:
        """The same with an axis of one time step, ``[B, 1, …]``: a sequence of one frame."""
        return self._each(lambda t: t[:, None])

    def at_time(self, part: int | slice) -> PendingFrame:
        """A frame or a part of a sequence ``[B, T, …]``."""
        return self._each(lambda t: t[:, part])

    def followed_by(self, other: PendingFrame) -> PendingFrame:
        """Two sequences after each other in time. Raises ValueError if only one of them has poses."""
        if (self.pose is None) != (other.pose is None):
            raise ValueError("poses were given for some frames of this dream and not for others; give all or none.")
        first, then = (dataclasses.replace(part, odometry=None) for part in (self, other))
        return _map(lambda a, b: torch.cat([a, b], dim=1), first, then)

    def _each(self, function: Callable[[Tensor], Tensor]) -> PendingFrame:
        return _map(function, self)


@dataclass(frozen=True)
class ModelState:
    """Everything that a dream remembers, for a batch of B independent dreams.

    Attributes:
        layers: one :class:`LayerState` per layer.
        num_committed: frames in memory, per row.
        pending: the newest frame, or None while no frame has been seen.
    """

    layers: tuple[LayerState, ...]
    num_committed: RowCount
    pending: PendingFrame | None = None

    @property
    def batch_size(self) -> int:
        """Number of dreams, B."""
        return self.num_committed.shape[0]

    @property
    def place_map(self) -> FrameMap | None:
        """The map of the layer that has one."""
        return next((layer.place_map for layer in self.layers if layer.place_map is not None), None)

    @property
    def pose(self) -> Pose | None:
        """The pose of the newest frame, of models that are conditioned on poses."""
        return None if self.pending is None else self.pending.pose

    @property
    def num_frames(self) -> RowCount:
        """Frames seen so far, the pending one included, per row ``[B]``."""
        return self.num_committed + int(self.pending is not None)

    def num_bytes(self) -> int:
        """Bytes that the state holds, all rows together; constant from the first ``window`` frames to the last."""
        return sum(t.numel() * t.element_size() for t in self.to_tensors().values())

    def clone(self) -> ModelState:
        """A copy that shares no storage."""
        return _map(torch.clone, self)

    def to(self, device: torch.device | str) -> ModelState:
        """The state on another device."""
        return _map(lambda t: t.to(device), self)

    def index(self, rows: int | Tensor) -> ModelState:
        """Pick rows; the batch axis stays, also for a single row. ``rows``: a row number or a tensor of row numbers."""
        picked = torch.tensor([rows]) if isinstance(rows, int) else rows
        return _map(lambda t: t[picked.to(t.device)], self)

    def where(self, mask: RowMask, other: ModelState) -> ModelState:
        """Keep rows of this state where ``mask`` is True and take those of ``other`` elsewhere (like ``Tensor.where``).

        Raises:
            ValueError: if only one of the two states has seen frames.
        """
        if (self.pending is None) != (other.pending is None):
            raise ValueError("one state has seen frames and the other has not; prefill both before mixing their rows.")
        return _map(lambda a, b: torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)).to(a.device), a, b), self, other)

    def to_tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, fit for safetensors; inverse of :meth:`from_tensors`."""
        named: dict[str, Tensor] = {"num_committed": self.num_committed}
        for i, layer in enumerate(self.layers):
            for field in dataclasses.fields(layer):
                if (value := getattr(layer, field.name)) is not None:
                    named[f"layers.{i}.{field.name}"] = value
        if self.pending is not None:
            for field in dataclasses.fields(self.pending):
                if (value := getattr(self.pending, field.name)) is not None:
                    named[f"pending.{field.name}"] = value
        return {name: value.contiguous() for name, value in named.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> ModelState:
        """Rebuild a state from :meth:`to_tensors`.

        Raises:
            ValueError: if a tensor is missing.
        """
        num_layers = len({key.split(".")[1] for key in tensors if key.startswith("layers.")})
        try:
            layers = tuple(
                LayerState(
                    tensors[f"layers.{i}.ssm_state"],
                    tensors[f"layers.{i}.conv_state"],
                    tensors[f"layers.{i}.kv_cache"],
                    tensors.get(f"layers.{i}.place_map"),
                )
                for i in range(num_layers)
            )
            pending = None
            if any(key.startswith("pending.") for key in tensors):
                has_action = tensors["pending.has_action"]
                pending = PendingFrame(
                    tensors["pending.frame"],
                    tensors["pending.action"],
                    has_action,
                    # States of earlier versions lack it; there every frame entered as it was.
                    tensors.get("pending.dreamed", torch.zeros_like(has_action)),
                    tensors.get("pending.pose"),
                    tensors.get("pending.odometry"),
                )
            return cls(layers, tensors["num_committed"], pending)
        except KeyError as error:
            raise ValueError(f"the saved state lacks {error}; it is damaged or of another version.") from None


def _map(function: Callable[..., Tensor], first: T, *rest: T) -> T:
    """Apply ``function`` to corresponding tensors of nested dataclasses and tuples."""
    return cast(T, _map_any(function, first, *rest))


def _map_any(function: Callable[..., Tensor], first: Any, *rest: Any) -> Any:
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(first, *rest)
    if isinstance(first, tuple):
        return tuple(_map_any(function, *items) for items in zip(first, *rest, strict=True))
    names = [field.name for field in dataclasses.fields(first)]
    values = {n: _map_any(function, getattr(first, n), *(getattr(other, n) for other in rest)) for n in names}
    return dataclasses.replace(first, **values)
