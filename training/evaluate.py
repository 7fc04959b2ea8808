"""Measures a checkpoint on held-out mazes: ``python -m training.evaluate --checkpoint C --data STORE --out JSON``.

Frames: after real context frames the model dreams on under the recorded actions; PSNR against the real frames, beside
that of repeating the last context frame. Reward head: precision and recall on real rollouts, read frame by frame.

With --protocol retrieval or reasoning: how much of the context is recalled, out to long dreams. With --protocol
imagination: what a dream makes up where nobody looked, and whether it finds that again.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from training.baselines import model_type
from training.data.pose_input import Conditioning
from training.evaluation.frame_reader import load_frame_reader
from training.evaluation.imagination import Imagination, Setting, measure_imagination
from training.evaluation.imagination_pictures import write_imagination
from training.evaluation.imagination_rows import Row, parse_row
from training.evaluation.imagine import Dreamer
from training.evaluation.measure import Recall, measure_recall, print_recall
from training.evaluation.options import RecallOptions
from training.evaluation.pictures import write_plots, write_strips
from training.evaluation.reward_head import head_figures
from training.evaluation.walks import recorded_walks, reversed_walks
from training.recording.rollouts import Rollouts, check_held_out, first_frames, read_rollouts, record_rollouts
from wm_gym.checkpoint import Checkpoint, load_checkpoint, resolve_device
from wm_gym.comparison.metrics import psnr
from wm_gym.files import write_json
from wm_gym.film import Film, write_strip
from wm_gym.provenance import provenance
from wm_gym.seeds import parse_seeds
from wm_gym.world_model import WorldModel


@dataclass(frozen=True)
class Arguments:
    """Measures a world model. Give --data, or --env and --seeds to record on the spot."""

    checkpoint: str  # path, packaged name or Hugging Face Hub id
    out: Path  # JSON file to write
    data: Path | None = None  # store with real episodes
    split: str = "test"  # of the store
    env: str | None = None  # environment id, if there is no store
    policy: str = "navigator"  # with --env: how the real episodes act
    seeds: str | None = None  # "7000000-7000031", inclusive; optional with --data
    context: int = 100  # real frames that the model is given
    frames: int = 20  # frames that it dreams then
    num_denoising_steps: int = 1
    head_frames: int = 0  # real frames per maze for the reward head; 0: context + frames
    noise_seed: int = 0
    device: str = "auto"  # "auto" takes the GPU if there is one
    batch_size: int = 0  # mazes at a time; 0: 8 on a CPU, 64 on a GPU
    strips: Path | None = None  # folder for film strips (PNG), real above dream, of the worst, median and best maze
    recall: Annotated[RecallOptions, tyro.conf.arg(name="")] = field(default_factory=RecallOptions)


def evaluate(arguments: Arguments, argv: Sequence[str]) -> dict[str, Any]:
    """All figures, as they go into the JSON file.

    Raises:
        FileNotFoundError: no such checkpoint or store.
        ValueError: seeds that were trained on, rollouts that are too short, or data that does not fit the model.
    """
    checkpoint, model, batch_size = _load(arguments)
    rollouts = load_rollouts(arguments, checkpoint)

    dreamed = dream(model, rollouts, arguments, batch_size)
    window = slice(arguments.context, arguments.context + arguments.frames)
    real, last = rollouts.frames[:, window], rollouts.frames[:, arguments.context - 1].unsqueeze(1)
    if arguments.strips is not None:
        save_strips(arguments.strips, rollouts, dreamed, arguments.context)
    head_frames = arguments.head_frames or arguments.context + arguments.frames
    conditioning = short_look_conditioning(model, arguments)
    return {
        **_subject(arguments, checkpoint, rollouts),
        "conditioning": conditioning,
        "frame": frame_figures(dreamed, real, last),
        "reward": head_figures(model, rollouts, head_frames, arguments.noise_seed, batch_size, conditioning),
        **provenance("training.evaluate", argv),
    }


def evaluate_recall(arguments: Arguments, argv: Sequence[str]) -> Recall:
    """What `evaluate` is to a short look, for a protocol: walks are recorded where they are missing.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: seeds that were trained on, or options that do not fit the checkpoint or the environment.
        RuntimeError: a process that records died; finished walks are kept.
    """
    options = arguments.recall
    options.check()
    checkpoint, model, batch_size = _load(arguments)
    walks = load_walks(arguments, checkpoint)
    recall = measure_recall(
        model, walks, arguments.context, options, arguments.num_denoising_steps, arguments.noise_seed, batch_size
    )
    record = {
        "protocol": options.protocol,
        "conditioning": options.conditioning,
        "feedback": options.feedback,
        "feedback_interval": checkpoint.config.get("feedback_interval", 1)
        if options.feedback_interval is None
        else options.feedback_interval,
        "refresh_steps": options.refresh_steps,
        **_subject(arguments, checkpoint, walks),
        **recall.record,
        **provenance("training.evaluate", argv),
    }
    return dataclasses.replace(recall, record=record)


def evaluate_imagination(arguments: Arguments, argv: Sequence[str]) -> Imagination:
    """What `evaluate` is to a short look, for dreams into the unknown; raises as `evaluate_recall` does.

    The file has each row as soon as it is measured.
    """
    options = arguments.recall
    options.check()
    checkpoint, model, batch_size = _load(arguments)
    c, given = model.config, options.imagination
    own = Row("as made", c.feedback_interval, c.write_once, arguments.num_denoising_steps)
    rows = [parse_row(text) for text in given.rows] or [own]
    walks = load_walks(arguments, checkpoint)
    seen = (options.seen_distance, options.seen_angle)
    setting = Setting(arguments.context, options.conditioning, arguments.noise_seed, batch_size, seen)
    subject = {
        "protocol": options.protocol,
        "conditioning": options.conditioning,
        **_subject(arguments, checkpoint, walks),
    }
    source = provenance("training.evaluate", argv)

    def keep(record: dict[str, Any]) -> None:
        write_json(arguments.out, {**subject, **record, **source})

    measured = measure_imagination(model, walks, rows, setting, load_frame_reader(given.reader), keep)
    return dataclasses.replace(measured, record={**subject, **measured.record, **source})


def load_walks(arguments: Arguments, checkpoint: Checkpoint) -> Rollouts:
    """The held-out walks of a protocol, context and what follows it."""
    options = arguments.recall
    env_id = arguments.env or checkpoint.metadata.get("env_id")
    if arguments.data is not None or arguments.head_frames:
        raise ValueError("A protocol records its own walks, into --rollouts; leave out --data and --head-frames.")
    if arguments.seeds is None or env_id is None:
        missing = (
            "--seeds A-B, such as --seeds 7000000-7000063" if env_id else "--env, which the checkpoint does not name"
        )
        raise ValueError(f"A protocol needs {missing}.")
    seeds = parse_seeds(arguments.seeds)
    check_held_out(seeds, checkpoint.metadata.get("training_seeds", []))
    policy = options.walking_policy(arguments.policy, arguments.context)
    path = options.rollouts or arguments.out.with_name(f"{arguments.out.stem}_rollouts")
    num_recorded = options.num_recorded(arguments.context, arguments.frames)
    walks = recorded_walks(
        path, env_id, policy, seeds, num_recorded, options.recording, options.workers, options.envs_per_worker
    )
    _check_spaces(walks, checkpoint)
    return walks if num_recorded > arguments.context else reversed_walks(walks, arguments.frames)


def _load(arguments: Arguments) -> tuple[Checkpoint, WorldModel, int]:
    """Checkpoint, model, and how many mazes it takes at a time."""
    if arguments.context < 1 or arguments.frames < 1:
        raise ValueError(f"context and frames must be at least 1, got {arguments.context} and {arguments.frames}.")
    device = arguments.device if arguments.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = load_checkpoint(arguments.checkpoint)
    model = model_type(checkpoint.config).from_weights(
        checkpoint.config, checkpoint.tensors, resolve_device(device), arguments.checkpoint
    )
    chosen = {name: getattr(arguments.recall, name) for name in ("feedback_interval", "write_once")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    model.config = dataclasses.replace(model.config, **chosen)
    return checkpoint, model, arguments.batch_size or (64 if model.device.type == "cuda" else 8)


def _subject(arguments: Arguments, checkpoint: Checkpoint, rollouts: Rollouts) -> dict[str, Any]:
    """What was measured on what, as it goes into the JSON file."""
    return {
        "checkpoint": Path(arguments.checkpoint).name,
        "recipe": checkpoint.metadata.get("name"),
        "num_parameters": sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        "frames_seen": checkpoint.metadata.get("frames_seen"),
        "total_frames_seen": total_frames_seen(checkpoint.metadata),
        "env_id": rollouts.env_id,
        "policy": rollouts.policy,
        "seeds": list(rollouts.seeds),
        "context": arguments.context,
        "frames": arguments.frames,
        "num_denoising_steps": arguments.num_denoising_steps,
    }


def total_frames_seen(metadata: dict[str, Any]) -> int | None:
    """Frames of this run and of those whose weights it started from; None if one does not tell."""
    total, run = 0, metadata
    while run is not None:
        if (seen := run.get("frames_seen")) is None:
            return None
        total, run = total + seen, run.get("continues")
    return total


def load_rollouts(arguments: Arguments, checkpoint: Checkpoint) -> Rollouts:
    """Held-out rollouts, long enough and of the checkpoint's spaces."""
    if (arguments.data is None) == (arguments.env is None):
        raise ValueError("Give either --data (a store) or --env (an environment id), not both or neither.")
    seeds = None if arguments.seeds is None else parse_seeds(arguments.seeds)
    training_seeds = checkpoint.metadata.get("training_seeds", [])
    if seeds is not None:
        check_held_out(seeds, training_seeds)
    num_frames = max(arguments.context + arguments.frames, arguments.head_frames)
    if arguments.data is not None:
        rollouts = read_rollouts(arguments.data, arguments.split, seeds, num_frames)
    elif seeds is not None and arguments.env is not None:
        rollouts = record_rollouts(arguments.env, arguments.policy, seeds, num_frames)
    else:
        raise ValueError("Give --seeds A-B with --env, such as --seeds 7000000-7000031.")
    check_held_out(rollouts.seeds, training_seeds)
    _check_spaces(rollouts, checkpoint)
    return rollouts


