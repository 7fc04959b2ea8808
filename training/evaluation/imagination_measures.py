"""From dreamed and real frames to figures: return, sharpness, diversity, fidelity, histories, Fréchet distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.evaluation.figures import BIN, listed
from training.evaluation.frame_reader import FEATURES, FrameReader, frechet_distance, read_frames
from training.evaluation.nearest_view import locate
from training.recording.rollouts import Rollouts
from wm_gym.comparison.metrics import psnr, ssim
from wm_gym.statistics import Bootstrap, Estimate

FIRST = 30  # imagined step from which on a dream counts as on its own
MARGIN = 20  # steps before the turn that a return leaves out: their two views are too close to each other
_FRECHET_RESAMPLES = 200


@dataclass(frozen=True)
class Dreams:
    """Of M walks of C + N frames: what was dreamed on the N steps there and the N + C - 1 back, uint8 on the CPU.

    Attributes:
        frames: [M, 2 N + C - 1, H, W, 3], led by poses.
        other_noise: the same of another noise seed.
        other_context: the same after another maze's context.
        by_action: [M, N, H, W, 3], led by actions; None where the measurement is by pose.
    """

    frames: Tensor
    other_noise: Tensor
    other_context: Tensor
    by_action: Tensor | None = None


@dataclass(frozen=True)
class Reality:
    """The real walks, and what is known of them.

    Attributes:
        frames: uint8 [M, C + N, H, W, 3].
        num_context: C.
        unseen: bool [M, N], imagined frames whose pose no frame of the context had.
        gradients: float64 [M, N], gradient energy of the real frames.
        actions: int64 [M, C + N - 1].
        read_right: bool [M, N - 1], whether the frame reader tells the action between two real frames.
        reference: mean and covariance of features of other real walks.
        bootstrap: over the M mazes.
        figures: of real frames.
    """

    frames: np.ndarray
    num_context: int
    unseen: np.ndarray
    gradients: np.ndarray
    actions: np.ndarray
    read_right: np.ndarray
    reference: tuple[Tensor, Tensor]
    bootstrap: Bootstrap
    figures: dict[str, Any]

    @classmethod
    def of(
        cls, walks: Rollouts, others: Rollouts, num_context: int, seen: tuple[float, float], reader: FrameReader
    ) -> Reality:
        """Measures M walks, with M others as the reference."""
        after, bootstrap = walks.frames[:, num_context:], Bootstrap(len(walks.seeds))
        sums = feature_sums(others.frames[:, num_context + FIRST :], reader)
        reference = _moments(torch.from_numpy(sums.sum(0)))
        unseen = ~locate(walks.pose.numpy(), num_context, *seen).seen
        actions = walks.actions.numpy()
        right = read_frames(reader, after)[1].numpy() == actions[:, num_context:]
        floor = _frechet(after[:, FIRST:], reference, reader, bootstrap)
        figures = {
            "unseen_fraction": {"value": round(float(unseen.mean()), 4)},
            "frechet": floor,
            "actions_read": _one(bootstrap.mean(right * 1.0, np.ones((1, 1, right.shape[1]), np.bool_))),
        }
        gradients = gradient_energy(after.numpy())
        frames = walks.frames.numpy()
        return cls(frames, num_context, unseen, gradients, actions, right, reference, bootstrap, figures)


def row_figures(dreams: Dreams, reality: Reality, reader: FrameReader) -> dict[str, Any]:
    """All figures of one way of dreaming."""
    num_steps = reality.unseen.shape[1]
    there = dreams.frames[:, :num_steps]
    figures = {
        **_returns(dreams.frames.numpy(), reality),
        **_against_reality(dreams.frames.numpy(), reality),
        "sharpness": _sharpness(there, reality),
        "frechet": _frechet(there[:, FIRST:], reality.reference, reader, reality.bootstrap),
        **_diversity(dreams, reality),
        **_fidelity(there, reality, reader),
        **_histories(dreams, reality),
    }
    if dreams.by_action is not None:
        figures |= {
            "sharpness_by_action": _sharpness(dreams.by_action, reality),
            "frechet_by_action": _frechet(dreams.by_action[:, FIRST:], reality.reference, reader, reality.bootstrap),
        }
    return figures


def definitions(num_context: int, num_steps: int) -> dict[str, str]:
    """What each figure means."""
    return {
        "walk": f"{num_context} real frames, {num_steps} imagined ones on a real walk, then the same poses backwards "
        "to the first of the context; led by poses unless it says by_action",
        "unseen": "frames whose pose is farther than 0.5 cells or 30 degrees from each of the context",
        "return_psnr, return_ssim": f"second view of a place against the first, unseen frames of steps {FIRST} to "
        f"{num_steps - MARGIN}; by distance: imagined frames between the two views",
        "sharpness": f"gradient energy (mean of absolute differences of neighbouring pixels) of steps {FIRST} to "
        f"{num_steps} over that of the real frames",
        "frechet": "Fréchet distance of features of a network trained on real frames alone, to real frames of other "
        "mazes; under 'real': that of real frames",
        "diversity": "mean difference of two dreams of different noise, over that of two mazes (the real frames of one "
        "step); unknown: unseen frames, known: the context's own frames on the way back",
        "actions": f"share of actions that the network reads from pairs of imagined frames of steps {FIRST} on, over "
        "that from pairs of real ones",
        "history": "PSNR to the real frames of the context on the way back, after their own context minus after "
        "another maze's: what memory is worth",
        "psnr_first_10, psnr_all": "of imagined frames to the one real continuation: a sample loses about 3 dB where "
        "nothing is known",
        "recall": "PSNR to the real frames of the context, seen again at the end of the way back",
        "low, high": "95% interval over mazes, percentile bootstrap",
    }


def gradient_energy(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring pixels of uint8 frames [M, T, H, W, C]: float64 [M, T]."""
    values = []
    for maze in frames:
        x = maze.astype(np.float32)
        values.append((np.abs(np.diff(x, axis=1)).mean((1, 2, 3)) + np.abs(np.diff(x, axis=2)).mean((1, 2, 3))) / 2)
    return np.stack(values).astype(np.float64)


