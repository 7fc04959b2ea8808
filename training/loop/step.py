"""The parts of a training run: model from data, optimizer, one step, metrics, export."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from training.data.dataset import Batch, EpisodeDataset
from training.loop.distributed import Processes
from training.loop.optimizers import MuonAdamW
from training.loop.run_state import RunState, flattened
from training.objective.diffusion_forcing import ClassWeights, world_model_loss
from training.objective.metrics import Metrics, single
from training.objective.mirror import check_mirror
from training.objective.options.hooks import ActiveOptions
from training.recipes import Recipe, Stage
from wm_gym.checkpoint import load_checkpoint, save_checkpoint
from wm_gym.nn.backbone import fused_kernels_fit
from wm_gym.provenance import command_arguments, provenance
from wm_gym.seeds import seed_ranges
from wm_gym.world_model import WorldModel, WorldModelConfig

MAP_PREFIX = "backbone.map_memory."
NOISE_PREFIX = "backbone.noise."
LINE_WEIGHT = "backbone.embedding.ray.line.weight"


def model_config(recipe: Recipe, dataset: EpisodeDataset) -> WorldModelConfig:
    """The recipe's model, fitted to the spaces of the data.

    Raises:
        ValueError: if observations are no uint8 frames, actions neither discrete nor vectors, or poses do not fit, or
            if the recipe mirrors what has no known mirror image.
    """
    observations, actions = dataset.observation_space, dataset.action_space
    if not isinstance(observations, gym.spaces.Box) or observations.dtype != "uint8" or len(observations.shape) != 3:
        raise ValueError(f"Observations must be uint8 frames [height, width, channels], the data has {observations}.")
    if isinstance(actions, gym.spaces.Discrete) and actions.start == 0:
        action_kind, action_size = "discrete", int(actions.n)
    elif isinstance(actions, gym.spaces.Box) and len(actions.shape) == 1:
        action_kind, action_size = "continuous", actions.shape[0]
    else:
        raise ValueError(f"Actions must be Discrete from 0 or a Box of one axis, the data has {actions}.")
    pose_size = int(dataset.pose.shape[-1])
    if recipe.model.pose.size not in (0, pose_size):
        raise ValueError(f"pose.size is {recipe.model.pose.size}, but poses in the data have {pose_size} numbers.")
    if recipe.loss.mirror_probability > 0:
        num_actions = action_size if action_kind == "discrete" else None
        pose_kind = recipe.model.pose.kind if recipe.model.has_poses else None
        check_mirror(recipe.loss.mirrored_actions, num_actions, recipe.model.pose.hide_actions, pose_kind)
    height, width, channels = observations.shape
    return dataclasses.replace(
        recipe.model,
        frame_height=height,
        frame_width=width,
        frame_channels=channels,
        action_kind=action_kind,
        action_size=action_size,
    )


def load_initial_weights(model: WorldModel, name_or_path: str) -> None:
    """Copies the weights of a wm_gym checkpoint. Raises ValueError if it was made with another configuration.

    How often it takes in its own frames may differ, and whether actions are hidden from it: no weight depends on that.
    The weights of lines of sight (`pose.ray_lines`) that it did not get begin as 0, and so does what is read from a map
    or seen of noise that it did not have, so that the model starts as the checkpoint was.
    A checkpoint's odometry is left out where the model has none: `training.odometry` adds it when all else
    is trained.
    """
    checkpoint = load_checkpoint(name_or_path)
    config, earlier = model.config, type(model.config).from_dict(checkpoint.config)
    wanted, given = (flattened(each.to_dict()) for each in (config, earlier))
    given |= {key: wanted[key] for key in ("feedback_interval", "write_once", "pose.hide_actions")}
    tensors = checkpoint.tensors
    if not config.has_odometry:
        given |= {key: value for key, value in wanted.items() if key.startswith("odometry.")}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("odometry.")}
    if config.pose.ray_lines and config.has_poses and not earlier.pose.ray_lines:
        given["pose.ray_lines"] = True
        tensors = tensors | {LINE_WEIGHT: torch.zeros_like(model.state_dict()[LINE_WEIGHT])}
    if config.has_map and not earlier.has_map:
        given |= {key: value for key, value in wanted.items() if key.startswith("map.")}
        tensors = tensors | {k: v for k, v in model.state_dict().items() if k.startswith(MAP_PREFIX)}
    if config.sample_noise and not earlier.sample_noise:
        given["sample_noise"] = True
        tensors = tensors | {k: v for k, v in model.state_dict().items() if k.startswith(NOISE_PREFIX)}
    different = sorted(key for key in wanted if given[key] != wanted[key])
    if different:
        was = ", ".join(f"{key}={given[key]!r}" for key in different)
        raise ValueError(f"The checkpoint {name_or_path} is of another model ({was}); set the recipe's model likewise.")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def make_optimizer(
    model: nn.Module, recipe: Recipe, device: torch.device, options: ActiveOptions | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer. Weight decay is for matrices: gains, biases and decay rates have no reason to shrink."""
    parameters = list(model.parameters())
    matrices = layer_matrices(model) if recipe.optimizer == "muon" else []
    moved = {id(parameter) for parameter in matrices}
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in parameters if p.ndim >= 2 and id(p) not in moved],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if options is not None:
        groups += options.parameter_groups()
    fused = device.type == "cuda"
    if recipe.optimizer == "muon":
        return MuonAdamW(matrices, groups, recipe.learning_rate, recipe.betas, recipe.weight_decay, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=fused)