def _check_spaces(rollouts: Rollouts, checkpoint: Checkpoint) -> None:
    given, expected = (
        (rollouts.observation_space, rollouts.action_space),
        (
            checkpoint.observation_space,
            checkpoint.action_space,
        ),
    )
    if given != expected:
        raise ValueError(f"The rollouts of {rollouts.env_id} have spaces {given}, the checkpoint {expected}.")


def dream(model: WorldModel, rollouts: Rollouts, arguments: Arguments, batch_size: int) -> Tensor:
    """Imagined frames, uint8 [M, frames, H, W, C]; the noise of a maze depends on its seed alone."""
    passes, conditioning = arguments.num_denoising_steps, short_look_conditioning(model, arguments)
    dreamer = Dreamer(model, batch_size, passes, arguments.noise_seed, conditioning=conditioning, graph=False)
    walks = first_frames(rollouts, arguments.context + arguments.frames)
    return dreamer.imagine(walks, arguments.context, "kept")


def short_look_conditioning(model: WorldModel, arguments: Arguments) -> Conditioning:
    """Without a protocol a model that can do nothing without poses is given them."""
    return "pose" if model.config.needs_poses else arguments.recall.conditioning


def frame_figures(dreamed: Tensor, real: Tensor, last: Tensor) -> dict[str, Any]:
    """PSNR of dreams and of repeating the last context frame; uint8 [M, frames, H, W, C], `last` [M, 1, H, W, C]."""
    of_dream, of_copy = psnr(dreamed.numpy(), real.numpy()), psnr(last.numpy(), real.numpy())
    return {
        "psnr": _rounded(of_dream.mean()),
        "psnr_copy_last": _rounded(of_copy.mean()),
        "psnr_gap": _rounded(of_dream.mean() - of_copy.mean()),
        "psnr_per_frame": _rounded(of_dream.mean(0)),
        "psnr_copy_last_per_frame": _rounded(of_copy.mean(0)),
        "psnr_per_maze": _rounded(of_dream.mean(1)),
    }


