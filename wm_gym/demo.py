"""The demonstration: a dream and the real Memory Maze take the same actions after the same context."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from wm_gym.comparison.metrics import psnr
from wm_gym.contexts import load_clips
from wm_gym.files import write_json
from wm_gym.film import Film, strip_steps, video_frames, write_strip, write_video
from wm_gym.machine import hardware, versions
from wm_gym.policies.base import make_policy

DREAM_ID = "LSSVWM-MemoryMaze-v0"
REAL_ID = "wm_gym/MemoryMaze-9x9-v0"
VIDEO_FPS = 10


@dataclass(frozen=True)
class Demo:
    """Dream beside the real Memory Maze 9x9: writes demo.mp4, demo.png and demo.json.

    The navigation policy walks through a maze; its first frames are the context of the dream, and the actions that
    follow are taken by both. Without the memory-maze extra the packaged clips stand in for the real environment.
    """

    out: Path = Path("outputs/demo")
    """Folder for the three files."""
    seed: int = 7_100_000
    """Seed of the maze, the policy and the noise. Mazes below 7,000,000 may have been trained on."""
    context: int = 100
    """Real frames that are read in first."""
    steps: int = 100
    """Dreamed frames."""
    checkpoint: str = "memory-maze"
    """Packaged name, path, or Hugging Face Hub id."""
    device: str = "cpu"
    """Where the model runs."""
    denoising_steps: int = 2
    """Network passes per dreamed frame. One predicts the mean of what may come, and blurs; two draw a sharp sample."""
    write_once: float | None = None
    """Weight in the map below which dreamed frames are written there, once; None: as the checkpoint was made. With 0.2
    the dream has walls of its own where nobody looked, sharp, and the real episode's actions may lead into them."""


