"""What a page has said and the loop has not yet heard. Keys replace each other; they do not queue up."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from wm_gym.play import protocol

MAX_COMMANDS = 16  # waiting ones; whoever clicks faster is not heard


@dataclass
class Inbox:
    """The newest keys, the newest acknowledgement, and commands in their order."""

    repeat_delay: float = 0.0  # seconds for which a key is held until it counts again
    held: int | None = None
    held_since: float = 0.0
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
            self.held, self.held_since, self.stamp = message.action, time.perf_counter(), message.stamp
            self.tapped = self.tapped if message.action is None else message.action
        elif len(self.commands) < MAX_COMMANDS:
            self.commands.append(message)
            if isinstance(message, protocol.Pause):
                self.tapped = None  # what was pressed before is not to happen after
        self.changed.set()

    def seconds_to_action(self) -> float | None:
        """How long until a key counts, 0 if one does now; None if none is held."""
        if self.tapped is not None:
            return 0.0
        if self.held is None:
            return None
        return max(0.0, self.held_since + self.repeat_delay - time.perf_counter())

    def take_action(self) -> int | None:
        """The action for a step that begins now: what was tapped meanwhile, else what is held."""
        action = self.held if self.tapped is None else self.tapped
        self.tapped = None
        return action

    def let_go(self) -> None:
        """Forgets what is held and tapped."""
        self.held = self.tapped = None

    def take_stamp(self) -> float | None:
        """The stamp of the newest keys, once."""
        stamp, self.stamp = self.stamp, None
        return stamp
