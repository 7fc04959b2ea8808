"""How well a model tells rewards on real rollouts, before and after it sees the frame."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from training.data.pose_input import Conditioning, model_poses
from training.recording.rollouts import Rollouts
from wm_gym.codec import frames_to_model
from wm_gym.engine.rollout import load_contexts, rollout
from wm_gym.world_model import ModelState, WorldModel


@torch.inference_mode()
def head_figures(
    model: WorldModel,
    rollouts: Rollouts,
    num_frames: int,
    noise_seed: int,
    batch_size: int,
    conditioning: Conditioning = "pose",
) -> dict[str, Any]:
    """Precision, recall and F1 of rewards other than 0, over the first `num_frames` frames of each rollout.

    "from_noise": what an environment reports. Before a frame is seen, one denoising pass from pure noise predicts its
    reward from the real frames so far and the action; then the real frame is taken in, and so on, frame by frame.
    "on_frame": from the real frame itself, by one parallel pass over clean frames (equal to reading frame by frame). In
    it a model that takes poses is always given them.
    """
    from_noise, on_frame = [], []
    for rows in row_batches(rollouts, batch_size):
        frames, actions, pose = on_device(model, rollouts, rows, conditioning, num_frames)
        keys = torch.tensor(rollouts.seeds[rows], device=model.device) + noise_seed
        from_noise.append(_rewards_from_noise(model, frames, actions, pose, keys))
        on_frame.append(_rewards_on_frame(model, *on_device(model, rollouts, rows, "pose", num_frames)))
    real = rollouts.rewards[:, : num_frames - 1]
    return {
        "frames_per_maze": num_frames,
        "from_noise": detection_figures(torch.cat(from_noise), real),
        "on_frame": detection_figures(torch.cat(on_frame), real),
    }


def _rewards_from_noise(
    model: WorldModel, frames: Tensor, actions: Tensor, pose: Tensor | None, keys: Tensor
) -> Tensor:
    def read(dreams: Tensor) -> ModelState:
        first_pose = None if pose is None else pose[dreams, :1]
        return model.prefill(model.initial_state(len(dreams)), frames[dreams, :1], actions[dreams, :0], first_pose)

    dreams = load_contexts(model, read, keys)
    imagined = rollout(dreams, actions, None if pose is None else pose[:, 1:])
    rewards = []
    for t, one in enumerate(tqdm(imagined, total=actions.shape[1], desc="reading", unit="frame", leave=False), 1):
        rewards.append(one.reward)
        # The imagined frame is not in memory yet; the real one takes its place. Equal to `denoise`, then `advance`.
        dreams.correct(frames[:, t])
    return torch.stack(rewards, dim=1).cpu()


def _rewards_on_frame(model: WorldModel, frames: Tensor, actions: Tensor, pose: Tensor | None) -> Tensor:
    on_gpu = model.device.type == "cuda"
    rewards = []
    for row in range(len(frames)):  # one at a time bounds the memory of long rollouts
        one = slice(row, row + 1)
        levels = torch.zeros(frames[one].shape[:2], device=model.device)
        row_pose = None if pose is None else pose[one]
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
            output = model(frames_to_model(frames[one]), levels, actions[one], row_pose)
        rewards.append(model.reward_values[output.reward_logits[:, 1:].argmax(-1)])
    return torch.cat(rewards).cpu()


def detection_figures(predicted: Tensor, real: Tensor) -> dict[str, Any]:
    """How well rewards other than 0 are found: a hit has the right value at the right frame. None where undefined."""
    hits = int(((predicted == real) & (real != 0)).sum())
    num_predicted, num_real = int((predicted != 0).sum()), int((real != 0).sum())
    return {
        "precision": round(hits / num_predicted, 4) if num_predicted else None,
        "recall": round(hits / num_real, 4) if num_real else None,
        "f1": round(2 * hits / (num_predicted + num_real), 4) if num_predicted + num_real else None,
        "num_rewards": num_real,
        "num_predicted": num_predicted,
        "num_frames": real.numel(),
    }


def row_batches(rollouts: Rollouts, batch_size: int) -> Iterator[slice]:
    """All rollouts, at most `batch_size` at a time."""
    for start in range(0, len(rollouts.seeds), batch_size):
        yield slice(start, start + batch_size)


def on_device(
    model: WorldModel, rollouts: Rollouts, rows: slice, conditioning: Conditioning, num_frames: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Frames, actions and, if the model is to have them, poses of some rollouts' first frames."""
    frames = rollouts.frames[rows, :num_frames].to(model.device)
    actions = rollouts.actions[rows, : None if num_frames is None else num_frames - 1].to(model.device)
    pose = model_poses(model.config, rollouts.pose[rows, :num_frames], conditioning)
    return frames, actions, None if pose is None else pose.to(model.device)