@dataclass(frozen=True)
class RealEpisode:
    """What really happened. `actions[t]` and `rewards[t]` lead from frame t to frame t + 1."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    actions: np.ndarray  # [T - 1]
    seed: int
    rewards: np.ndarray | None  # float [T - 1]; None in packaged clips
    fps: float | None  # environment steps per second; None in packaged clips
    source: str  # environment id, or "packaged clips"


def run_demo(config: Demo) -> dict[str, Any]:
    """Runs the demonstration, writes its files and returns what demo.json holds.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a number out of range, more steps than an episode or clip has, a bad checkpoint or device.
    """
    if config.context < 1 or config.steps < 1:
        raise ValueError(f"A demo needs a context and steps from 1 on, got {config.context} and {config.steps}.")
    # The dream is made first: a wrong checkpoint or device shows before the walk, not after it.
    env = gym.make(
        DREAM_ID,
        checkpoint=config.checkpoint,
        device=config.device,
        horizon=config.steps,
        num_denoising_steps=config.denoising_steps,
        write_once=config.write_once,
    )
    real = real_episode(config.seed, config.context + config.steps)
    dream, dream_rewards, fps_dream = dream_episode(env, real, config)
    env.close()
    reference = real.frames[config.context : config.context + len(dream)]
    film = Film(real.frames[: config.context + len(dream)], dream, psnr(dream, reference))
    report = {
        "seed": real.seed,
        "checkpoint": config.checkpoint,
        "source": real.source,
        "context_frames": config.context,
        "steps": len(dream),
        "denoising_steps": config.denoising_steps,
        "write_once": config.write_once,
        "device": config.device,
        "hardware": hardware(config.device),
        "versions": versions(("wm-gym", "torch")),
        "fps_dream": round(fps_dream, 2),
        "fps_real": None if real.fps is None else round(real.fps, 2),
        "psnr": np.round(film.psnr, 3).tolist(),
        "psnr_copy_last": np.round(psnr(real.frames[config.context - 1], reference), 3).tolist(),
        "rewards_dream": dream_rewards.tolist(),
        "rewards_real": None if real.rewards is None else real.rewards[config.context - 1 :][: len(dream)].tolist(),
    }
    write_files(config.out, film, report)
    print_table(report)
    return report


def real_episode(seed: int, num_frames: int) -> RealEpisode:
    """The navigation policy's walk through maze `seed`, or a packaged clip if Memory Maze is not installed.

    Raises ValueError if the episode or clip is shorter than `num_frames`.
    """
    try:
        env = gym.make(REAL_ID)
    except ImportError as error:
        print(f"Memory Maze is not there ({error}); using the packaged clips.")
        return _packaged_episode(seed, num_frames)
    try:
        return _walk(env, seed, num_frames)
    finally:
        env.close()


def dream_episode(env: gym.Env[Any, Any], real: RealEpisode, config: Demo) -> tuple[np.ndarray, np.ndarray, float]:
    """Dreams the part of `real` after the context: frames [S, H, W, 3], rewards [S] and steps per second.

    S is smaller than asked for if the model says that the episode ended.
    """
    context = real.frames[: config.context], real.actions[: config.context - 1]
    env.reset(seed=config.seed, options={"context": context})
    frames, rewards = [], []
    start = time.perf_counter()
    for action in tqdm(real.actions[config.context - 1 :], desc="dream", unit="frame"):
        obs, reward, terminated, truncated, _ = env.step(action)
        frames.append(obs)
        rewards.append(reward)
        if terminated or truncated:
            break
    return np.stack(frames), np.asarray(rewards, np.float64), len(frames) / (time.perf_counter() - start)


def write_files(out: Path, film: Film, report: dict[str, Any]) -> None:
    """Writes demo.mp4, demo.png and demo.json, each atomically."""
    write_strip(out / "demo.png", film, strip_steps(len(film.dream)))
    pictures = tqdm(video_frames(film), total=len(film.real), desc="video", unit="frame")
    write_video(out / "demo.mp4", pictures, VIDEO_FPS)
    write_json(out / "demo.json", report)
    print(f"Wrote {', '.join(str(out / f'demo.{suffix}') for suffix in ('mp4', 'png', 'json'))}")


def print_table(report: dict[str, Any]) -> None:
    """Prints PSNR by dreamed frame, and the speeds."""
    dreamed, copied = report["psnr"], report["psnr_copy_last"]
    print(f"\n{'dreamed frames':>16} {'dream (dB)':>12} {'copy last (dB)':>16}")
    bounds = [bound for bound in (0, 1, 5, 10, 20, 50, 100, 200, 500) if bound < len(dreamed)] + [len(dreamed)]
    for start, end in itertools.pairwise(bounds):
        label = f"{start + 1}" if end == start + 1 else f"{start + 1}-{end}"
        print(f"{label:>16} {np.mean(dreamed[start:end]):>12.2f} {np.mean(copied[start:end]):>16.2f}")
    print(f"{'all':>16} {np.mean(dreamed):>12.2f} {np.mean(copied):>16.2f}")
    fps_real = "packaged clips" if report["fps_real"] is None else f"{report['fps_real']:.1f} steps/s"
    print(
        f"\ndream: {report['fps_dream']:.1f} frames/s on {report['device']} with {report['denoising_steps']} denoising "
        f"step(s) a frame;  real: {fps_real};  seed {report['seed']}"
    )


def _walk(env: gym.Env[Any, Any], seed: int, num_frames: int) -> RealEpisode:
    policy = make_policy("navigator", env, seed)
    obs, info = env.reset(seed=seed)
    policy.reset(info)
    frames, actions, rewards, seconds = [obs], [], [], 0.0
    for _ in tqdm(range(num_frames - 1), desc="real environment", unit="step"):
        action = policy(obs, info)
        start = time.perf_counter()
        obs, reward, terminated, truncated, info = env.step(action)
        seconds += time.perf_counter() - start
        frames.append(obs)
        actions.append(action)
        rewards.append(reward)
        if (terminated or truncated) and len(frames) < num_frames:
            raise ValueError(f"The real episode ended after {len(frames)} frames; context and steps need {num_frames}.")
    fps = len(actions) / seconds
    return RealEpisode(np.stack(frames), np.asarray(actions), seed, np.asarray(rewards, np.float64), fps, REAL_ID)


def _packaged_episode(seed: int, num_frames: int) -> RealEpisode:
    clips = load_clips()
    index = seed % len(clips)
    if seed in clips.seeds:
        index = int(np.flatnonzero(clips.seeds == seed)[0])
    else:
        print(f"There is no clip of maze {seed}; taking maze {clips.seeds[index]}.")
    clip = clips.context(index, num_frames)
    return RealEpisode(clip.frames, clip.actions, int(clips.seeds[index]), None, None, "packaged clips")
