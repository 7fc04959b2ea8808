"""Dreams into the unknown and back again: what `training.evaluate --protocol imagination` measures.

A few real frames, then a walk that the dream takes on into what nobody saw, then the same way back to where the context
began. Each row is a way of dreaming (what a dreamed frame leaves in memory, and passes a frame).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training.data.pose_input import Conditioning
from training.evaluation.frame_reader import FrameReader, load_frame_reader
from training.evaluation.imagination_measures import Dreams, Reality, definitions, row_figures
from training.evaluation.imagination_rows import Row
from training.evaluation.imagine import Dreamer
from training.recording.rollouts import Rollouts
from wm_gym.poses import placed, relative_to
from wm_gym.world_model import WorldModel

OTHER_SEED = 1_000_003  # between the noise seeds of two dreams of one walk


@dataclass(frozen=True)
class Imagination:
    """A measurement: the record of JSON types, and what pictures are made from.

    Attributes:
        reality: the real walks.
        dreams: by row.
    """

    record: dict[str, Any]
    reality: Reality
    dreams: dict[str, Dreams]


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    num_context: int
    conditioning: Conditioning
    noise_seed: int
    batch_size: int
    seen: tuple[float, float] = field(default=(0.5, 30.0))  # cells and degrees within which a frame was seen


def measure_imagination(
    model: WorldModel,
    walks: Rollouts,
    rows: Sequence[Row],
    setting: Setting,
    reader: FrameReader | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Imagination:
    """Dreams in all ways and says how good each is.

    Args:
        walks: 2 M real walks; the first half is dreamed, the second is what real frames are compared with.
        keep: receives the record after each row, so that nothing is lost if a later one does not come to its end.

    Raises:
        ValueError: walks that are too few or too short, or a way of dreaming that the model cannot.
    """
    if len(walks.seeds) < 4 or walks.frames.shape[1] - setting.num_context < 40:
        raise ValueError("imagination needs at least four walks, of which half are dreamed, and 40 frames to dream.")
    if setting.conditioning == "action" and not model.config.has_odometry:
        raise ValueError("the checkpoint has no odometry that would tell poses; take --conditioning pose.")
    if not model.config.has_poses:
        raise ValueError("imagination leads a dream back by its poses, and the checkpoint takes none.")
    reader = load_frame_reader(device=model.device) if reader is None else reader.to(model.device)
    half = len(walks.seeds) // 2
    ours, others = (_part(walks, part) for part in (slice(0, half), slice(half, 2 * half)))
    reality = Reality.of(ours, others, setting.num_context, setting.seen, reader)
    config, dreams, figures = model.config, {}, {}
    record = {
        "definitions": definitions(setting.num_context, ours.frames.shape[1] - setting.num_context),
        "real": reality.figures,
        "rows": figures,
    }
    try:
        for row in rows:
            model.config = dataclasses.replace(
                config, feedback_interval=row.feedback_interval, write_once=row.write_once
            )
            dreams[row.name] = dream_there_and_back(model, ours, others, row.num_denoising_steps, setting)
            measured = row_figures(dreams[row.name], reality, reader)
            figures[row.name] = dataclasses.asdict(row) | {"figures": measured}
            print(f"{row.name}: " + short_line(measured), flush=True)
            keep(record)
    finally:
        model.config = config
    return Imagination(record, reality, dreams)


def short_line(figures: dict[str, Any]) -> str:
    """The main figures of a row in a line."""
    return ", ".join(f"{name} {part['value']}" for name, part in figures.items() if "value" in part)


def dream_there_and_back(
    model: WorldModel, walks: Rollouts, others: Rollouts, num_denoising_steps: int, setting: Setting
) -> Dreams:
    """Four dreams of each walk: two of different noise, one after the context of another maze, one from actions."""
    num_context = setting.num_context

    def dreamed(of: Rollouts, conditioning: Conditioning, noise_seed: int) -> Tensor:
        dreamer = Dreamer(
            model,
            min(setting.batch_size, len(of.seeds)),
            num_denoising_steps,
            setting.noise_seed + noise_seed,
            conditioning=conditioning,
        )
        return dreamer.imagine(of, num_context, "kept")

    there_and_back = returning(walks)
    by_action = dreamed(walks, "action", 0) if setting.conditioning == "action" else None
    return Dreams(
        dreamed(there_and_back, "pose", 0),
        dreamed(there_and_back, "pose", OTHER_SEED),
        dreamed(returning(with_context_of(others, walks, num_context)), "pose", 0),
        by_action,
    )


def returning(walks: Rollouts) -> Rollouts:
    """The walks, followed by themselves in reverse, from the last frame but one to the first.

    No action walks backwards, so the actions of the way back say nothing: dreams are led by poses.
    """
    length = walks.frames.shape[1]
    order = torch.cat([torch.arange(length), torch.arange(length - 2, -1, -1)])
    crossed = torch.minimum(order[:-1], order[1:])
    return dataclasses.replace(
        walks,
        frames=walks.frames[:, order],
        actions=walks.actions[:, crossed],
        rewards=walks.rewards[:, crossed],
        pose=walks.pose[:, order],
    )


def with_context_of(others: Rollouts, walks: Rollouts, num_context: int) -> Rollouts:
    """`walks` after the context of other mazes, laid so that its last frame was seen from where theirs was."""
    last = slice(num_context - 1, num_context)
    laid = placed(walks.pose[:, last], relative_to(others.pose[:, :num_context], others.pose[:, last]))
    return dataclasses.replace(
        walks,
        frames=torch.cat([others.frames[:, :num_context], walks.frames[:, num_context:]], dim=1),
        actions=torch.cat([others.actions[:, : num_context - 1], walks.actions[:, num_context - 1 :]], dim=1),
        pose=torch.cat([laid, walks.pose[:, num_context:]], dim=1),
    )


def _part(walks: Rollouts, part: slice) -> Rollouts:
    tensors = {name: getattr(walks, name)[part] for name in ("frames", "actions", "rewards", "pose")}
    return dataclasses.replace(walks, seeds=walks.seeds[part], **tensors)
