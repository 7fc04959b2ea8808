"""Which keys and buttons choose which action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym

MAX_DIGITS = 10


@dataclass(frozen=True)
class Button:
    """A pad on the page and the keys that press it, as `KeyboardEvent.code` names them."""

    name: str
    label: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Controls:
    """Buttons, and what their combinations do."""

    layout: str  # "arrows" or "grid"
    buttons: tuple[Button, ...]
    actions: Mapping[str, int]  # names of the buttons that are held, joined by "+" in the order above
    idle_action: int | None  # with nothing held; None: the world waits for a key

    def to_json(self) -> dict[str, Any]:
        """The controls as JSON types, as the page reads them."""
        return asdict(self)


MEMORY_MAZE = Controls(
    layout="arrows",
    buttons=(
        Button("forward", "Forward", ("ArrowUp", "KeyW")),
        Button("left", "Turn left", ("ArrowLeft", "KeyA")),
        Button("right", "Turn right", ("ArrowRight", "KeyD")),
    ),
    actions={"forward": 1, "left": 2, "right": 3, "forward+left": 4, "forward+right": 5},
    idle_action=0,
)
WATCHING = Controls(layout="grid", buttons=(), actions={}, idle_action=None)


def controls_for(space: gym.Space[Any], name: str, has_policy: bool) -> Controls:
    """The controls of an environment.

    Args:
        space: its action space.
        name: the id of the real environment behind it, which tells Memory Maze's six actions from other six.
        has_policy: a policy can act, so that an environment may be watched that cannot be steered.

    Raises:
        ValueError: actions that keys cannot choose, and no policy.
    """
    if isinstance(space, gym.spaces.Discrete):
        if "MemoryMaze" in name and space.n == 6 and space.start == 0:
            return MEMORY_MAZE
        actions = range(int(space.start), int(space.start + space.n))
        buttons = tuple(
            Button(str(action), f"Action {action}", _digit_keys(index)) for index, action in enumerate(actions)
        )
        return Controls("grid", buttons, {str(action): action for action in actions}, None)
    if has_policy:
        return WATCHING
    raise ValueError(
        f"Keys choose among discrete actions, and this environment has {space}: give --policy to watch an agent in it."
    )


def _digit_keys(index: int) -> tuple[str, ...]:
    return (f"Digit{index}", f"Numpad{index}") if index < MAX_DIGITS else ()
