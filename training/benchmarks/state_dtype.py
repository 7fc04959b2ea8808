"""What SSM states in bfloat16 do to long dreams: ``python -m training.benchmarks.state_dtype --out JSON``.

Three batches of dreams take the same actions under the same noise. The reference keeps its states in float32. One other
keeps them in bfloat16, half of the bytes. "perturbed" keeps float32, but one pixel of its first frame is brighter:
dreams are chaotic, so this is how far two of them part when hardly anything differs.

Each pair is compared in two ways. Following: both predict the next frame from the frames of the reference, so only what
they remember can differ. Free: each goes on from its own frames.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from wm_gym.contexts import load_clips
from wm_gym.engine.graph import StepGraph, StepOutput
from wm_gym.files import write_json
from wm_gym.provenance import command_arguments, provenance
from wm_gym.world_model import ModelState, WorldModel


@dataclass(frozen=True)
class StateDtypeConfig:
    """Dreams with SSM states in float32 and in bfloat16, side by side."""

    out: Path | None = None
    """JSON file for the result."""
    device: str = "auto"
    """Where to run."""
    checkpoint: str = "memory-maze"
    """A packaged name, a path, or a Hub id."""
    contexts: str = "memory-maze"
    """Clips that fit it."""
    context_frames: int = 100
    """Frames that are read first."""
    dreams: int = 32
    """How many."""
    steps: int = 1000
    """Length of each dream."""
    num_denoising_steps: int = 1
    """Passes of the network per frame."""
    marks: tuple[int, ...] = (1, 10, 100, 300, 1000)
    """Frames up to which means are reported, each from the one after the mark before."""
    seed: int = 0
    """Of actions and noise."""


def run(config: StateDtypeConfig) -> dict[str, Any]:
    """Dream all pairs; see the module."""
    model = WorldModel.from_checkpoint(config.checkpoint, config.device)
    random = torch.Generator().manual_seed(config.seed)
    if model.config.action_kind != "discrete":
        raise ValueError("the actions of this comparison are drawn at random; the model's must be discrete.")
    actions = torch.randint(model.config.action_size, (config.steps, config.dreams), generator=random).to(model.device)
    keys = torch.randint(2**62, (config.dreams,), generator=random).to(model.device)
    with torch.no_grad():
        state = read_contexts(model, config)
        found: dict[str, Any] = {}
        for name, dtype in (("bfloat16", torch.bfloat16), ("perturbed", torch.float32)):
            found[name] = {}
            for follows in (True, False):
                pair = [
                    make_dreams(model, state, keys, kind, config.num_denoising_steps) for kind in (torch.float32, dtype)
                ]
                if name == "perturbed":
                    pair[1].memory.frame[:, 0, 0, 0] += 2 / 255
                parts = compare(pair[0], pair[1], actions, follows, config.marks)
                found[name]["following" if follows else "free"] = parts
    return {**provenance("training.benchmarks.state_dtype", command_arguments()), **settings(config), "against": found}


def read_contexts(model: WorldModel, config: StateDtypeConfig) -> ModelState:
    """Memories after the beginning of each packaged clip."""
    clips = load_clips(config.contexts)
    contexts = [clips.context(i, config.context_frames) for i in range(min(len(clips), config.dreams))]
    frames = torch.from_numpy(np.stack([context.frames for context in contexts])).to(model.device)
    actions = torch.from_numpy(np.stack([context.actions for context in contexts])).to(model.device)
    return model.prefill(model.initial_state(len(contexts)), frames, actions)


def settings(config: StateDtypeConfig) -> dict[str, Any]:
    """The settings that go into the record."""
    return {name: getattr(config, name) for name in ("device", "dreams", "steps", "num_denoising_steps", "seed")}


def make_dreams(model: WorldModel, state: ModelState, keys: Tensor, dtype: torch.dtype, num_passes: int) -> StepGraph:
    """Dreams that start from the memories of `state`, in turn."""
    graph = StepGraph(model, len(keys), num_passes, dtype)
    rows = torch.arange(len(keys), device=model.device) % state.batch_size
    graph.load(state.index(rows))
    graph.set_noise(keys)
    return graph


def compare(
    reference: StepGraph, other: StepGraph, actions: Tensor, follows: bool, marks: tuple[int, ...]
) -> dict[str, Any]:
    """PSNR between the two in dB, [dreams] averaged, and the share of equal rewards; per range of frames."""
    ratios, rewards, equal, edges = [], [], [], []
    for action in actions:
        a, b = reference.step(action), other.step(action)
        ratios.append(psnr_of(a, b))
        rewards.append(torch.stack([a.reward.sum(), b.reward.sum()]))
        equal.append((a.reward == b.reward).float().mean())
        edges.append(torch.stack([sharpness(a), sharpness(b)]))
        if follows:
            other.memory.frame.copy_(reference.memory.frame)
    parts: dict[str, Any] = {}
    for first, last in zip((0, *marks), marks, strict=False):
        if first >= len(ratios):
            break
        part = slice(first, min(last, len(ratios)))
        parts[f"{first + 1}-{min(last, len(ratios))}"] = {
            "psnr_between": round(torch.stack(ratios[part]).mean().item(), 2),
            "equal_rewards": round(torch.stack(equal[part]).mean().item(), 5),
            "rewards": [int(count) for count in torch.stack(rewards[part]).sum(0)],
            "sharpness": [round(value, 4) for value in torch.stack(edges[part]).mean(0).tolist()],
        }
    return parts


def psnr_of(a: StepOutput, b: StepOutput) -> Tensor:
    """Mean over dreams of the PSNR between two predictions, before they are rounded; equal ones count as 100 dB."""
    error = (a.model_frame.float() - b.model_frame.float()).div(2).square().mean(dim=(1, 2, 3))
    return (-10 * error.clamp(min=1e-10).log10()).mean()


def sharpness(output: StepOutput) -> Tensor:
    """Mean absolute difference of neighbouring pixels, in [0, 1]: falls as a dream blurs."""
    frame = output.frame.float() / 255
    return (frame[:, :, 1:] - frame[:, :, :-1]).abs().mean()


def main() -> None:
    """The command."""
    config = tyro.cli(StateDtypeConfig)
    try:
        result = run(config)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    for name, modes in result["against"].items():
        for mode, parts in modes.items():
            print(name, mode, json.dumps(parts))
    if config.out is not None:
        write_json(config.out, result)


if __name__ == "__main__":
    main()
