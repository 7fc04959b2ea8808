"""Keeps how far a training has come, so that it goes on after a kill exactly as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wm_gym.files import atomic_path

_HEADER_KEY = "odometry_training"


@dataclass(frozen=True)
class Progress:
    """A folder with one safetensors file for each part of a training.

    Args:
        folder: where the files lie; it is made when the first one is written, and `remove` takes it away.
        settings: JSON types, which must be equal when the training goes on.
        save_seconds: between two writings of a part.
    """

    folder: Path
    settings: Mapping[str, Any]
    save_seconds: float = 60.0

    def part(self, name: str) -> PartProgress:
        """The part called `name`."""
        return PartProgress(self.folder / f"{name}.safetensors", self.settings, self.save_seconds)

    def remove(self) -> None:
        """Removes the folder, once the training's result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


class PartProgress:
    """The state of one part: its parameters, its optimizer, its random numbers, its steps and minutes."""

    def __init__(self, path: Path, settings: Mapping[str, Any], save_seconds: float) -> None:
        self._path, self._settings, self._save_seconds = path, json.loads(json.dumps(settings)), save_seconds
        self._saved = time.monotonic()

    def is_finished(self) -> bool:
        """Whether the part has come to its end; raises ValueError as `load` does."""
        return self._path.exists() and bool(self._header()["finished"])

    def load(
        self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> tuple[int, float]:
        """Puts what was kept in place, if there is anything, and returns the steps and minutes done.

        Raises:
            ValueError: if the file is damaged, or the training was begun with other settings.
        """
        if not self._path.exists():
            return 0, 0.0
        header, tensors = self._header(), safetensors.torch.load_file(self._path)
        entries: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for number, parameter in enumerate(parameters):
                parameter.copy_(tensors.pop(f"parameter.{number}"))
        generator.set_state(tensors.pop("random"))
        for key, tensor in tensors.items():
            _, number, entry = key.split(".")
            entries.setdefault(int(number), {})[entry] = tensor
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        return header["step"], header["minutes"]

    def is_due(self) -> bool:
        """Whether the state is to be written again."""
        return time.monotonic() - self._saved >= self._save_seconds

    def save(
        self,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        step: int,
        minutes: float,
        finished: bool,
    ) -> None:
        """Writes the state atomically."""
        tensors = {f"parameter.{number}": parameter for number, parameter in enumerate(parameters)}
        for number, parameter in enumerate(parameters):
            for name, entry in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{number}.{name}"] = entry
        stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        stored["random"] = generator.get_state()
        header = {"step": step, "minutes": minutes, "finished": finished, "settings": self._settings}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path) as temporary:
            safetensors.torch.save_file(stored, temporary, {_HEADER_KEY: json.dumps(header)})
        self._saved = time.monotonic()

    def _header(self) -> dict[str, Any]:
        try:
            with safetensors.safe_open(self._path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_HEADER_KEY])
        except (safetensors.SafetensorError, json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{self._path} is damaged ({error}); remove it to begin this part again.") from error
        if header["settings"] != self._settings:
            raise ValueError(
                f"The training kept in {self._path.parent} was begun with other settings; give the same ones to go on "
                "with it, or remove the folder to begin again."
            )
        return header
