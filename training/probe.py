"""What a memory knows of the maze: ``python -m training.probe --checkpoint C --seeds A-B --out JSON``.

Small probes read the walls and the objects around the agent, or around where it started, from the frozen memory
after a real context, as in Memory Maze's offline benchmark (arXiv 2210.13383); beside them the same probe on the memory
that the last frames alone leave, on the last frame, and a constant. Trained and tested on different held-out mazes.

They read the SSM states as they are, or what the frozen network answers when it is asked for its own way back, or the
map of a model that keeps one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from training.baselines import model_type
from training.data.pose_input import Conditioning, model_poses
from training.evaluation.figures import listed
from training.evaluation.walks import SPLIT, recorded_walks
from training.probes.maze_labels import maze_of
from training.probes.probe_model import ProbeData, ProbeTraining, predict, train_probe
from training.probes.readouts import Around, Reading, Readout, reading_of
from training.probes.samples import read_moments
from training.recording.rollouts import check_held_out
from training.store.episode_store import open_store
from wm_gym.checkpoint import Checkpoint, load_checkpoint, resolve_device
from wm_gym.files import write_json
from wm_gym.provenance import provenance
from wm_gym.seeds import parse_seeds, seed_ranges
from wm_gym.statistics import Bootstrap, Estimate
from wm_gym.world_model import WorldModel, WorldModelConfig


@dataclass(frozen=True)
class ProbeArguments:
    """Probes the memory of a checkpoint."""

    checkpoint: str  # path, packaged name or Hugging Face Hub id
    seeds: str  # "7000000-7000511", inclusive: held-out mazes, for training, validation and test of the probes
    out: Path  # JSON file to write
    context: int = 400  # real frames that are read
    env: str | None = None  # environment id; None: that of the checkpoint
    policy: str = "navigator"  # how the agent walks
    rollouts: Path | None = None  # store of the walks, which grows by what it lacks; None: beside the JSON file
    workers: int = 0  # processes that record; 0: one for each core
    envs_per_worker: int = 1  # walks that each of them records at a time; 4 to 8 on a GPU
    conditioning: Conditioning | None = None
    """Whether a model that takes poses is given them, as in training.evaluate; None: if it needs them."""
    readout: Readout | None = None
    """states: the probe reads all SSM states. asked: it reads what the frozen network answers to frames of pure noise
    at the poses of its walk, in reverse. map: it reads the map that the model keeps, around each position. None: map,
    if the checkpoint keeps one; else asked, if it takes planar poses and hides noise."""
    around: Around | None = None
    """agent: what is around it, in the directions that it looks in. start: a map of the maze, as seen from the first
    frame; probes of states are told the agent's pose on it. None: start for planar poses, which count from there."""
    radius: int = 0  # cells to each side that are asked for; 0: 4 around the agent, 8 around the start
    moments: int = 0
    """Of each walk that a probe is trained on, evenly spaced; it is tested at the last one only. 0: 4, or 2 if the
    network is asked."""
    test_fraction: float = 0.25  # of the mazes
    validation_fraction: float = 0.1  # of the mazes
    training: ProbeTraining = field(default_factory=ProbeTraining)
    seed: int = 0  # of the probes' training
    device: str = "auto"  # "auto" takes the GPU if there is one


