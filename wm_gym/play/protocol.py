"""What page and server say to each other over one WebSocket.

Page to server, text: a JSON object with "type", one of `MESSAGES`, and the fields of that class.

Server to page:
- text: a JSON object with "type": "welcome" (what there is to play), "map" (a maze, when it changes), "moment"
  (a moment was remembered), "status" (what the session does), "notice" (a sentence for the player), "overload";
- binary: a frame, see `encode_frame`. The page answers each with `Ack`, and gets no other one before.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from wm_gym.seeds import MAX_SEED

MAX_MESSAGE_BYTES = 1024
MIN_FPS, MAX_FPS = 1.0, 60.0
# Close codes: RFC 6455 and its registry, with a sentence as the reason.
CLOSE_BAD_MESSAGE, CLOSE_FAILED, CLOSE_FULL = 1008, 1011, 1013


@dataclass(frozen=True)
class Act:
    """The keys changed: `action` is held now, None if no key is. `stamp` comes back with the frame that obeys."""

    action: int | None
    stamp: float


@dataclass(frozen=True)
class Reset:
    """A new episode; its seed is drawn if None."""

    seed: int | None


@dataclass(frozen=True)
class Pause:
    """Stop the clock, or let it go on."""

    on: bool


@dataclass(frozen=True)
class Step:
    """One step while paused."""


@dataclass(frozen=True)
class Speed:
    """Frames per second, `MIN_FPS` to `MAX_FPS`."""

    fps: float


@dataclass(frozen=True)
class Remember:
    """Keep this moment."""


@dataclass(frozen=True)
class GoBack:
    """Go on from a moment that was kept."""

    moment: int


@dataclass(frozen=True)
class Forget:
    """Drop a moment that was kept."""

    moment: int


@dataclass(frozen=True)
class Record:
    """Start a new episode and record from there on, or stop recording."""

    on: bool


@dataclass(frozen=True)
class Agent:
    """Whether the policy chooses the actions; any key of the player's turns it off."""

    on: bool


@dataclass(frozen=True)
class Ack:
    """The page has drawn frame number `frame`."""

    frame: int


Message = Act | Reset | Pause | Step | Speed | Remember | GoBack | Forget | Record | Agent | Ack
MESSAGES: dict[str, type[Message]] = {
    "act": Act,
    "reset": Reset,
    "pause": Pause,
    "step": Step,
    "speed": Speed,
    "remember": Remember,
    "go_back": GoBack,
    "forget": Forget,
    "record": Record,
    "agent": Agent,
    "ack": Ack,
}


def parse(text: str) -> Message:
    """A message of the page. Raises ValueError for anything that a page of ours does not send."""
    if len(text) > MAX_MESSAGE_BYTES:
        raise ValueError(f"A message has at most {MAX_MESSAGE_BYTES} bytes, got {len(text)}.")
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError("A message is a JSON object; this is no JSON.") from error
    kind = data.get("type") if isinstance(data, dict) else None
    message = MESSAGES.get(kind) if isinstance(kind, str) else None
    if message is None:
        raise ValueError(f"A message has a type, one of {', '.join(MESSAGES)}.")
    given = {name: value for name, value in data.items() if name != "type"}
    if given.keys() != {field.name for field in fields(message)}:
        raise ValueError(f"{kind} has the fields {[field.name for field in fields(message)]}, got {sorted(given)}.")
    for name, value in given.items():
        if not _CHECKS[name](value):
            raise ValueError(f"{kind}: {name} cannot be {value!r}.")
    return message(**given)


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high  # false for NaN


_CHECKS = {
    "action": lambda value: value is None or _is_whole(value, -(2**31), 2**31),
    "stamp": lambda value: _is_number(value, 0, 1e15),
    "seed": lambda value: value is None or _is_whole(value, 0, MAX_SEED),
    "on": lambda value: type(value) is bool,
    "fps": lambda value: _is_number(value, MIN_FPS, MAX_FPS),
    "moment": lambda value: _is_whole(value, 0, 2**31),
    "frame": lambda value: _is_whole(value, 0, 2**53),
}


def encode_frame(header: Mapping[str, Any], views: Mapping[str, np.ndarray]) -> bytes:
    """One binary message: the length of the header (uint32, little-endian), the header as JSON, then the pixels.

    Args:
        header: JSON types; "views" is added to it: [{"name", "height", "width", "channels"}] in order.
        views: uint8 [H, W, C] by name; their pixels follow each other, row by row.
    """
    sizes = [
        {"name": name, "height": view.shape[0], "width": view.shape[1], "channels": view.shape[2]}
        for name, view in views.items()
    ]
    text = json.dumps({**header, "views": sizes}, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(view.tobytes() for view in views.values())])


def decode_frame(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and views of a message of `encode_frame`."""
    (length,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + length])
    views, start = {}, 4 + length
    for size in header["views"]:
        shape = size["height"], size["width"], size["channels"]
        stop = start + int(np.prod(shape))
        views[size["name"]] = np.frombuffer(message[start:stop], np.uint8).reshape(shape)
        start = stop
    return header, views
