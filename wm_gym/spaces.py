"""Gymnasium spaces as JSON, the form in which checkpoints and episode stores carry them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


def space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """A `Box` or `Discrete` as a dictionary of JSON types; `space_from_json` is the inverse.

    Raises ValueError for any other kind of space.
    """
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.Box):
        return {
            "type": "Box",
            "low": _bound_to_json(space.low),
            "high": _bound_to_json(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    raise ValueError(f"Only Box and Discrete spaces can be stored, got {space}.")


def space_from_json(description: dict[str, Any]) -> gym.Space[Any]:
    """The space that `space_to_json` described. Raises ValueError for anything else."""
    kind = description.get("type") if isinstance(description, dict) else None
    try:
        if kind == "Discrete":
            return gym.spaces.Discrete(description["n"], start=description["start"])
        if kind == "Box":
            dtype, shape = np.dtype(description["dtype"]), tuple(description["shape"])
            low, high = (_bound_from_json(description[key], shape, dtype) for key in ("low", "high"))
            return gym.spaces.Box(low, high, shape, dtype.type)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"Not the description of a {kind} space: {description!r} ({error}).") from error
    raise ValueError(f"Expected the description of a Box or Discrete space, got {description!r}.")


def _bound_to_json(bound: np.ndarray) -> Any:
    """One number if all entries are equal, else a nested list; infinities as strings, which strict JSON lacks."""
    uniform = bound.size > 0 and bool((bound == bound.flat[0]).all())
    values = bound.flat[0] if uniform else bound
    return (values if np.isfinite(values).all() else values.astype(str)).tolist()


def _bound_from_json(bound: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.broadcast_to(np.asarray(bound).astype(dtype), shape)