def feature_sums(frames: Tensor, reader: FrameReader) -> np.ndarray:
    """For each maze: number, sum and sum of outer products of its frames' features, float64 [M, 1 + D + D * D]."""
    features = read_frames(reader, frames)[0].double()
    products = torch.einsum("mti,mtj->mij", features, features).flatten(1)
    count = torch.full((len(features), 1), float(features.shape[1]), dtype=torch.float64)
    return torch.cat([count, features.sum(1), products], dim=1).numpy()


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    mean = sums[1 : 1 + FEATURES] / sums[0]
    return mean, sums[1 + FEATURES :].view(FEATURES, FEATURES) / sums[0] - mean[:, None] * mean


def _frechet(
    frames: Tensor, reference: tuple[Tensor, Tensor], reader: FrameReader, bootstrap: Bootstrap
) -> dict[str, Any]:
    def distance(sums: np.ndarray) -> float:
        return frechet_distance(_moments(torch.from_numpy(sums)), reference)

    return _one(bootstrap.of_sums(feature_sums(frames, reader), distance, _FRECHET_RESAMPLES))


def _returns(frames: np.ndarray, reality: Reality) -> dict[str, Any]:
    """First and second view of each place: step j there, step 2 N - j of the way."""
    num_steps = reality.unseen.shape[1]
    first, second = frames[:, : num_steps - 1], frames[:, num_steps : 2 * num_steps - 1][:, ::-1]
    apart = 2 * (num_steps - 1 - np.arange(num_steps - 1))  # frames between the two views
    steps = np.arange(num_steps - 1)
    middle = reality.unseen[:, :-1] & (steps >= FIRST) & (steps < num_steps - MARGIN)
    bins = np.arange(0, apart.max() + 1, 2 * BIN)
    groups = np.stack([reality.unseen[:, :-1] & (apart >= low) & (apart < low + 2 * BIN) for low in bins])
    figures: dict[str, Any] = {}
    for name, metric in (("return_psnr", psnr), ("return_ssim", ssim)):
        try:
            values = np.stack([metric(np.ascontiguousarray(b), a) for a, b in zip(first, second, strict=True)])
        except ImportError:  # SSIM without torchmetrics
            continue
        by_distance = reality.bootstrap.mean(values, groups)
        figures[name] = _one(reality.bootstrap.mean(values, middle[None])) | {
            "by_distance": {"from": bins.tolist(), **_all(by_distance)}
        }
    return figures