def layer_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of the layers' and the map's linear maps, but for those that begin at zero."""
    assert isinstance(model, WorldModel)
    return [
        module.weight
        for name, module in model.backbone.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(("layers.", "map_memory."))
        and not name.endswith(("modulation", "map_memory.out"))
    ]


def prepare_gpu(model: WorldModel, compile_parts: bool) -> None:
    """TF32 where bf16 is not used; what no fused kernel covers is compiled part by part, which is quick."""
    torch.set_float32_matmul_precision("high")
    if not compile_parts:
        return
    backbone = model.backbone
    for part in (backbone.embedding, backbone.frame_head, backbone.event_head):
        part.compile(dynamic=False)
    if backbone.use_fused_kernels and fused_kernels_fit(model.config, next(backbone.parameters()).device):
        return
    # Layers share their code, so their variants count together: block sizes x segment lengths x with/without gradients.
    torch._dynamo.config.recompile_limit = 64
    for layer in backbone.layers:
        layer.compile(dynamic=False)


def train_step(
    state: RunState,
    batch: Batch,
    recipe: Recipe,
    stage: Stage,
    weights: ClassWeights,
    learning_rate: float,
    processes: Processes,
) -> Metrics:
    """One optimizer step. Leaves everything on the device; nothing waits for it."""
    model, options = state.model, state.options
    assert isinstance(model, WorldModel)
    further = stage.self_context, processes.mean, options
    state.optimizer.zero_grad(set_to_none=True)
    with options.step_context(len(batch.frames)):
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=processes.device.type == "cuda"):
            loss, metrics = world_model_loss(model, batch, recipe.loss, state.noise_generator, weights, *further)
        loss.backward()
    processes.average_gradients(list(state.named_parameters().values()))
    norm = nn.utils.clip_grad_norm_(list(model.parameters()), recipe.clip_norm, foreach=True)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("learning_rate_factor", 1.0)
    state.optimizer.step()
    options.after_step()
    state.step += 1
    state.frames_seen += stage.batch_size * stage.length * processes.num_processes
    state.ema.update(dict(model.named_parameters()), state.step)
    return metrics | {"gradient_norm": single(norm)}


class MetricSums:
    """Sums metrics on the device until they are read, and remembers the first step that was not finite."""

    def __init__(self, device: torch.device) -> None:
        self._names: Sequence[str] = ()
        self._sums: Tensor | None = None
        self._bad_step = torch.full((), -1, device=device)

    def add(self, metrics: Metrics, step: int) -> None:
        """Adds the metrics of a step, sums and counts, without waiting for the device."""
        values = torch.stack([metric.detach().float() for metric in metrics.values()])
        # The gradient is averaged over all processes, so its norm tells each of them about a failure in any.
        is_bad = ~metrics["gradient_norm"].isfinite().all() & (self._bad_step < 0)
        self._bad_step = torch.where(is_bad, step, self._bad_step)
        self._names = tuple(metrics)
        self._sums = values if self._sums is None else self._sums + values

    def check_finite(self, last_good: Path | None) -> None:
        """Raises FloatingPointError with the first bad step. Waits for the device."""
        if (step := int(self._bad_step)) >= 0:
            raise FloatingPointError(
                f"The loss or its gradient was not finite at step {step}; the last good checkpoint is "
                f"{last_good or 'none'}. Try a lower learning_rate or clip_norm."
            )

    def read(self, processes: Processes) -> dict[str, float]:
        """Means over all processes since the last call; those that saw nothing are left out."""
        if self._sums is None:
            return {}
        sums = processes.sum(self._sums).tolist()
        self._sums = None
        return {
            name: numerator / denominator
            for name, (numerator, denominator) in zip(self._names, sums, strict=True)
            if denominator > 0
        }


def export_model(
    path: Path, state: RunState, recipe: Recipe, recipe_name: str, dataset: EpisodeDataset, init: str | None = None
) -> None:
    """Writes the averaged weights as a wm_gym checkpoint, with all that is needed to tell where they come from.

    If the run started from the weights of the checkpoint `init`, that one's history is told under "continues", and its
    mazes count as trained on.
    """
    model = state.model
    assert isinstance(model, WorldModel)
    metadata: dict[str, Any] = {
        "name": recipe_name,
        "env_id": dataset.env_id,
        "frames_seen": state.frames_seen,
        "steps": state.step,
        "elapsed_minutes": round(state.elapsed_minutes, 2),
        "training_seeds": seed_ranges(dataset.seeds),
        "training_data_frames": dataset.num_frames,
        "recipe": dataclasses.asdict(recipe),
        **provenance("training.train", command_arguments()),
    }
    if init is not None:
        earlier = load_checkpoint(init).metadata
        metadata["continues"] = {key: value for key, value in earlier.items() if key not in ("recipe", "packages")}
        seeds = [seed for first, last in earlier.get("training_seeds", []) for seed in range(first, last + 1)]
        metadata["training_seeds"] = seed_ranges([*dataset.seeds, *seeds])
    save_checkpoint(
        path,
        config=model.config.to_dict(),
        tensors=model.state_dict() | state.ema.tensors,
        observation_space=dataset.observation_space,
        action_space=dataset.action_space,
        metadata=metadata,
        dtype=getattr(torch, recipe.export_dtype),
    )
