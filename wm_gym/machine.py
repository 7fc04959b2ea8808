"""What a figure was made on: hardware, package versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch


def hardware(device: str | torch.device) -> str:
    """Such as "NVIDIA H200" or "2 cores of x86_64"."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores of {platform.machine()}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of the given distributions that are installed, and Python's."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit that this package runs from, with "+changes" if files differ from it.

    Outside a repository it is what the environment variable WM_GYM_COMMIT says (for copies on a cluster), or None.
    """
    folder = Path(__file__).parent
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name, folder=folder)  # an installed copy has no commit
        head = _git("rev-parse", "HEAD", folder=folder)
        changes = _git("status", "--porcelain", "--untracked-files=no", folder=folder)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("WM_GYM_COMMIT")
    return head + ("+changes" if changes else "")


def _git(*command: str, folder: Path) -> str:
    process = subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True)
    return process.stdout.strip()
