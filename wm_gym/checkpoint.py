"""Checkpoints: configuration, spaces, metadata and weights in one safetensors file, without pickle.

Everything but the weights is one JSON document in the header of the file. This module knows no network: it reads and
writes what `wm_gym.world_model` and `training` hand to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import safetensors
import safetensors.torch
import torch

from wm_gym.files import atomic_path
from wm_gym.spaces import space_from_json, space_to_json

FORMAT_NAME = "wm_gym.checkpoint"
FORMAT_VERSION = 1
HUB_FILENAME = "model.safetensors"

_HEADER_KEY = "wm_gym"
_WEIGHTS_DIR = Path(__file__).parent / "weights"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    config: dict[str, Any]  # WorldModelConfig as JSON types
    tensors: dict[str, torch.Tensor]
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    metadata: dict[str, Any]  # free JSON: name, environment id, frames seen, command, figures


def save_checkpoint(
    path: str | Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    metadata: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes one file atomically: `path` holds either the whole checkpoint or what it held before.

    Floating-point tensors are stored as `dtype` if given. `config` and `metadata` must be JSON types (TypeError).
    """
    header = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "config": dict(config),
        "observation_space": space_to_json(observation_space),
        "action_space": space_to_json(action_space),
        "metadata": dict(metadata),
    }
    stored = {}
    for name, tensor in tensors.items():
        target_dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        # The copy separates tensors that share storage, which safetensors refuses.
        stored[name] = tensor.detach().to("cpu", target_dtype, copy=True).contiguous()
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(stored, temporary, {_HEADER_KEY: json.dumps(header)})


def load_checkpoint(name_or_path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Reads a checkpoint from a packaged name, the path of a file, or a Hugging Face Hub id "owner/name".

    Raises FileNotFoundError if there is none, and ValueError if the file is damaged, is no checkpoint of this package,
    is of a newer version, or if `device` is not there.
    """
    device = resolve_device(device)
    path = _find(name_or_path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            header = _parse_header(path, file.metadata())
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, truncated or no safetensors file: {error}.") from error
    try:
        return Checkpoint(
            config=header["config"],
            tensors=tensors,
            observation_space=space_from_json(header["observation_space"]),
            action_space=space_from_json(header["action_space"]),
            metadata=header["metadata"],
        )
    except KeyError as error:
        raise ValueError(f"The checkpoint {path} lacks the entry {error} in its header.") from error


def packaged_names() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.stem for path in _WEIGHTS_DIR.glob("*.safetensors"))


def available_devices() -> list[str]:
    """Devices that `resolve_device` accepts on this machine, such as ["cpu", "cuda:0"]."""
    devices = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return devices + (["mps"] if torch.backends.mps.is_available() else [])


def resolve_device(device: str | torch.device) -> torch.device:
    """`device` as a torch.device, "auto" as the GPU if there is one and the CPU if not.

    Raises ValueError that names the available ones if this one is not there.
    """
    available = available_devices()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is not None and any(name in (str(resolved), f"{resolved}:0") for name in available):
        return resolved
    raise ValueError(f"The device {str(device)!r} is not there; available: {', '.join(available)}.")


def _find(name_or_path: str | Path) -> Path:
    packaged = _WEIGHTS_DIR / f"{name_or_path}.safetensors"
    if str(name_or_path) in packaged_names():
        return packaged
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    is_hub_id = isinstance(name_or_path, str) and _HUB_ID.fullmatch(name_or_path) and path.suffix != ".safetensors"
    if is_hub_id and not path.exists():
        return _download(str(name_or_path))
    raise FileNotFoundError(
        f"No checkpoint {str(name_or_path)!r}: expected the path of a file, a Hugging Face Hub id 'owner/name', or one "
        f"of the packaged names ({', '.join(packaged_names()) or 'none in this installation'})."
    )


def _download(hub_id: str) -> Path:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports] (optional)
        import huggingface_hub.errors  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"There is no file {hub_id!r} here, and loading it from the Hugging Face Hub needs "
            "`pip install huggingface_hub`."
        ) from error
    try:
        return Path(huggingface_hub.hf_hub_download(hub_id, HUB_FILENAME))
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"No checkpoint {hub_id!r}: there is no such file here, and the Hugging Face Hub gave no {HUB_FILENAME} "
            f"for it ({error}); the packaged names are: {', '.join(packaged_names()) or 'none'}."
        ) from error


def _parse_header(path: Path, header: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        parsed = json.loads((header or {})[_HEADER_KEY])
        version = int(parsed["version"]) if parsed["format"] == FORMAT_NAME else None
    except (KeyError, TypeError, ValueError):
        parsed, version = {}, None
    if version is None:
        raise ValueError(f"{path} is a safetensors file, but no {FORMAT_NAME} (written by save_checkpoint).")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has checkpoint version {version}; this wm_gym reads up to {FORMAT_VERSION}, please update it."
        )
    return parsed
