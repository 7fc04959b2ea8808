"""A connection to a Ray cluster, for what is spread over machines (extra `distributed`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster; a connection that was there before is used, and left.

    Args:
        address: of the cluster, or "auto"; None takes RAY_ADDRESS, or this machine.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError("--backend ray needs Ray: pip install wm_gym[distributed].") from error
    if ray.is_initialized():
        yield ray
        return
    ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    try:
        yield ray
    finally:
        ray.shutdown()
