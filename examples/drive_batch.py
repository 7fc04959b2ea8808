"""Many dreams in one batch, driven as a user would: `python -m examples.drive_batch --num-envs 256 --device cuda`.

Prints frames per second and memory every so often: neither drifts, however long the dreams go on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro

import wm_gym  # noqa: F401 (registers the environments)
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance

ON_GPU = torch.cuda.is_available()


def main(
    num_envs: int = 256 if ON_GPU else 4,
    steps: int = 10_000 if ON_GPU else 40,
    device: str = "cuda" if ON_GPU else "cpu",
    context_frames: int = 100 if ON_GPU else 20,
    every: int = 1000 if ON_GPU else 20,
    state_dtype: str = "float32",
    out: Path | None = None,
) -> None:
    """Act at random in many dreams.

    Args:
        num_envs: dreams in the batch.
        steps: steps of all of them.
        device: where they are.
        context_frames: real frames that each reads first.
        every: steps between two lines of output.
        state_dtype: "float32" or "bfloat16", in which their memories are kept.
        out: JSON file for the figures.
    """
    envs = gym.make_vec(
        "LSSVWM-MemoryMaze-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        device=device,
        output="torch",
        context_frames=context_frames,
        state_dtype=state_dtype,
    )
    num_actions = envs.single_action_space.n  # pyright: ignore[reportAttributeAccessIssue]
    state_bytes: int = num_envs * envs.unwrapped.state_bytes_per_env  # pyright: ignore[reportAttributeAccessIssue]
    print(f"{num_envs} dreams, {state_bytes / num_envs / 1e6:.1f} MB of memory each")
    obs, _ = envs.reset(seed=0)
    parts: list[dict[str, Any]] = []
    num_episodes, started = 0, time.perf_counter()
    for t in range(1, steps + 1):
        # An agent would choose by `obs`, which is on the device already.
        actions = torch.randint(num_actions, (num_envs,), device=obs.device)
        obs, _, terminated, truncated, _ = envs.step(actions)
        num_episodes += int((terminated | truncated).sum())
        if t % every == 0 or t == steps:
            seconds, started = time.perf_counter() - started, time.perf_counter()
            count = every if t % every == 0 else t % every
            memory = torch.cuda.memory_allocated() if obs.is_cuda else state_bytes
            parts.append({"step": t, "frames_per_second": round(num_envs * count / seconds), "bytes": memory})
            print(f"step {t}: {num_envs * count / seconds:,.0f} frames/s, {memory / 1e9:.3f} GB, {num_episodes} ended")
    if out is not None:
        figures = {"num_envs": num_envs, "device": device, "state_dtype": state_dtype, "state_bytes": state_bytes}
        write_json(out, {**provenance("examples.drive_batch", command_arguments()), **figures, "parts": parts})
    envs.close()


if __name__ == "__main__":
    tyro.cli(main)