def save_strips(folder: Path, rollouts: Rollouts, dreamed: Tensor, num_context: int, num_columns: int = 8) -> None:
    """Film strips of the mazes with the lowest, the median and the highest PSNR: FOLDER/worst.png, ..."""
    num_frames = dreamed.shape[1]
    real = rollouts.frames[:, : num_context + num_frames].numpy()
    quality = psnr(dreamed.numpy(), real[:, num_context:])
    order = quality.mean(1).argsort()
    steps = sorted({int(step) for step in np.linspace(1, num_frames, min(num_columns, num_frames)).round()})
    for name, maze in (("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1])):
        write_strip(folder / f"{name}.png", Film(real[maze], dreamed[maze].numpy(), quality[maze]), steps)


def _rounded(values: np.ndarray | np.floating[Any]) -> Any:
    return np.round(values, 3).tolist()


def print_table(figures: dict[str, Any]) -> None:
    """Prints the figures of a record."""
    frame = figures["frame"]
    print(f"{len(figures['seeds'])} mazes of {figures['env_id']}, {figures['context']} context frames")
    print(f"{'dreamed frame':>14} {'PSNR':>7} {'copy last':>10}")
    per_frame = list(zip(frame["psnr_per_frame"], frame["psnr_copy_last_per_frame"], strict=True))
    for index in sorted({0, 1, 4, *range(9, len(per_frame), 10), len(per_frame) - 1} & set(range(len(per_frame)))):
        print(f"{index + 1:>14} {per_frame[index][0]:>7.2f} {per_frame[index][1]:>10.2f}")
    print(f"{'mean':>14} {frame['psnr']:>7.2f} {frame['psnr_copy_last']:>10.2f}   gap {frame['psnr_gap']:.2f} dB")
    for name in ("from_noise", "on_frame"):
        reward = figures["reward"][name]
        print(f"reward head, {name}: " + ", ".join(f"{key} {value}" for key, value in reward.items()))


def main(argv: Sequence[str] | None = None) -> None:
    """The command; an error that a user can mend is one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = tyro.cli(Arguments, args=argv, prog="python -m training.evaluate", description=__doc__)
        if arguments.recall.protocol == "imagination":
            write_imagination(evaluate_imagination(arguments, argv), arguments.out, arguments.strips)
            return
        if arguments.recall.protocol is not None:
            write_recall(evaluate_recall(arguments, argv), arguments)
            return
        figures = evaluate(arguments, argv)
        write_json(arguments.out, figures)
    except (FileNotFoundError, ImportError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    print_table(figures)


def write_recall(recall: Recall, arguments: Arguments) -> None:
    """Writes OUT.json and prints it; then draws OUT.png and film strips, or says what is missing to draw them."""
    write_json(arguments.out, recall.record)
    print_recall(recall.record)
    try:
        write_strips(
            arguments.strips or arguments.out.with_name(f"{arguments.out.stem}_strips"), recall, arguments.context
        )
        write_plots(arguments.out.with_suffix(".png"), recall.record)
    except ImportError as error:
        print(f"{error} The figures are in {arguments.out}; `python -m training.evaluation.pictures` draws them later.")


if __name__ == "__main__":
    main()
