"""What all tests share: a marked test that this machine cannot run is left out with the reason."""

from __future__ import annotations

import pytest
import torch

# Tiny tensors gain nothing from threads, and pytest-xdist's workers would fight over the cores.
torch.set_num_threads(1)


def _missing_for_real_env() -> str | None:
    """What the real Memory Maze lacks here, None if it can run."""
    from wm_gym.envs.memory_maze.published import load_libraries

    try:
        load_libraries()
    except ImportError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    real_env_items = [item for item in items if item.get_closest_marker("real_env")]
    if real_env_items and (missing := _missing_for_real_env()):
        for item in real_env_items:
            item.add_marker(pytest.mark.skip(reason=missing))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
