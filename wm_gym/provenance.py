"""What stands behind a figure: command, commit, hardware, package versions, date."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

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
        "commit": git_commit(),
        "hardware": hardware(),
        "packages": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_commit() -> str | None:
    """The commit of the source tree, with "+changes" if files differ from it; None outside a git repository."""
    folder = Path(__file__).parent
    try:
        commit = _git("rev-parse", "HEAD", folder=folder)
        changes = _git("status", "--porcelain", "--untracked-files=no", folder=folder)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def hardware() -> str:
    """Such as "4 x NVIDIA H200" or "2 cores of x86_64"."""
    if torch.cuda.is_available():
        count = int(os.environ.get("WORLD_SIZE", "1"))
        return f"{count} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores of {platform.machine()}"


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def seed_ranges(seeds: Iterable[int]) -> list[list[int]]:
    """Sorted, inclusive ranges that cover exactly `seeds`: [1, 2, 3, 7] becomes [[1, 3], [7, 7]]."""
    ranges: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ranges


def command_arguments() -> list[str]:
    return sys.argv[1:]


def _portable(argument: str) -> str:
    key, separator, value = argument.rpartition("=")
    return f"{key}{separator}{Path(value).name}" if Path(value).is_absolute() else argument


def _git(*command: str, folder: Path) -> str:
    process = subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True)
    return process.stdout.strip()
