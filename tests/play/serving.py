"""A server for tests on a free port, with tiny dreams; and a client that speaks the page's protocol."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from tests.tiny import save_tiny_checkpoint, save_tiny_clips
from tests.toy_env import ENV_ID
from wm_gym.play import protocol
from wm_gym.play.command import Play, make_stage
from wm_gym.play.server import listen, make_app, make_server

DREAM_ID = "LSSVWM-MemoryMaze-v0"
TOY_ID = f"tests.toy_env:{ENV_ID}"
CONTEXT_FRAMES = 6


def tiny_play(folder: Path, **options: Any) -> Play:
    """A dream of 16x16 pixels and three actions; with `real=True` beside the toy maze."""
    checkpoint = save_tiny_checkpoint(folder / "model.safetensors")
    clips = save_tiny_clips(folder / "clips.npz")
    values: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "contexts": str(clips),
        "context_frames": CONTEXT_FRAMES,
        "denoising_steps": 1,
        "real_env": TOY_ID,
        "fps": 60.0,
    }
    return Play(**(values | options))


class Served:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and body of a GET request."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    @property
    def players(self) -> int:
        return json.loads(self.get("/status")[1])["players"]

    @contextmanager
    def player(self, **options: Any) -> Iterator[Player]:
        with connect(f"ws://127.0.0.1:{self.port}/play", proxy=None, **options) as socket:
            yield Player(socket)


class Player:
    """What a page does, in Python. Frames are acknowledged as they come."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.header: dict[str, Any] = {}
        self.views: dict[str, np.ndarray] = {}

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def act(self, action: int | None) -> None:
        self.send("act", action=action, stamp=1000 * time.perf_counter())

    def receive(self, acknowledge: bool = True) -> dict[str, Any]:
        """The next message; a frame as its header with type "frame"."""
        message = self.socket.recv(timeout=10)
        if isinstance(message, str):
            return json.loads(message)
        self.header, self.views = protocol.decode_frame(message)
        if acknowledge:
            self.send("ack", frame=self.header["frame"])
        return {"type": "frame", **self.header}

    def until(self, kind: str, test: Callable[[dict[str, Any]], bool] = lambda message: True) -> dict[str, Any]:
        """The next message of a kind that passes a test."""
        while True:
            message = self.receive()
            if message["type"] == kind and test(message):
                return message

    def start(self) -> dict[str, Any]:
        """Waits for the first frame of the dream; returns its header."""
        self.until("frame", lambda frame: frame["phase"] == "play")
        self.until("status", lambda status: not status["busy"])
        return self.header

    def step(self, action: int) -> np.ndarray:
        """Takes one action and returns the first view that it leads to."""
        self.act(action)
        self.act(None)
        self.until("frame", lambda frame: frame["action"] == action)
        return next(iter(self.views.values()))


@contextmanager
def serving(config: Play) -> Iterator[Served]:
    """Serves in a thread until the block ends."""
    with listen("127.0.0.1", 0) as listener:
        server = make_server(make_app(make_stage(config), config.allow_host))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(timeout=15)
            assert not thread.is_alive(), "The server does not stop."
