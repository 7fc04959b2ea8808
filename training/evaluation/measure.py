"""One measurement from checkpoint to JSON record: walks, dreams, quality, figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from training.data.pose_input import model_poses
from training.evaluation.figures import column_figures
from training.evaluation.imagine import Dream, Dreamer
from training.evaluation.nearest_view import Places, locate
from training.evaluation.options import RecallOptions
from training.evaluation.pose_drift import DEFINITION, drift_figures, drift_line
from training.evaluation.quality import Metric, measure_frames, metrics
from training.recording.rollouts import Rollouts
from wm_gym.statistics import NUM_RESAMPLES, Bootstrap
from wm_gym.world_model import WorldModel

COPIES = ("copy_last", "copy_nearest")


@dataclass(frozen=True)
class Recall:
    """A measurement: the record, and what pictures are made from.

    Attributes:
        record: JSON types.
        real: uint8 [M, C + F, H, W, 3].
        dreamed: by memory, uint8 [M, F, H, W, 3].
        psnr: by memory, float64 [M, F].
    """

    record: dict[str, Any]
    real: np.ndarray
    dreamed: dict[str, np.ndarray]
    psnr: dict[str, np.ndarray]


def check_conditioning(model: WorldModel, walks: Rollouts, options: RecallOptions) -> None:
    """Raises ValueError unless the model can be told what the options say."""
    if options.conditioning == "pose" and not model.config.has_poses:
        raise ValueError("The checkpoint is not conditioned on poses (pose.size is 0); take --conditioning action.")
    model_poses(model.config, walks.pose, options.conditioning)


def measure_recall(
    model: WorldModel,
    walks: Rollouts,
    num_context: int,
    options: RecallOptions,
    num_denoising_steps: int,
    noise_seed: int,
    batch_size: int,
) -> Recall:
    """Dreams on from the context of every walk and compares with what was really there.

    Args:
        walks: M walks of `num_context` + F frames.

    Raises:
        ValueError: walks that do not fit the model, or have no pose.
    """
    check_conditioning(model, walks, options)
    places = locate(walks.pose.numpy(), num_context, options.seen_distance, options.seen_angle)
    batch_size = min(batch_size, len(walks.seeds))
    dreamer = Dreamer(
        model,
        batch_size,
        num_denoising_steps,
        noise_seed,
        options.cleared_frames,
        options.feedback,
        options.conditioning,
        options.refresh_steps,
        options.refresh_frames,
    )
    dreams = {memory: dreamer.dream(walks, num_context, memory) for memory in options.memory}
    dreamed = {memory: dream.frames.numpy() for memory, dream in dreams.items()}
    real = walks.frames.numpy()
    columns = {**dreamed, **_copies(walks.frames, num_context, places)}
    if options.goes_exactly_back:
        columns.pop("copy_nearest")  # the very frame that is asked for
    available = metrics(walks.frames.shape[2:], model.device)
    values = {metric.name: _values(metric, columns, real[:, num_context:]) for metric in available if metric.measure}
    bootstrap = Bootstrap(len(walks.seeds))
    record = {
        "definitions": _definitions(dreamer, num_context, options),
        "metrics": {metric.name: _about(metric) for metric in available},
        "seen_fraction": round(float(places.seen.mean()), 4),
        "columns": {
            name: {column: column_figures(part, places, bootstrap) for column, part in of_column.items()}
            for name, of_column in values.items()
        },
        **_pose_drift(dreams),
    }
    return Recall(record, real, dreamed, {memory: values["psnr"][memory] for memory in options.memory})


def _copies(frames: Tensor, num_context: int, places: Places) -> dict[str, np.ndarray]:
    """What costs nothing: the last frame of the context, and the one with the nearest pose. uint8 [M, F, H, W, C]."""
    context = frames[:, :num_context].numpy()
    last = np.broadcast_to(context[:, -1:], (len(context), places.nearest.shape[1], *context.shape[2:]))
    nearest = np.stack([one[indices] for one, indices in zip(context, places.nearest, strict=True)])
    return dict(zip(COPIES, (last, nearest), strict=True))


def _values(metric: Metric, columns: dict[str, np.ndarray], real: np.ndarray) -> dict[str, np.ndarray]:
    assert metric.measure is not None
    values = {
        name: measure_frames(metric.measure, frames, real)
        for name, frames in tqdm(columns.items(), desc=metric.name, unit="column", leave=False)
    }
    if "kept" in values and "cleared" in values:
        values["kept_minus_cleared"] = values["kept"] - values["cleared"]
    return values


def _pose_drift(dreams: Mapping[str, Dream]) -> dict[str, Any]:
    """Empty where the model did not tell its poses itself."""
    drift = {memory: drift_figures(one.pose_errors) for memory, one in dreams.items() if one.pose_errors is not None}
    return {"pose_drift": {"definition": DEFINITION, "by_steps": drift}} if drift else {}


def _about(metric: Metric) -> dict[str, str]:
    return {"unit": metric.unit} if metric.measure else {"not_measured": metric.reason}


def _definitions(dreamer: Dreamer, num_context: int, options: RecallOptions) -> dict[str, str]:
    refresh = {}
    if options.refresh_steps:
        num_read = options.refresh_frames or options.refresh_steps
        refresh["refreshed"] = f"every {options.refresh_steps} frames memory is made anew from the newest {num_read}"
    words = {
        "kept": f"the model has read all {num_context} frames of the context",
        "cleared": f"the model has read the last {dreamer.num_frames_read('cleared', num_context)} frames only",
    }
    return {
        **{memory: words[memory] for memory in options.memory},
        **refresh,
        "dreamed": "every frame follows "
        + ("those imagined before it" if options.feedback == "dreamed" else "real ones"),
        "copy_last": "the last frame of the context, unchanged",
        "copy_nearest": "the frame of the context with the nearest pose, unchanged",
        "seen": f"a frame of the context was taken within {options.seen_distance:g} cells and with a heading within "
        f"{options.seen_angle:g} degrees; the nearest of them is the one revisited",
        "by_length": "frames after the context, from 1",
        "by_distance": "frames back to the one revisited; seen frames only",
        "change_over_distance": "of the least-squares line over seen frames, from the near distance to the far one",
        "low, high": f"95% interval over mazes, percentile bootstrap of {NUM_RESAMPLES} resamples",
    }


def print_recall(record: dict[str, Any]) -> None:
    """The main figures as a table."""
    kind = f"{record['protocol']} by {record['conditioning']}, {record['context']} -> {record['frames']} frames"
    print(f"{kind}, {len(record['seeds'])} mazes, {record['seen_fraction']:.0%} of the frames seen in the context")
    for name, about in record["metrics"].items():
        if "not_measured" in about:
            print(f"{name}: not measured. {about['not_measured']}")
            continue
        print(f"{name + (' ' + about['unit'] if about['unit'] else ''):>20} {'all':>22} {'seen':>22} {'unseen':>22}")
        for column, figures in record["columns"][name].items():
            print(f"{column:>20} " + " ".join(f"{_text(figures[part]):>22}" for part in ("all", "seen", "unseen")))
    for memory, drift in record.get("pose_drift", {"by_steps": {}})["by_steps"].items():
        print(drift_line(memory, drift))


def _text(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f}, {figure['high']:.3f})"
