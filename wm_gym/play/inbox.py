"""What a page has said and the loop has not yet heard. Keys replace each other; they do not queue up."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from wm_gym.play import protocol

MAX_COMMANDS = 16  # waiting ones; whoever clicks faster is not heard


@dataclass
class Inbox:
    """The newest keys, the newest acknowledgement, and commands in their order."""

    held: int | None = None
    tapped: int | None = None  # pressed since the last step, and perhaps let go already
    stamp: float | None = None  # of the newest key message, until a frame carries it back
    acked: int = 0
    commands: deque[protocol.Message] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, message: protocol.Message) -> None:
        """Takes in a message."""
        if isinstance(message, protocol.Ack):
            self.acked = max(self.acked, message.frame)
        elif isinstance(message, protocol.Act):
            self.held, self.stamp = message.action, message.stamp
            self.tapped = self.tapped if message.action is None else message.action
        elif len(self.commands) < MAX_COMMANDS:
            self.commands.append(message)
        self.changed.set()

    def take_action(self) -> int | None:
        """The action for a step that begins now: what was tapped meanwhile, else what is held."""
        action = self.held if self.tapped is None else self.tapped
        self.tapped = None
        return action

    @property
    def has_action(self) -> bool:
        return self.held is not None or self.tapped is not None

    def let_go(self) -> None:
        """Forgets what is held and tapped."""
        self.held = self.tapped = None

    def take_stamp(self) -> float | None:
        stamp, self.stamp = self.stamp, None
        return stamp
