"""Checkpoints from which a training run goes on exactly: weights, averages, optimizer, random streams, counters.

One safetensors file each, with everything that is not a tensor as JSON in its header; no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from training.loop.distributed import Processes
from training.loop.ema import ExponentialMovingAverage
from training.objective.options.hooks import ActiveOptions
from wm_gym.files import atomic_path
from wm_gym.nn.config import nested_config
from wm_gym.seeds import seed_ranges

FORMAT_NAME = "wm_gym.training_run"
FORMAT_VERSION = 3

_HEADER_KEY = "training"


@dataclass
class RunState:
    """All that changes while a run goes on."""

    model: nn.Module
    ema: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    noise_generator: torch.Generator
    step: int = 0  # optimizer steps done
    frames_seen: int = 0  # by all processes
    elapsed_minutes: float = 0.0  # by all sessions of the run
    data_seeds: list[int] = field(default_factory=list)  # of the episodes from which batches are drawn
    options: ActiveOptions = field(default_factory=ActiveOptions)  # of this process

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All that the optimizer moves: the model's parameters and, under "options.", those of options."""
        of_options = self.options.named_parameters()
        return dict(self.model.named_parameters()) | {f"options.{name}": p for name, p in of_options.items()}


def save_run_state(folder: Path, state: RunState, settings: Mapping[str, Any], processes: Processes, keep: int) -> Path:
    """Writes one checkpoint atomically and removes all but the latest `keep`. Every process has to call it.

    Args:
        settings: JSON types that must be equal when the run goes on.
    """
    noise_states = processes.gather(state.noise_generator.get_state())
    of_options = {name: processes.gather(tensor.cpu()) for name, tensor in state.options.state_dict().items()}
    path = folder / f"step_{state.step:09d}.safetensors"
    if processes.is_main:
        tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in state.ema.tensors.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in _optimizer_tensors(state).items()}
        for rank in range(processes.num_processes):
            tensors[f"random.noise.{rank}"] = noise_states[rank]
            tensors |= {f"options.{rank}.{name}": of_ranks[rank] for name, of_ranks in of_options.items()}
        header = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "step": state.step,
            "frames_seen": state.frames_seen,
            "elapsed_minutes": state.elapsed_minutes,
            "data_seeds": seed_ranges(state.data_seeds),
            "settings": dict(settings),
        }
        stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(stored, temporary, {_HEADER_KEY: json.dumps(header)})
        for old in checkpoints(folder)[:-keep]:
            old.unlink()
    processes.barrier()
    return path


def load_run_state(path: Path, state: RunState, settings: Mapping[str, Any], processes: Processes) -> None:
    """Puts a checkpoint into `state`, in place.

    Args:
        settings: those of now, which must be equal to those of then.

    Raises:
        ValueError: if the file is damaged or foreign, or if it was written under other settings.
    """
    header, tensors = _read(path)
    _check_settings(path, header["settings"], settings)
    state.model.load_state_dict(_section(tensors, "model."))
    with torch.no_grad():
        for name, tensor in _section(tensors, "ema.").items():
            state.ema.tensors[name].copy_(tensor)
    state.options.load_state_dict(_section(tensors, f"options.{processes.rank}."))
    _load_optimizer(state, _section(tensors, "optimizer."))
    state.noise_generator.set_state(tensors[f"random.noise.{processes.rank}"])
    state.step, state.frames_seen = header["step"], header["frames_seen"]
    state.elapsed_minutes = header["elapsed_minutes"]
    state.data_seeds = _seeds(header)


def load_data_seeds(path: Path) -> list[int]:
    """Seeds of the episodes from which the run of this checkpoint drew its batches. Raises ValueError as above."""
    return _seeds(_read(path, with_tensors=False)[0])


def load_run_progress(path: Path, settings: Mapping[str, Any]) -> tuple[int, float]:
    """Steps and minutes of the run of this checkpoint.

    Args:
        settings: those that must be equal, of now; the checkpoint may have more.

    Raises:
        ValueError: as by `load_run_state`.
    """
    header = _read(path, with_tensors=False)[0]
    _check_settings(path, {name: header["settings"].get(name) for name in settings}, settings)
    return header["step"], header["elapsed_minutes"]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step_*.safetensors"))


def _read(path: Path, with_tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"The checkpoint {path} is damaged or truncated ({error}); remove it to go on from the one before."
        ) from error
    if header.get("format") != FORMAT_NAME or header.get("version") != FORMAT_VERSION:
        raise ValueError(f"{path} is no {FORMAT_NAME} of version {FORMAT_VERSION}; choose another output folder.")
    return header, tensors


def _seeds(header: Mapping[str, Any]) -> list[int]:
    return [seed for first, last in header["data_seeds"] for seed in range(first, last + 1)]


def _check_settings(path: Path, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    recipe = saved.get("recipe", {})
    if isinstance(model := recipe.get("model"), Mapping):  # flat in runs that began before version 0.2
        saved = {**saved, "recipe": {**recipe, "model": nested_config(model)}}
    saved_flat, given_flat = flattened(saved), flattened(json.loads(json.dumps(given)))
    differences = [
        f"{name} was {saved_flat.get(name)!r} and is {given_flat.get(name)!r}"
        for name in sorted(saved_flat.keys() | given_flat.keys())
        if saved_flat.get(name) != given_flat.get(name)
    ]
    if differences:
        raise ValueError(
            f"The run of {path} was started with other settings: {'; '.join(differences)}. "
            "Give the same ones to go on with it, or another --out to start a new run."
        )


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings and lists by their dotted paths, such as "model.map.size"."""
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    return {
        name: leaf
        for key, value in items
        for name, leaf in flattened(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _optimizer_tensors(state: RunState) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in state.named_parameters().items()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(state: RunState, tensors: Mapping[str, Tensor]) -> None:
    """Through `load_state_dict`, which knows the device and dtype that each entry needs."""
    names = {parameter: name for name, parameter in state.named_parameters().items()}
    ordered = [names[parameter] for group in state.optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition(".")
        entries.setdefault(ordered.index(name), {})[entry] = tensor
    state.optimizer.load_state_dict({"state": entries, "param_groups": state.optimizer.state_dict()["param_groups"]})


def _section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
