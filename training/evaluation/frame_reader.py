"""A small network that was trained on real frames alone and reads dreamed ones: features, and actions from pairs.

No model is trained against it. It stands in for the network of FVD (I3D), whose weights cannot be had offline. Made by
``python -m training.evaluation.frame_reader --data STORE --out FILE.safetensors``.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from training.data.dataset import EpisodeDataset
from wm_gym.files import atomic_path

PACKAGED = Path(__file__).with_name("frame_reader.safetensors")
FEATURES = 64
_WIDTHS = (32, 64, 96, 128)
_FURTHEST = 8  # frames between two that count as of one place
_TEMPERATURE = 0.1
_WINDOW = 16  # frames of a training window


class FrameReader(nn.Module):
    """Frames of 64 x 64 pixels to features, and pairs of frames to logits of the action between them."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        sizes = (3, *_WIDTHS)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Conv2d(before, after, 5, 2, 2), nn.GroupNorm(8, after), nn.GELU()]
        self.look = nn.Sequential(*layers)
        self.features = nn.Linear(_WIDTHS[-1] * 16, FEATURES)
        self.pair = nn.Sequential(nn.Conv2d(2 * _WIDTHS[-1], 128, 3, 1, 1), nn.GELU(), nn.Flatten(), nn.Dropout(0.2))
        self.action = nn.Linear(128 * 16, num_actions)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Of frames uint8 ``[B, T, 64, 64, 3]``: features ``[B, T, 64]`` and action logits ``[B, T - 1, A]``."""
        batch, length = frames.shape[:2]
        pixels = frames.flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1
        looks = self.look(F.adaptive_avg_pool2d(pixels, 64))
        features = self.features(looks.flatten(1)).view(batch, length, FEATURES)
        looks = looks.view(batch, length, *looks.shape[1:])
        pairs = torch.cat([looks[:, :-1], looks[:, 1:]], dim=2).flatten(0, 1)
        return features, self.action(self.pair(pairs)).view(batch, length - 1, -1)


def load_frame_reader(path: Path = PACKAGED, device: torch.device | str = "cpu") -> FrameReader:
    """Raises FileNotFoundError if there is no such file, ValueError if it is no frame reader."""
    if not path.exists():
        raise FileNotFoundError(
            f"There is no frame reader at {path}; `python -m training.evaluation.frame_reader` makes one of a store."
        )
    tensors = safetensors.torch.load_file(path)
    if "action.bias" not in tensors:
        raise ValueError(f"{path} holds no frame reader.")
    reader = FrameReader(len(tensors["action.bias"]))
    reader.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return reader.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def read_frames(reader: FrameReader, frames: Tensor, rows: int = 8) -> tuple[Tensor, Tensor]:
    """Features ``[M, T, 64]`` of length 1 and likeliest actions ``[M, T - 1]`` of frames ``[M, T, H, W, 3]``."""
    device = next(reader.parameters()).device
    read = [reader(part.to(device)) for part in frames.split(rows)]
    features, logits = (torch.cat(parts).cpu() for parts in zip(*read, strict=True))
    return F.normalize(features, dim=-1), logits.argmax(-1)


def frechet_distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Between two normal distributions, (mean ``[D]``, covariance ``[D, D]``) each, float64 (arXiv 1706.08500)."""
    (mean_1, cov_1), (mean_2, cov_2) = first, second
    values, vectors = torch.linalg.eigh(cov_1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt().sum()
    return float((mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * cross)


@dataclass(frozen=True)
class Arguments:
    """Trains a frame reader on the recorded episodes of a store."""

    data: Path  # store of `training.collect`
    out: Path  # safetensors file
    minutes: float = 1.5
    steps: int = 20_000  # at most
    batch_size: int = 64  # windows of 16 frames
    learning_rate: float = 2e-3
    device: str = "cuda"


def train_reader(arguments: Arguments) -> FrameReader:
    """Learns actions by inverse dynamics, and features by telling frames of one place and time from all others.

    The second is InfoNCE (arXiv 1807.03748) over frames at most eight steps apart.
    """
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    dataset = EpisodeDataset(arguments.data, device=device)
    reader = FrameReader(int(dataset.action_space.n)).to(device)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = torch.optim.AdamW(reader.parameters(), lr=arguments.learning_rate, weight_decay=0.02)
    generator, started = torch.Generator().manual_seed(0), time.monotonic()
    for step in range(arguments.steps):
        progress = max(step / arguments.steps, (time.monotonic() - started) / 60 / arguments.minutes)
        if progress >= 1:
            break
        batch = dataset.sample(arguments.batch_size, _WINDOW, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features, logits = reader(batch.frames)
        action_loss = F.cross_entropy(logits.float().flatten(0, 1), batch.actions.flatten())
        place_loss = _contrast(features.float())
        optimizer.zero_grad(set_to_none=True)
        (action_loss + 0.3 * place_loss).backward()
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(1.0, 2 * (1 - progress))
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}: actions {float(action_loss):.3f}, places {float(place_loss):.3f}", flush=True)
    return reader.eval()


def _contrast(features: Tensor) -> Tensor:
    """InfoNCE of two frames of each window, at most `_FURTHEST` apart."""
    apart = int(torch.randint(1, _FURTHEST + 1, ()))
    first = F.normalize(features[:, 0], dim=-1)
    second = F.normalize(features[:, apart], dim=-1)
    return F.cross_entropy(first @ second.T / _TEMPERATURE, torch.arange(len(first), device=first.device))


def save_reader(reader: FrameReader, path: Path) -> None:
    """Writes the weights in half precision, about 1.2 MB."""
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(
            {name: tensor.half().contiguous() for name, tensor in reader.cpu().state_dict().items()}, temporary
        )


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m training.evaluation.frame_reader", description=__doc__)
    try:
        save_reader(train_reader(arguments), arguments.out)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