def _against_reality(frames: np.ndarray, reality: Reality) -> dict[str, Any]:
    context, num_steps = reality.num_context, reality.unseen.shape[1]
    to_real = np.stack([psnr(a, b) for a, b in zip(frames[:, :num_steps], reality.frames[:, context:], strict=True)])
    recalled = _recall(frames, reality)
    mean, everything = reality.bootstrap.mean, np.ones((1, 1, num_steps), np.bool_)
    return {
        "psnr_first_10": _one(mean(to_real[:, :10], everything[..., :10])),
        "psnr_all": _one(mean(to_real, everything)),
        "recall": _one(mean(recalled, np.ones((1, 1, recalled.shape[1]), np.bool_))),
    }


def _recall(frames: np.ndarray, reality: Reality) -> np.ndarray:
    """PSNR of the context's frames, seen again at the end of the way: float64 [M, C]."""
    again = np.ascontiguousarray(frames[:, -reality.num_context :][:, ::-1])
    pairs = zip(again, reality.frames[:, : reality.num_context], strict=True)
    return np.stack([psnr(ours, real) for ours, real in pairs])


def _sharpness(there: Tensor, reality: Reality) -> dict[str, Any]:
    late = np.arange(reality.unseen.shape[1]) >= FIRST - 1
    return _one(reality.bootstrap.ratio(gradient_energy(there.numpy()), reality.gradients, late[None, None]))


def _diversity(dreams: Dreams, reality: Reality) -> dict[str, Any]:
    num_steps, context = reality.unseen.shape[1], reality.num_context
    real = reality.frames[:, context:]
    between = _difference(real, np.roll(real, 1, axis=0))
    late = np.arange(num_steps) >= FIRST - 1
    apart = _difference(dreams.frames.numpy(), dreams.other_noise.numpy())
    unseen = (reality.unseen & late)[None]
    known = np.ones((1, 1, context), np.bool_)
    of_context = reality.frames[:, :context]
    between_contexts = _difference(of_context, np.roll(of_context, 1, axis=0))
    ratio = reality.bootstrap.ratio
    return {
        "diversity_unknown": _one(ratio(apart[:, :num_steps], between, unseen)),
        "diversity_known": _one(ratio(apart[:, -context:], between_contexts, known)),
    }


def _fidelity(there: Tensor, reality: Reality, reader: FrameReader) -> dict[str, Any]:
    right = read_frames(reader, there)[1].numpy() == reality.actions[:, reality.num_context :]
    late = (np.arange(right.shape[1]) >= FIRST)[None, None]
    return {"actions": _one(reality.bootstrap.ratio(right * 1.0, reality.read_right * 1.0, late))}


def _histories(dreams: Dreams, reality: Reality) -> dict[str, Any]:
    own, other = (_recall(frames.numpy(), reality) for frames in (dreams.frames, dreams.other_context))
    everything = np.ones((1, 1, own.shape[1]), np.bool_)
    return {"history": _one(reality.bootstrap.mean(own - other, everything))}


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean absolute difference of frames uint8 [M, T, H, W, C]: float64 [M, T]."""
    pairs = zip(first, second, strict=True)
    return np.stack([np.abs(a.astype(np.int16) - b).mean((1, 2, 3)) for a, b in pairs]).astype(np.float64)


def _all(estimate: Estimate) -> dict[str, Any]:
    return {name: listed(getattr(estimate, name)) for name in ("value", "low", "high", "num_frames")}


def _one(estimate: Estimate) -> dict[str, Any]:
    return {name: values[0] for name, values in _all(estimate).items()}
