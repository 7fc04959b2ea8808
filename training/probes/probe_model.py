"""Small networks that read a maze out of frozen states, or out of one frame; and how probes are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OBJECT_WEIGHT = 0.05  # of the squared error in cells, beside the cross-entropy of walls


@dataclass(frozen=True)
class ProbeData:
    """S samples.

    Attributes:
        inputs: SSM states, one [S, K, h, d, s] per layer; or one tensor of frames, uint8 [S, H, W, C]; or what
            `training.probes.memory_query.views_back` gives; or maps and where they are asked
            (`training.probes.map_probe`).
        walls: float32 [S, P], 1 where there is a wall.
        inside: bool [S, P], positions inside the maze: the others are not asked.
        objects: float32 [S, k, 2], (forward, left) in cells.
        told: float32 [S, q], what the probe is told beside its inputs: where the agent is, or nothing (q = 0).
    """

    inputs: tuple[Tensor, ...]
    walls: Tensor
    inside: Tensor
    objects: Tensor
    told: Tensor

    def __len__(self) -> int:
        return len(self.walls)

    def rows(self, rows: Tensor) -> ProbeData:
        """Some of the samples."""
        inputs = tuple(part[rows] for part in self.inputs)
        return ProbeData(inputs, self.walls[rows], self.inside[rows], self.objects[rows], self.told[rows])

    @classmethod
    def joined(cls, parts: Sequence[ProbeData]) -> ProbeData:
        """All samples of several."""
        inputs = tuple(torch.cat(same) for same in zip(*(part.inputs for part in parts), strict=True))
        rest = zip(*((part.walls, part.inside, part.objects, part.told) for part in parts), strict=True)
        return cls(inputs, *(torch.cat(same) for same in rest))


@dataclass(frozen=True)
class ProbeTraining:
    """How a probe is trained. It stops when the validation loss has not fallen for `patience` epochs, and the weights
    with the lowest one stay."""

    num_readouts: int = 4  # of each head of each block, if states are read
    view_width: int = 16  # numbers that are kept of each column of a view, if the network is asked
    width: int = 0  # of the hidden layers; 0: 512, 32 if the network is asked, 96 if a map is read
    dropout: float = 0.2
    learning_rate: float = 0.0  # 0: 1e-3, or 3e-3 if the network is asked
    weight_decay: float = 0.05
    batch_size: int = 0  # samples; 0: 64, 4 if the network is asked, 16 if a map is read
    max_epochs: int = 200
    patience: int = 15


class AnyProbe(nn.Module, ABC):
    """What `train_probe` trains."""

    @abstractmethod
    def forward(self, inputs: Sequence[Tensor], told: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of walls [B, P], and objects [B, k, 2]."""

    @abstractmethod
    def loss(self, data: ProbeData) -> Tensor:
        """Of its answers to these samples."""


class StateReadout(nn.Module):
    """Learned readouts of an SSM state: numbers u^T S v of every head's matrix S [d, s], as Mamba2 itself reads S v.

    Blocks of a layer share u and v, which keeps the probe small.
    """

    def __init__(self, states: Sequence[Tensor], num_readouts: int) -> None:
        super().__init__()
        self.scales = [root_mean_square(state) for state in states]
        shapes = [state.shape[1:] for state in states]
        self.left = nn.ParameterList(torch.randn(h, num_readouts, d) / d**0.5 for _, h, d, _ in shapes)
        self.right = nn.ParameterList(torch.randn(h, num_readouts, s) / s**0.5 for _, h, _, s in shapes)
        self.num_features = sum(k * h * num_readouts for k, h, _, _ in shapes)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """[B, num_features] from one [B, K, h, d, s] per layer."""
        parts = []
        for state, scale, left, right in zip(states, self.scales, self.left, self.right, strict=True):
            read = torch.einsum("bkhds,hrs->bkhrd", state.float() / scale, right)
            parts.append((read * left).sum(-1).flatten(1))
        return torch.cat(parts, 1)


def root_mean_square(state: Tensor) -> float:
    """Never 0; without a float32 copy of a large tensor."""
    return max(float(torch.linalg.vector_norm(state, dtype=torch.float32)) / state.numel() ** 0.5, 1e-12)


class FrameReadout(nn.Module):
    """A frame's pixels in [-1, 1] as they are."""

    def __init__(self, frames: Tensor) -> None:
        super().__init__()
        self.num_features = frames[0].numel()

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """[B, H * W * C] from one uint8 [B, H, W, C]."""
        return inputs[0].flatten(1).float() / 127.5 - 1


