"""What stands behind a figure: command, commit, hardware, package versions, date."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from wm_gym.machine import commit, versions

PACKAGES = (
    "torch",
    "numpy",
    "gymnasium",
    "safetensors",
    "zarr",
    "mamba-ssm",
    "memory-maze",
    "mujoco",
    "dm-control",
    "stable-baselines3",
)


def provenance(module: str, arguments: Iterable[str]) -> dict[str, Any]:
    """A JSON-ready record of how the running process was started and on what.

    Args:
        module: as in ``python -m module``.
        arguments: those of the command line; absolute paths are reduced to their names, which mean the same elsewhere.
    """
    return {
        "command": shlex.join(["python", "-m", module, *(_portable(argument) for argument in arguments)]),
        "commit": commit(),
        "hardware": hardware(),
        "packages": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hardware() -> str:
    """Such as "4 x NVIDIA H200" or "2 cores of x86_64"."""
    if torch.cuda.is_available():
        count = int(os.environ.get("WORLD_SIZE", "1"))
        return f"{count} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores of {platform.machine()}"


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, by name."""
    return versions(PACKAGES)


def command_arguments() -> list[str]:
    """The arguments that this process was started with."""
    return sys.argv[1:]


def _portable(argument: str) -> str:
    key, separator, value = argument.rpartition("=")
    return f"{key}{separator}{Path(value).name}" if Path(value).is_absolute() else argument
