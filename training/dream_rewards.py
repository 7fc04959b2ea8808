"""Do dreams give the rewards that reality gave? ``python -m training.dream_rewards --checkpoint C --data STORE``.

From moments shortly before a recorded reward a model dreams on under the recorded actions. Its reward head is right if
it first rewards within a few steps of the record. The file says so for each threshold of its probability, and which is
best: the `reward_threshold` of an environment in which agents are to learn. It also says how far ahead rewards are
dreamed, which is how long such dreams are worth going on.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from training.data.reward_moments import moments_before_rewards, steps_to_reward
from training.store.episode_store import EpisodeStore, open_store
from wm_gym.engine.rollout import load_contexts, make_graph, rollout
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance
from wm_gym.world_model import ModelState, WorldModel

THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9)
DISTANCE_ENDS = (5, 10, 15, 20, 30, 40, 60, 80, 120, 200)  # ranges of steps from a dream's start to its reward


@dataclass(frozen=True)
class DreamRewardsConfig:
    """Dreams rewards along recorded actions."""

    checkpoint: str
    """Packaged name or path of a model that dreams from actions."""
    data: Path
    """Store of episodes."""
    out: Path
    """JSON file."""
    split: str = "test"
    """Of the store."""
    episodes: int = 256
    """Dreams."""
    context: int = 400
    """Real frames that a dream starts from."""
    before_rewards: tuple[int, int] = (5, 100)
    """Steps from there to the recorded reward, at least and at most."""
    tolerance: int = 3
    """Steps by which a dreamed reward may come early or late."""
    num_denoising_steps: int = 1
    """Network passes for a frame."""
    batch: int = 64
    """Dreams at a time."""
    seed: int = 0
    """Draws moments and noise."""
    device: str = "auto"
    """Where the model runs; auto takes a GPU if there is one."""


@dataclass(frozen=True)
class Moments:
    """Recorded actions around the last frames of contexts."""

    frames: np.ndarray  # uint8 [N, T, H, W, C], the contexts
    actions: np.ndarray  # [N, T - 1 + S, ...]: between them, and from their ends on
    steps: np.ndarray  # int64 [N], to the next reward, 1 at least


def draw_moments(store: EpisodeStore, config: DreamRewardsConfig) -> Moments:
    """Moments of the split, equally likely. Raises ValueError if there are too few."""
    numbers, ends = moments_before_rewards(store, config.split, config.context, config.before_rewards)
    length = config.before_rewards[1] + config.tolerance
    lengths = {number: store.num_frames(number, config.split) - 1 for number in np.unique(numbers).tolist()}
    inside = np.array([end + length <= lengths[number] for number, end in zip(numbers, ends, strict=True)], np.bool_)
    numbers, ends = numbers[inside], ends[inside]
    if len(ends) < config.episodes:
        raise ValueError(f"{store.path} has {len(ends)} such moments in split {config.split!r}: ask for fewer.")
    chosen = np.sort(np.random.default_rng(config.seed).choice(len(ends), config.episodes, replace=False))
    frames, actions, steps = [], [], []
    for number, end in zip(numbers[chosen].tolist(), ends[chosen].tolist(), strict=True):
        first = end + 1 - config.context
        frames.append(store.read_frames(number, first, end + 1, config.split))
        actions.append(store.read_actions(number, config.split)[first : end + length])
        steps.append(steps_to_reward(store.read_rewards(number, config.split))[end])
    return Moments(np.stack(frames), np.stack(actions), np.array(steps))


@torch.no_grad()
def dream(model: WorldModel, moments: Moments, batch: int, seed: int = 0, num_denoising_steps: int = 1) -> np.ndarray:
    """Probabilities of a reward other than 0 at each dreamed step, float32 [N, S]."""
    num_context = moments.frames.shape[1]
    graph = make_graph(model, batch, num_denoising_steps)
    likely = []
    for rows in tqdm(torch.arange(len(moments.steps)).split(batch), desc="dreaming", unit="batch", disable=None):
        frames = torch.from_numpy(moments.frames[rows.numpy()]).to(model.device)
        actions = torch.from_numpy(moments.actions[rows.numpy()]).to(model.device)

        def read(dreams: Tensor, frames: Tensor = frames, actions: Tensor = actions) -> ModelState:
            state, picked = model.initial_state(len(dreams)), dreams.to(model.device)
            return model.prefill(state, frames[picked], actions[picked, : num_context - 1])

        dreams = load_contexts(model, read, rows.to(model.device) + (seed << 32), graph, num_denoising_steps)
        steps = [one.reward_logits.float().softmax(-1) for one in rollout(dreams, actions[:, num_context - 1 :])]
        likely.append((torch.stack(steps, 1) * (model.reward_values != 0)).sum(-1).cpu().numpy())
    return np.concatenate(likely)


def threshold_figures(likely: np.ndarray, steps: np.ndarray, tolerance: int) -> list[dict[str, Any]]:
    """What each threshold finds. A dream is judged by its first reward: what comes after it may be up to chance.

    "f_half" is F0.5, which counts precision twice: an agent seeks out what is falsely rewarded.

    Args:
        likely: [N, S], of `dream`.
        steps: [N], dreamed steps until the recorded reward, 1 at least.
        tolerance: in steps.
    """
    rows = []
    for threshold in THRESHOLDS:
        above = likely > threshold
        first = np.where(above.any(1), above.argmax(1) + 1, likely.shape[1] + tolerance + 1)
        hits = int((np.abs(first - steps) <= tolerance).sum())
        early = int((first < steps - tolerance).sum())
        precision = hits / (hits + early) if hits + early else None
        rows.append(
            {
                "threshold": threshold,
                "hits": hits,
                "false": early,
                "missed": len(steps) - hits - early,
                "precision": precision,
                "recall": hits / len(steps),
                "f_half": 1.25 * hits / (1.25 * hits + 0.25 * (len(steps) - hits) + early),
                "false_per_1000_steps": 1000 * early / int(np.minimum(first, steps).sum()),
            }
        )
    return rows


def recall_by_distance(likely: np.ndarray, steps: np.ndarray, tolerance: int, threshold: float) -> list[dict[str, Any]]:
    """How often a reward is dreamed, by how many steps away it was; ranges without any are left out.

    Args:
        likely, steps, tolerance: as of `threshold_figures`.
        threshold: of the probability.
    """
    above = likely > threshold
    first = np.where(above.any(1), above.argmax(1) + 1, likely.shape[1] + tolerance + 1)
    found = np.abs(first - steps) <= tolerance
    rows = []
    farthest = int(steps.max())
    for low, high in itertools.pairwise([0, *(end for end in DISTANCE_ENDS if end < farthest), farthest]):
        inside = (steps > low) & (steps <= high)
        if count := int(inside.sum()):
            rows.append({"steps": f"{low + 1}-{high}", "rewards": count, "recall": float(found[inside].mean())})
    return rows


def run(config: DreamRewardsConfig, argv: list[str]) -> dict[str, Any]:
    """The command: returns what the file has.

    Raises FileNotFoundError or ValueError for a checkpoint or a store that is not there or does not fit.
    """
    model = WorldModel.from_checkpoint(config.checkpoint, config.device)
    if model.config.needs_poses:
        raise ValueError(
            f"The checkpoint {config.checkpoint} needs poses: `python -m training.odometry` adds odometry."
        )
    moments = draw_moments(open_store(config.data), config)
    likely = dream(model, moments, min(config.batch, config.episodes), config.seed, config.num_denoising_steps)
    figures = threshold_figures(likely, moments.steps, config.tolerance)
    best = max(figures, key=lambda one: one["f_half"])
    report = {
        "checkpoint": Path(config.checkpoint).name,
        "episodes": config.episodes,
        "context": config.context,
        "before_rewards": list(config.before_rewards),
        "tolerance": config.tolerance,
        "num_denoising_steps": config.num_denoising_steps,
        "best_threshold": best["threshold"] if best["hits"] else None,  # None: dreams give none of these rewards
        "by_threshold": figures,
        "by_distance": recall_by_distance(likely, moments.steps, config.tolerance, best["threshold"]),
        **provenance("training.dream_rewards", argv),
    }
    write_json(config.out, report)
    return report


def main() -> int:
    """The command. Returns the exit status, 1 after an error."""
    try:
        report = run(tyro.cli(DreamRewardsConfig, prog="python -m training.dream_rewards"), command_arguments())
    except (OSError, ValueError) as error:
        print(f"training.dream_rewards: {error}", file=sys.stderr)
        return 1
    for one in report["by_threshold"]:
        print(", ".join(f"{name} {round(value, 3) if value is not None else None}" for name, value in one.items()))
    for one in report["by_distance"]:
        print(f"steps {one['steps']}: recall {one['recall']:.2f} of {one['rewards']} rewards")
    print(f"best threshold: {report['best_threshold']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