class Probe(AnyProbe):
    """Readout, then an MLP of two hidden layers, which is also given what the probe is told."""

    def __init__(self, data: ProbeData, options: ProbeTraining) -> None:
        super().__init__()
        num_readouts, width = options.num_readouts, options.width
        is_frame = data.inputs[0].dtype == torch.uint8
        self.readout = FrameReadout(data.inputs[0]) if is_frame else StateReadout(data.inputs, num_readouts)
        self.num_positions, self.num_objects = data.walls.shape[1], data.objects.shape[1]
        self.norm = nn.LayerNorm(self.readout.num_features)
        self.mlp = nn.Sequential(
            nn.Linear(self.readout.num_features + data.told.shape[1], width),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            nn.Linear(width, self.num_positions + 2 * self.num_objects),
        )

    def forward(self, inputs: Sequence[Tensor], told: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of walls [B, P], and objects [B, k, 2]."""
        features = torch.cat([self.norm(self.readout(inputs)), told], 1)
        walls, objects = self.mlp(features).split([self.num_positions, 2 * self.num_objects], 1)
        return walls, objects.unflatten(1, (self.num_objects, 2))

    def loss(self, data: ProbeData) -> Tensor:
        """Cross-entropy of the walls inside the maze, and the weighted squared error of the objects."""
        walls, objects = self(data.inputs, data.told)
        return wall_loss(walls, data) + OBJECT_WEIGHT * F.mse_loss(objects, data.objects)


def train_probe(
    data: ProbeData,
    validation: ProbeData,
    options: ProbeTraining,
    seed: int = 0,
    make: Callable[[ProbeData, ProbeTraining], AnyProbe] = Probe,
) -> AnyProbe:
    """A probe trained on `data`, on its device.

    Args:
        seed: decides weights, order and dropout.
        make: a new probe, which maps inputs and what is told to walls and objects.
    """
    device = data.walls.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        probe = make(data, options).to(device)
        optimizer = torch.optim.AdamW(probe.parameters(), options.learning_rate, weight_decay=options.weight_decay)
        best, best_weights, waited = float("inf"), probe.state_dict(), 0
        for _ in range(options.max_epochs):
            probe.train()
            for rows in torch.randperm(len(data)).to(device).split(options.batch_size):
                optimizer.zero_grad()
                probe.loss(data.rows(rows)).backward()
                optimizer.step()
            loss = float(evaluate_loss(probe, validation, options.batch_size))
            waited += 1
            if loss < best:
                best, waited = loss, 0
                best_weights = {name: value.clone() for name, value in probe.state_dict().items()}
            if waited >= options.patience:
                break
    probe.load_state_dict(best_weights)
    return probe.eval()


def wall_loss(logits: Tensor, data: ProbeData) -> Tensor:
    """Cross-entropy of the walls inside the maze."""
    return F.binary_cross_entropy_with_logits(logits, data.walls, reduction="none")[data.inside].mean()


def object_loss(logits: Tensor, data: ProbeData, positions: Tensor) -> Tensor:
    """Cross-entropy of the positions [P, 2] around each object, by logits [S, k, P] of where it is."""
    near = (1 - (data.objects[..., None, :] - positions).abs()).clamp(min=0).prod(-1)
    return -(near * logits.log_softmax(-1)).sum(-1).mean()


def mean_places(logits: Tensor, positions: Tensor) -> Tensor:
    """Where objects are, [S, k, 2]: the mean of all positions [P, 2] under the softmax of logits [S, k, P]."""
    return logits.softmax(-1) @ positions


@torch.no_grad()
def evaluate_loss(probe: AnyProbe, data: ProbeData, batch_size: int) -> Tensor:
    """Mean loss over samples, without dropout."""
    probe.eval()
    parts = torch.arange(len(data), device=data.walls.device).split(batch_size)
    return torch.stack([probe.loss(data.rows(rows)) * len(rows) for rows in parts]).sum() / len(data)


@torch.no_grad()
def predict(probe: AnyProbe, data: ProbeData, batch_size: int) -> tuple[Tensor, Tensor]:
    """Walls bool [S, P] and objects float32 [S, k, 2]."""
    parts = torch.arange(len(data), device=data.walls.device).split(batch_size)
    walls, objects = zip(*(probe(data.rows(rows).inputs, data.told[rows]) for rows in parts), strict=True)
    return torch.cat(walls) > 0, torch.cat(objects)
