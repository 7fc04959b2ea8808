"""Image quality frame by frame: PSNR always, SSIM and LPIPS where their libraries (and weights) are installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wm_gym.comparison.metrics import MIN_SQUARED_ERROR, ssim

FRAMES_PER_BATCH = 512
LPIPS_NET = "alex"

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]  # uint8 [T, H, W, C] twice -> float64 [T]


@dataclass(frozen=True)
class Metric:
    """One figure of a frame against the real one.

    Attributes:
        name: as in the JSON file.
        unit: "dB", or "" for a plain number.
        measure: None where it cannot be measured; `reason` then says why.
        reason: one sentence.
    """

    name: str
    unit: str
    measure: Measure | None
    reason: str = ""


def metrics(frame_shape: tuple[int, ...], device: torch.device) -> list[Metric]:
    """PSNR, SSIM and LPIPS of frames [H, W, C], computed on `device`."""
    return [Metric("psnr", "dB", _psnr(device)), _ssim(frame_shape, device), _lpips(frame_shape, device)]


def _psnr(device: torch.device) -> Measure:
    """`wm_gym.comparison.metrics.psnr` on any device: long dreams of many mazes are millions of pixels."""

    def measure(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
        ours, theirs = (torch.tensor(images, device=device, dtype=torch.float32) for images in (frames, reference))
        error = (ours - theirs).square().double().mean((-3, -2, -1)).clamp(min=MIN_SQUARED_ERROR)
        return (10 * torch.log10(255.0**2 / error)).cpu().numpy()

    return measure


def _ssim(frame_shape: tuple[int, ...], device: torch.device) -> Metric:
    blank = np.zeros((1, *frame_shape), np.uint8)
    try:
        if np.isnan(ssim(blank, blank)).any():
            return Metric("ssim", "", None, f"frames of {frame_shape[0]}x{frame_shape[1]} are too small for SSIM.")
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        return Metric("ssim", "", None, str(error))
    return Metric("ssim", "", lambda frames, reference: ssim(frames, reference, str(device)))


def _lpips(frame_shape: tuple[int, ...], device: torch.device) -> Metric:
    """LPIPS (Zhang et al. 2018; AlexNet) by torchmetrics. Nothing is downloaded: the weights must be there."""
    if reason := _why_no_lpips(frame_shape):
        return Metric("lpips", "", None, reason)
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    def measure(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
        values = []
        for start in range(0, len(frames), FRAMES_PER_BATCH):
            part = slice(start, start + FRAMES_PER_BATCH)
            pair = [
                torch.tensor(images[part], device=device).movedim(-1, 1) / 127.5 - 1 for images in (frames, reference)
            ]
            with torch.no_grad():
                distance = learned_perceptual_image_patch_similarity(*pair, net_type=LPIPS_NET, reduction="none")
            values.append(torch.atleast_1d(distance).double().cpu())
        return torch.cat(values).numpy()

    return Metric("lpips", "", measure)


def _why_no_lpips(frame_shape: tuple[int, ...]) -> str:
    if frame_shape[2] != 3 or min(frame_shape[:2]) < 64:
        return "LPIPS takes frames of 3 channels and at least 64x64 pixels."
    try:
        import torchmetrics  # noqa: F401
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        return f"LPIPS needs torchmetrics and torchvision: `pip install torchmetrics torchvision` ({error})."
    url = AlexNet_Weights.IMAGENET1K_V1.url
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    return "" if weights.exists() else f"LPIPS needs AlexNet's weights: put {url} into torch.hub's checkpoints folder."


def measure_frames(metric: Measure, frames: np.ndarray, real: np.ndarray) -> np.ndarray:
    """float64 [M, F]; uint8 [M, F, H, W, C] twice, maze by maze, so that no copy of all frames is made."""
    return np.stack([metric(ours, theirs) for ours, theirs in zip(frames, real, strict=True)])