def probe_checkpoint(arguments: ProbeArguments, argv: Sequence[str]) -> dict[str, Any]:
    """All figures, as they go into the JSON file.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: seeds that were trained on, a model with poses that are not planar, or walks of another environment
            than Memory Maze.
        RuntimeError: a process that records died; finished walks are kept.
    """
    checkpoint, model = _load(arguments)
    seeds = parse_seeds(arguments.seeds)
    check_held_out(seeds, checkpoint.metadata.get("training_seeds", []))
    test, validation, training = split_mazes(len(seeds), arguments.test_fraction, arguments.validation_fraction)
    env_id = arguments.env or checkpoint.metadata.get("env_id")
    if env_id is None:
        raise ValueError("The checkpoint does not name its environment; give --env.")
    arguments, reading = settled(arguments, model.config)
    if arguments.moments < 1 or arguments.context < 2 * arguments.moments:
        raise ValueError(f"{arguments.moments} moments do not fit into a context of {arguments.context} frames.")
    path = arguments.rollouts or arguments.out.with_name(f"{arguments.out.stem}_rollouts")
    frames, of_workers = arguments.context, (arguments.workers, arguments.envs_per_worker)
    walks = recorded_walks(path, env_id, arguments.policy, seeds, frames, None, *of_workers)
    store = open_store(path)
    mazes = [maze_of(store.attributes(seed, SPLIT), seed) for seed in walks.seeds]
    lengths = [len(part) + int(part[0]) for part in np.array_split(np.arange(arguments.context), arguments.moments)]
    assert arguments.conditioning is not None
    poses = model_poses(model.config, walks.pose, arguments.conditioning)
    moments = read_moments(model, walks, mazes, poses, lengths, reading, arguments.radius)
    parts = training, validation, test
    columns = {
        source: probe_source([moment.data[source] for moment in moments], parts, reading, arguments)
        for source in tqdm(moments[-1].data, desc="training probes", unit="probe", leave=False)
    }
    truth = moments[-1].data["state"].rows(test)
    columns["constant"] = constant(moments[-1].data["state"].rows(training), len(test))
    rows = test.cpu().numpy()
    return {
        "checkpoint": Path(arguments.checkpoint).name,
        "frames_seen": checkpoint.metadata.get("frames_seen"),
        "env_id": env_id,
        "policy": arguments.policy,
        "context": arguments.context,
        "seeds": seed_ranges(seeds),
        "num_mazes": {"training": len(training), "validation": len(validation), "test": len(test)},
        "radius": arguments.radius,
        "around": arguments.around,
        "conditioning": arguments.conditioning,
        "readout": arguments.readout,
        "training": asdict(arguments.training),
        "definitions": _definitions(reading),
        "columns": {
            name: probe_figures(answers, truth, moments[-1].seen[rows], moments[-1].objects_seen[rows])
            for name, answers in columns.items()
        },
        **provenance("training.probe", argv),
    }


def _load(arguments: ProbeArguments) -> tuple[Checkpoint, WorldModel]:
    """The checkpoint and its model, if probes can read it."""
    checkpoint = load_checkpoint(arguments.checkpoint)
    device = resolve_device(arguments.device)
    if model_type(checkpoint.config) is not WorldModel:
        raise ValueError("Probes read SSM states of our own models; the checkpoint is a baseline.")
    model = WorldModel.from_weights(checkpoint.config, checkpoint.tensors, device, arguments.checkpoint)
    if model.config.has_poses and model.config.pose.kind != "planar":
        raise ValueError(
            "The checkpoint is given poses as they are recorded; a probe of what it knows of places would read them."
        )
    return checkpoint, model


def _definitions(reading: Reading) -> dict[str, str]:
    """What the figures mean."""
    return {
        "walls": "share of positions, one cell apart around the agent in its own directions and inside the maze, "
        "where wall or no wall is told rightly",
        "objects": "distance in cells between where an object is and where it is told to be",
        "seen": "cells in view from some frame of the context",
        **reading.definitions(),
        "constant": "the commonest answer at each position, the mean place of each object",
    }


def settled(arguments: ProbeArguments, config: WorldModelConfig) -> tuple[ProbeArguments, Reading]:
    """With what suits the model in place of what was left open; and how it is read.

    Raises:
        ValueError: the model cannot be read as it is to be.
    """
    around = arguments.around or ("start" if config.pose.kind == "planar" else "agent")
    reading = reading_of(arguments.readout, config, around)
    training, defaults = arguments.training, reading.defaults
    return replace(
        arguments,
        readout=reading.name,
        around=around,
        conditioning=arguments.conditioning or ("pose" if config.needs_poses else "action"),
        radius=arguments.radius or (8 if around == "start" else 4),
        moments=arguments.moments or reading.moments,
        training=replace(
            training,
            width=training.width or defaults.width,
            learning_rate=training.learning_rate or defaults.learning_rate,
            batch_size=training.batch_size or defaults.batch_size,
        ),
    ), reading


