"""Makes the odometry of a world model: trains its parts, joins them with a checkpoint, and measures their drift."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from training.data.dataset import EpisodeDataset
from training.odometry.bearings import BearingsTraining, train_bearings
from training.odometry.dreamed_walks import DreamedWalks, dream_walks
from training.odometry.drift import drift_figures
from training.odometry.learning import OdometryTraining, train_odometry
from training.odometry.mapped_walks import MapTraining, map_walks, train_by_map
from training.odometry.progress import PartProgress, Progress
from training.recording.rollouts import check_held_out, read_rollouts
from training.store.episode_store import open_store
from wm_gym.checkpoint import load_checkpoint, resolve_device, save_checkpoint
from wm_gym.files import write_json
from wm_gym.nn.config import NO_MAP, NO_ODOMETRY, OdometryConfig, WorldModelConfig
from wm_gym.odometry.visual import VisualOdometry
from wm_gym.provenance import provenance
from wm_gym.seeds import seed_ranges
from wm_gym.world_model import WorldModel

PREFIX, BY_MAP, BEARINGS = "odometry.", "by_map.", "bearings."
# Most of the numbers, kept in float16; what predicts free motion, step upon step, stays in float32.
HALVED = ("compare.weight", "pair.", BEARINGS, *(BY_MAP + name for name in ("cell.", "enter.", "part.", "deep.")))


@dataclass(frozen=True, kw_only=True)
class OdometryRecipe:
    """What the odometry of a model is trained by."""

    training: OdometryTraining = field(default_factory=OdometryTraining)
    dreamed_walks: int = 0  # of --data whose frames the model of --checkpoint dreams, to train on these as well
    dream_context: int = 400  # real frames before each dream
    dream_frames: int = 400  # dreamed ones
    mapped_walks: int = 64  # of --data, of which a model with a map makes maps, to move by these in its dreams
    map_every: int = 100  # frames between two maps of a walk
    by_map: MapTraining = field(default_factory=MapTraining)
    bearings: BearingsTraining = field(default_factory=BearingsTraining)  # for mazes whose walls stand on a grid


@dataclass(frozen=True, kw_only=True)
class OdometryArguments(OdometryRecipe):
    """Trains, adds and measures odometry."""

    out: Path  # checkpoint to write
    data: Path | None = None  # store of walks with poses; None: nothing is trained
    checkpoint: str | None = None  # model that gets the odometry; None: the odometry is written alone
    init: str | None = None  # file whose odometry is taken, to train it on, or as it is
    evaluate: Path | None = None  # JSON file for the drift on held-out walks
    evaluation_data: Path | None = None  # store with those walks, in the split test; None: that of --data
    evaluation_steps: tuple[int, ...] = (100, 400)  # drift after so many
    max_gigabytes: float = 60.0  # of frames that are loaded
    device: str = "auto"  # "auto" takes the GPU if there is one


@dataclass(frozen=True)
class _Model:
    """A checkpoint, or what takes its place where there is none."""

    config: WorldModelConfig
    tensors: dict[str, Tensor]
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    metadata: dict[str, Any]


def make_odometry(arguments: OdometryArguments, argv: Sequence[str]) -> dict[str, Any] | None:
    """Trains or takes the odometry of a model, writes the checkpoint, and returns the figures if `evaluate` is set.

    Raises:
        FileNotFoundError: no such checkpoint or store.
        ValueError: a checkpoint without planar poses, data of another environment, nothing to train or to take, or a
            training that was begun with other settings.
    """
    if arguments.data is None and arguments.init is None:
        raise ValueError("There is nothing to make odometry from: give --data to train it, or --init to take it.")
    if arguments.data is not None and not arguments.training.steps and arguments.init is None:
        raise ValueError("training.steps 0 leaves what looks at frames untrained: give --init, whose odometry to take.")
    device = resolve_device(arguments.device)
    model = _model(arguments)
    torch.manual_seed(arguments.training.seed)
    odometry = VisualOdometry(model.config).to(device)
    metadata = dict(model.metadata)
    progress = _progress(arguments, model)
    if arguments.init is not None:
        trained = () if arguments.data is None else _trained_parts(arguments)
        metadata |= _take(odometry, arguments.init, trained)
    if arguments.data is not None:
        earlier = metadata.get("odometry", {}) if arguments.init is not None else {}
        history = _train(odometry, model, arguments, device, earlier, progress)
        metadata["odometry"] = history | provenance("training.odometry", argv)
    tensors = {key: value for key, value in model.tensors.items() if not key.startswith(PREFIX)}
    state = odometry.state_dict()
    tensors |= {PREFIX + key: value.half() if key.startswith(HALVED) else value for key, value in state.items()}
    save_checkpoint(
        arguments.out,
        config=model.config.to_dict(),
        tensors=tensors,
        observation_space=model.observation_space,
        action_space=model.action_space,
        metadata=metadata,
    )
    progress.remove()
    return None if arguments.evaluate is None else _evaluate(odometry.eval(), arguments, metadata, argv)


def _progress(arguments: OdometryArguments, model: _Model) -> Progress:
    """Where the training is kept until the checkpoint is written."""
    values = dataclasses.asdict(arguments)
    recipe = {each.name: values[each.name] for each in dataclasses.fields(OdometryRecipe)}
    settings = {**recipe, "init": arguments.init, "trained_on": model.metadata.get("date")}
    return Progress(arguments.out.with_name(arguments.out.name + ".training"), settings)


def _model(arguments: OdometryArguments) -> _Model:
    if arguments.checkpoint is not None:
        loaded = load_checkpoint(arguments.checkpoint)
        config = WorldModelConfig.from_dict(loaded.config)
        if config.pose.kind != "planar":
            raise ValueError(
                f"{arguments.checkpoint} is not conditioned on planar poses, so odometry is of no use to it."
            )
        config = dataclasses.replace(config, odometry=_odometry_config(arguments, config.odometry))
        return _Model(config, loaded.tensors, loaded.observation_space, loaded.action_space, loaded.metadata)
    if arguments.data is None:
        loaded = load_checkpoint(str(arguments.init))
        config = WorldModelConfig.from_dict(loaded.config)
        return _Model(config, {}, loaded.observation_space, loaded.action_space, {})
    header = open_store(arguments.data).header
    height, width, channels = header.frame_shape
    space, discrete = header.action_space, isinstance(header.action_space, gym.spaces.Discrete)
    size = int(space.n) if isinstance(space, gym.spaces.Discrete) else int(header.action_shape[0])
    config = WorldModelConfig(
        frame_height=height,
        frame_width=width,
        frame_channels=channels,
        action_kind="discrete" if discrete else "continuous",
        action_size=size,
        map=NO_MAP,
        odometry=_odometry_config(arguments, OdometryConfig()),
        patch_size=1,
        block_sizes=(1,),
    )
    return _Model(config, {}, header.observation_space, space, {"env_id": header.env_id, "name": "odometry"})


def _odometry_config(arguments: OdometryArguments, like: OdometryConfig) -> OdometryConfig:
    """The odometry to be made, with the numbers of `like`; of kind "grid" if bearings are trained or taken over."""
    on_grid = bool(arguments.bearings.steps)
    if not on_grid and arguments.init is not None:
        on_grid = any(key.startswith(PREFIX + BEARINGS) for key in load_checkpoint(arguments.init).tensors)
    return dataclasses.replace(like, kind="grid" if on_grid else "learned")


def _trained_parts(arguments: OdometryArguments) -> tuple[str, ...]:
    """Of those that not every odometry has, the ones that are to be trained."""
    steps = {BY_MAP: arguments.by_map.steps, BEARINGS: arguments.bearings.steps}
    return tuple(part for part, count in steps.items() if count)


def _take(odometry: VisualOdometry, source: str, trained: tuple[str, ...]) -> dict[str, Any]:
    """Loads the weights and returns what the file says of how they were trained. What it lacks has to be `trained`."""
    checkpoint = load_checkpoint(source)
    tensors = checkpoint.tensors
    weights = {key.removeprefix(PREFIX): value.float() for key, value in tensors.items() if key.startswith(PREFIX)}
    if not weights:
        raise ValueError(f"{source} has no odometry; train one with --data.")
    own = odometry.state_dict()
    parts = (BY_MAP, BEARINGS)
    wanted = {key for key in own if key.startswith(parts)}
    # What moves by a map is another network where odometry takes bearings.
    fresh = {key for key in wanted if key not in weights or weights[key].shape != own[key].shape}
    if lacking := sorted(key for key in fresh if not key.startswith(trained)):
        what = "move by a map" if lacking[-1].startswith(BY_MAP) else "take bearings"
        raise ValueError(
            f"The odometry of {source} does not {what}, as the model's does; give --data and steps for it."
        )
    if any(key.startswith(BY_MAP) for key in fresh):
        fresh = fresh | {key for key in wanted if key.startswith(BY_MAP)}
    weights = {key: value for key, value in weights.items() if key in wanted or not key.startswith(parts)}
    weights |= {key: own[key] for key in fresh}
    try:
        odometry.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The odometry of {source} is for other frames or actions: {error}.") from error
    history = dict(checkpoint.metadata.get("odometry", {}))
    if odometry.by_map is None or any(key.startswith(BY_MAP) for key in fresh):
        history.pop("by_map", None)
    return {"odometry": history} if history else {}


def _train(
    odometry: VisualOdometry,
    model: _Model,
    arguments: OdometryArguments,
    device: torch.device,
    earlier: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Trains what there are steps for, and returns its history.

    Args:
        earlier: the history of the weights that it begins with.
    """
    assert arguments.data is not None
    begin = time.monotonic()
    torch.backends.cudnn.benchmark = True  # every step is of the same shapes
    by_eye = _train_by_eye(odometry, model, arguments, device, progress)
    by_map = _train_by_map(odometry, model, arguments, device, progress.part("map"))
    if not by_map and not by_eye:
        raise ValueError(
            "There is nothing to train: training.steps is 0, so is bearings.steps, and no map is moved by."
        )
    histories = (earlier, by_eye, by_eye.get("bearings", {}), by_map.get("by_map", {}))
    ranges = [one for history in histories for one in history.get("training_seeds", [])]
    seeds = seed_ranges(seed for first, last in ranges for seed in range(first, last + 1))
    minutes = round((time.monotonic() - begin) / 60, 2)
    return {**earlier, **by_eye, **by_map, "minutes": minutes, "training_seeds": seeds}


