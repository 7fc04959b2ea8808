"""Figures of one dream against what really happened: image quality by frame, rewards, and where the two part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The mean squared error of rounding to 256 levels. Without a floor, equal frames would have an infinite PSNR; with it,
# none exceeds 58.9 dB.
MIN_SQUARED_ERROR = 1 / 12
SSIM_KERNEL = 11  # pixels, as in the paper; smaller frames have no SSIM
FRAMES_PER_BATCH = 128


def psnr(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame in dB, 10 log10(255^2 / MSE), with MSE >= `MIN_SQUARED_ERROR`.

    Args:
        frames, reference: uint8 [..., H, W, C], of shapes that broadcast against each other.

    Returns:
        float64 [...].

    Raises:
        TypeError: if one of them is not uint8.
    """
    if frames.dtype != np.uint8 or reference.dtype != np.uint8:
        raise TypeError(f"PSNR is defined here for uint8 frames, got {frames.dtype} and {reference.dtype}.")
    error = np.square(frames.astype(np.float64) - reference.astype(np.float64)).mean((-3, -2, -1))
    return 10 * np.log10(255.0**2 / np.maximum(error, MIN_SQUARED_ERROR))


def ssim(frames: np.ndarray, reference: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Structural similarity of each frame (Wang et al. 2004; Gaussian window of 11 pixels, sigma 1.5), by torchmetrics.

    Args:
        frames, reference: uint8 [T, H, W, C].
        device: where it is computed.

    Returns:
        float64 [T], 1 for equal frames; NaN if a side is shorter than the window.

    Raises:
        ImportError: torchmetrics is missing.
        TypeError, ValueError: arrays that are not uint8, or of different shapes.
    """
    if frames.dtype != np.uint8 or reference.dtype != np.uint8:
        raise TypeError(f"SSIM is defined here for uint8 frames, got {frames.dtype} and {reference.dtype}.")
    if frames.shape != reference.shape:
        raise ValueError(f"SSIM compares frames of one shape, got {list(frames.shape)} and {list(reference.shape)}.")
    if min(frames.shape[1:3]) < SSIM_KERNEL:
        return np.full(len(frames), np.nan)
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError("SSIM needs torchmetrics: `pip install wm-gym[compare]`.") from error
    import torch

    values = []
    for start in range(0, len(frames), FRAMES_PER_BATCH):
        # The window is applied to [T, C, H, W].
        window = slice(start, start + FRAMES_PER_BATCH)
        pair = (torch.tensor(part[window], device=device).movedim(-1, 1) for part in (frames, reference))
        ours, theirs = (part.to(torch.float32) for part in pair)
        values.append(structural_similarity_index_measure(ours, theirs, data_range=255.0, reduction="none"))
    return torch.cat([torch.atleast_1d(value) for value in values]).double().cpu().numpy()  # pyright: ignore


@dataclass(frozen=True)
class RewardAgreement:
    """How rewards other than 0 agree, each matched with at most one of the other side. Steps count from 0."""

    hits: tuple[tuple[int, int], ...]  # (real step, dreamed step) of each match
    misses: tuple[int, ...]  # real steps whose reward was not dreamed
    false_alarms: tuple[int, ...]  # dreamed steps whose reward was not real

    @property
    def precision(self) -> float | None:
        """Hits over all dreamed rewards; None if there are none."""
        return _ratio(len(self.hits), len(self.hits) + len(self.false_alarms))

    @property
    def recall(self) -> float | None:
        """Hits over all real rewards; None if there are none."""
        return _ratio(len(self.hits), len(self.hits) + len(self.misses))


def match_rewards(real: np.ndarray, dreamed: np.ndarray, tolerance: int) -> RewardAgreement:
    """Matches each reward other than 0 with one of the same value, at most `tolerance` steps earlier or later.

    Walking both sequences in time and taking the first that fits gives the largest number of matches, because all
    windows are equally wide.

    Args:
        real, dreamed: float [T].
        tolerance: in steps, from 0 on.

    Raises:
        ValueError: sequences of different lengths, or a negative tolerance.
    """
    if real.shape != dreamed.shape or real.ndim != 1:
        raise ValueError(f"Rewards are two sequences of one length, got shapes {real.shape} and {dreamed.shape}.")
    if tolerance < 0:
        raise ValueError(f"A tolerance is a number of steps from 0 on, got {tolerance}.")
    hits: list[tuple[int, int]] = []
    for value in np.unique(real[real != 0]):
        there = np.flatnonzero(real == value)
        imagined = np.flatnonzero(np.isclose(dreamed, value))
        i = j = 0
        while i < len(there) and j < len(imagined):
            if abs(there[i] - imagined[j]) <= tolerance:
                hits.append((int(there[i]), int(imagined[j])))
                i, j = i + 1, j + 1
            elif there[i] < imagined[j]:
                i += 1
            else:
                j += 1
    matched_real, matched_dreamed = {hit[0] for hit in hits}, {hit[1] for hit in hits}
    return RewardAgreement(
        tuple(sorted(hits)),
        tuple(int(step) for step in np.flatnonzero(real) if step not in matched_real),
        tuple(int(step) for step in np.flatnonzero(dreamed) if step not in matched_dreamed),
    )


def parting_step(psnr_per_step: np.ndarray, threshold: float, num_steps: int) -> int | None:
    """Where dream and reality part: the first step, counted from 1, of `num_steps` in a row below `threshold` dB.

    None if they never part. Raises ValueError if `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"Parting takes a number of steps from 1 on, got {num_steps}.")
    length = 0
    for step, value in enumerate(psnr_per_step, start=1):
        length = length + 1 if value < threshold else 0
        if length == num_steps:
            return step - num_steps + 1
    return None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
