"""One run of the trials, from data to figures: it is trained, then it dreams on in rings that it has not seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.baselines.model import num_parameters
from training.benchmarks.trials.world import ENV_ID
from training.evaluation.imagine import Dreamer
from training.evaluation.nearest_view import locate
from training.evaluation.options import Memory
from training.evaluation.reward_head import head_figures
from training.evaluation.walks import recorded_walks
from training.loop.run import RunArguments, train
from training.recipes import Recipe
from training.recording.config import CollectConfig
from training.recording.rollouts import Rollouts, first_frames
from training.recording.workers import collect
from wm_gym.checkpoint import load_checkpoint
from wm_gym.comparison.metrics import psnr
from wm_gym.files import write_json
from wm_gym.seeds import FIRST_EVALUATION_SEED
from wm_gym.world_model import WorldModel

ENV = f"training.benchmarks.trials.world:{ENV_ID}"
POLICY = "training.benchmarks.trials.world:wander"
SEEN_ANGLE = 15.0  # degrees; pictures are 45 apart, so a frame was seen if the context showed the very same one
FEEDBACK_INTERVALS = (0, 1)  # none of the dreamed frames enters memory, or all do


@dataclass(frozen=True)
class Scale:
    """How much is done, for every run alike."""

    steps: int = 1000  # of training
    data_frames: int = 60_000  # that are recorded to be trained on
    walks: int = 64  # on which each run is measured
    context: int = 40  # frames of a walk before the dream
    frames: int = 40  # of the dream
    long_frames: int = 200  # of the dream in which memories are refreshed
    refresh_steps: int = 40

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1 or self.long_frames <= self.refresh_steps:
            raise ValueError(f"All sizes must be at least 1, and long_frames above refresh_steps, got {self}.")


def record_data(folder: Path, scale: Scale) -> tuple[Path, Rollouts]:
    """The store of episodes to be trained on, and the walks to be measured on. What is lacking is recorded."""
    collect(CollectConfig(env=ENV, out=folder / "data", frames=scale.data_frames, policy=POLICY))
    seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + scale.walks)
    num_frames = scale.context + max(scale.frames, scale.long_frames)
    return folder / "data", recorded_walks(folder / "walks", ENV, POLICY, seeds, num_frames, workers=1)


def trained(folder: Path, name: str, recipe: Recipe, data: Path) -> Path:
    """The checkpoint of a run, which goes on where it was stopped; a finished one stays as it is.

    Raises KeyboardInterrupt if the run is stopped now, before its end.
    """
    path = train(RunArguments(data, folder / f"{name}_{recipe.seed}", recipe, device="cpu", recipe_name=name))
    if load_checkpoint(path).metadata["steps"] < recipe.steps:
        raise KeyboardInterrupt
    return path


def recall_of(checkpoint: Path, walks: Rollouts, scale: Scale) -> dict[str, Any]:
    """How well frames are recalled that the context has shown, and how well rewards are foretold.

    Returns:
        "kept", "cleared": PSNR of each walk's seen frames, dB, by what the memory may keep of the context;
        "reward_f1": before a frame is seen, from the real frames before it (`training.evaluation.reward_head`).
    """
    model, short = WorldModel.from_checkpoint(str(checkpoint)), first_frames(walks, scale.context + scale.frames)
    figures: dict[str, Any] = {}
    for memory in ("kept", "cleared"):
        values, seen = seen_psnr(Dreamer(model, len(walks.seeds)), short, scale.context, memory)
        figures[memory] = [round(float(one[where].mean()), 4) for one, where in zip(values, seen, strict=True)]
    rewards = head_figures(model, short, scale.context + scale.frames, 0, len(walks.seeds))
    return figures | {"reward_f1": rewards["from_noise"]["f1"], "num_parameters": num_parameters(model.config)}


def refresh_of(checkpoint: Path, walks: Rollouts, scale: Scale) -> dict[str, Any]:
    """Long dreams with and without state refresh, with and without dreamed frames fed back.

    Returns:
        By feedback interval: "never" and "refreshed": PSNR of each walk's seen frames from the first refresh on, and
        "…_per_frame", the mean over walks of every dreamed frame, seen or not.
    """
    model, long = WorldModel.from_checkpoint(str(checkpoint)), first_frames(walks, scale.context + scale.long_frames)
    figures: dict[str, Any] = {}
    for interval in FEEDBACK_INTERVALS:
        model.config = dataclasses.replace(model.config, feedback_interval=interval)
        of_interval = figures[str(interval)] = {}
        for name, steps in (("never", 0), ("refreshed", scale.refresh_steps)):
            dreamer = Dreamer(model, len(walks.seeds), refresh_steps=steps)
            values, seen = seen_psnr(dreamer, long, scale.context, "kept")
            after = slice(scale.refresh_steps, None)
            pairs = zip(values[:, after], seen[:, after], strict=True)
            of_interval[name] = [round(float(one[where].mean()), 4) for one, where in pairs]
            of_interval[f"{name}_per_frame"] = values.mean(0).round(4).tolist()
    return figures


def seen_psnr(dreamer: Dreamer, walks: Rollouts, num_context: int, memory: Memory) -> tuple[np.ndarray, np.ndarray]:
    """PSNR of all dreamed frames, dB, and which of them the context has shown; both [M, F].

    Raises ValueError for a walk that comes back to nothing.
    """
    seen = locate(walks.pose.numpy(), num_context, 0.5, SEEN_ANGLE).seen
    if not seen.any(1).all():
        raise ValueError(f"A walk comes back to nothing that {num_context} frames have shown; take a longer context.")
    dreamed = dreamer.imagine(walks, num_context, memory).numpy()
    return psnr(dreamed, walks.frames[:, num_context:].numpy()), seen


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` gives, which is kept at `path`, so that trials that are stopped go on."""
    if not path.exists():
        write_json(path, measure())
    return json.loads(path.read_text())