def _train_by_eye(
    odometry: VisualOdometry, model: _Model, arguments: OdometryArguments, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """What looks at frames: at two beside each other, and at one for its bearings."""
    assert arguments.data is not None
    if not arguments.training.steps and not arguments.bearings.steps:
        return {}
    limit = int(arguments.max_gigabytes * 1e9)
    dataset = EpisodeDataset(arguments.data, "train", device, limit, env_id=model.metadata.get("env_id"))
    if dataset.pose.shape[1] != 4:
        raise ValueError(
            f"{arguments.data} has poses of size {dataset.pose.shape[1]}; odometry learns from planar ones."
        )
    seen = {"num_frames": dataset.num_frames, "training_seeds": seed_ranges(dataset.seeds)}
    history: dict[str, Any] = {}
    if arguments.training.steps:
        part = progress.part("frames")
        dreams = _dreams(model, arguments, device) if arguments.dreamed_walks and not part.is_finished() else None
        steps = train_odometry(odometry, dataset, arguments.training, dreams, part)
        history = {"steps": steps, **seen, "dreamed_walks": arguments.dreamed_walks}
    if arguments.bearings.steps:
        part = progress.part("bearings")
        history["bearings"] = {"steps": train_bearings(odometry, dataset, arguments.bearings, part), **seen}
    return history


def _train_by_map(
    odometry: VisualOdometry, model: _Model, arguments: OdometryArguments, device: torch.device, part: PartProgress
) -> dict[str, Any]:
    """Nothing for a model without a map."""
    if odometry.by_map is None or not arguments.by_map.steps:
        return {}
    if arguments.checkpoint is None:
        raise ValueError("Odometry that moves by a map is trained on the maps of a model; give --checkpoint.")
    assert arguments.data is not None
    store, env_id = open_store(arguments.data), model.metadata.get("env_id")
    if env_id is not None and not store.header.is_of(env_id):
        raise ValueError(f"{arguments.data} holds episodes of {store.header.env_id}, the model is of {env_id}.")
    walks = map_walks(_without_odometry(model, device), arguments.data, arguments.mapped_walks, arguments.map_every)
    steps = train_by_map(odometry, walks, arguments.by_map, part)
    seeds = seed_ranges(store.seeds("train")[: arguments.mapped_walks])
    by_map = {"steps": steps, "walks": arguments.mapped_walks, "map_every": arguments.map_every}
    return {"by_map": by_map | {"training_seeds": seeds}}


def _dreams(model: _Model, arguments: OdometryArguments, device: torch.device) -> DreamedWalks:
    assert arguments.data is not None
    if arguments.checkpoint is None:
        raise ValueError("--dreamed-walks needs the model that dreams them: give --checkpoint.")
    if arguments.dreamed_walks < 0 or arguments.dream_context < 1 or arguments.dream_frames < arguments.training.length:
        raise ValueError(
            "dreamed_walks must be at least 0, dream_context at least 1 and dream_frames at least a window's "
            f"{arguments.training.length}, got {arguments.dreamed_walks}, {arguments.dream_context} and "
            f"{arguments.dream_frames}."
        )
    lengths = arguments.dream_context, arguments.dream_frames
    return dream_walks(_without_odometry(model, device), arguments.data, arguments.dreamed_walks, *lengths)


def _without_odometry(model: _Model, device: torch.device) -> WorldModel:
    """The world model as it is where poses are given."""
    config = dataclasses.replace(model.config, odometry=NO_ODOMETRY)
    tensors = {key: value for key, value in model.tensors.items() if not key.startswith(PREFIX)}
    return WorldModel.from_weights(config.to_dict(), tensors, device)


def _evaluate(
    odometry: VisualOdometry, arguments: OdometryArguments, metadata: dict[str, Any], argv: Sequence[str]
) -> dict[str, Any]:
    path = arguments.evaluation_data or arguments.data
    if path is None or arguments.evaluate is None:
        raise ValueError("--evaluate needs walks: give --evaluation-data.")
    store = open_store(path)
    seeds = store.seeds("test")
    check_held_out(seeds, metadata.get("odometry", {}).get("training_seeds", []))
    length = min((store.num_frames(seed, "test") for seed in seeds), default=0)
    figures = drift_figures(odometry, read_rollouts(path, "test", None, length), arguments.evaluation_steps)
    record = {
        **figures,
        "definitions": {
            "drift": "distance in cells and angle in degrees between the true and the estimated pose after so many "
            "steps, from frames and actions alone; the first pose is known, the speed is not",
            "step": "error of the predicted motion to a frame that was not seen yet, from the sixth step on",
            "spoilt_frames": "the same walks, blurred and with noise as in training",
            "frames_alone": "the same walks, from the fifth frame on each looked at alone, as dreamed ones are",
        },
        "seeds": seed_ranges(seeds),
        "parameters": sum(parameter.numel() for parameter in odometry.parameters()),
        "training": metadata.get("odometry"),
        **provenance("training.odometry", argv),
    }
    write_json(arguments.evaluate, record)
    return record