def split_mazes(num_mazes: int, test_fraction: float, validation_fraction: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows for test, validation and training, in the order of the seeds. Raises ValueError if one has no maze."""
    num_test, num_validation = round(num_mazes * test_fraction), max(1, round(num_mazes * validation_fraction))
    if num_test < 1 or num_mazes - num_test - num_validation < 1:
        raise ValueError(f"{num_mazes} mazes are too few for training, validation and test; give more seeds.")
    test, validation, training = torch.arange(num_mazes).split(
        [num_test, num_validation, num_mazes - num_test - num_validation]
    )
    return test, validation, training


def probe_source(
    moments: list[ProbeData], split: tuple[Tensor, Tensor, Tensor], reading: Reading, arguments: ProbeArguments
) -> tuple[Tensor, Tensor]:
    """Trains a probe on all moments and answers for the test mazes at the last one: walls [S, P], objects [S, k, 2]."""
    training, validation, test = split
    together = ProbeData.joined([moment.rows(training) for moment in moments])
    probe = train_probe(together, moments[-1].rows(validation), arguments.training, arguments.seed, reading.probe)
    return predict(probe, moments[-1].rows(test), arguments.training.batch_size)


def constant(data: ProbeData, num_samples: int) -> tuple[Tensor, Tensor]:
    """The best answers that look at nothing: walls [S, P], objects [S, k, 2]."""
    share = (data.walls * data.inside).sum(0) / data.inside.sum(0).clamp(min=1)
    return (share > 0.5).expand(num_samples, -1), data.objects.mean(0).expand(num_samples, -1, -1)


def probe_figures(
    answers: tuple[Tensor, Tensor], truth: ProbeData, seen: np.ndarray, objects_seen: np.ndarray
) -> dict[str, Any]:
    """Accuracy of walls and error of objects, over all, what was seen and what was not, with 95% intervals."""
    bootstrap = Bootstrap(len(truth))
    right = (answers[0] == truth.walls.bool()).double().cpu().numpy()
    inside = truth.inside.cpu().numpy()
    error = (answers[1] - truth.objects).norm(dim=-1).double().cpu().numpy()
    anywhere = np.ones_like(objects_seen)
    return {
        "walls": _split(bootstrap.mean(right, np.stack([inside, inside & seen, inside & ~seen]))),
        "objects": _split(bootstrap.mean(error, np.stack([anywhere, objects_seen, ~objects_seen]))),
    }


def _split(estimate: Estimate) -> dict[str, Any]:
    columns = {name: listed(getattr(estimate, name)) for name in ("value", "low", "high")}
    counts = estimate.num_frames.tolist()
    return {
        part: {**{name: values[i] for name, values in columns.items()}, "count": counts[i]}
        for i, part in enumerate(("all", "seen", "unseen"))
    }


def print_table(record: dict[str, Any]) -> None:
    """Prints the figures of a record."""
    print(f"{record['num_mazes']['test']} test mazes, after {record['context']} frames (all / seen / unseen)")
    for name, figures in record["columns"].items():
        parts = [" / ".join(_short(figures[what][part]) for part in figures[what]) for what in ("walls", "objects")]
        print(f"{name:>14}  walls {parts[0]}   objects, cells off: {parts[1]}")


def _short(figure: dict[str, Any]) -> str:
    return "-" if figure["value"] is None else f"{figure['value']:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command; an error that a user can mend is one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = tyro.cli(ProbeArguments, args=argv, prog="python -m training.probe", description=__doc__)
        record = probe_checkpoint(arguments, argv)
        write_json(arguments.out, record)
    except (FileNotFoundError, ImportError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    print_table(record)


if __name__ == "__main__":
    main()
