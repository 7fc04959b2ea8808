"""The application: the page, and one WebSocket for each player, as many as there are places."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse, JSONResponse

from wm_gym.play import protocol
from wm_gym.play.connection import Connection
from wm_gym.play.guard import Guard
from wm_gym.play.session import Session

logger = logging.getLogger(__name__)
STATIC = Path(__file__).parent / "static"
PAGES = {f"/{file.name}": file for file in STATIC.iterdir()} | {"/": STATIC / "index.html"}


@dataclass(frozen=True)
class Stage:
    """What there is to play, and for how many."""

    make_session: Callable[[], Session]
    welcome: dict[str, Any]
    idle_action: int | None
    fps: float
    max_players: int


class Places:
    """The places of a server: taken before a session is made, free when all of it is gone."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.taken = 0

    def take(self) -> bool:
        """Takes a place; False if none is free."""
        if self.taken >= self.number:
            return False
        self.taken += 1
        return True

    def leave(self) -> None:
        """Frees a place."""
        self.taken -= 1


def make_app(stage: Stage, allowed_hosts: tuple[str, ...] = ()) -> Any:
    """The ASGI application, guarded."""
    app = FastAPI(title="wm-gym play", docs_url=None, redoc_url=None, openapi_url=None)
    places = Places(stage.max_players)
    for path, file in PAGES.items():
        app.add_api_route(path, _file_route(file), methods=["GET", "HEAD"])

    @app.get("/status")
    async def status() -> JSONResponse:
        return JSONResponse({"players": places.taken, "max_players": places.number})

    @app.websocket("/play")
    async def play(websocket: WebSocket) -> None:
        await websocket.accept()
        if not places.take():
            number = "the only place is" if places.number == 1 else f"all {places.number} places are"
            await websocket.close(protocol.CLOSE_FULL, f"The server is full: {number} taken.")
            return
        try:
            await Connection(websocket, stage.make_session, stage.welcome, stage.idle_action, stage.fps).run()
        except asyncio.CancelledError:
            logger.info("A session was still working when the server was told to stop.")
        finally:
            places.leave()

    return Guard(app, allowed_hosts)


def _file_route(file: Path) -> Callable[[], Any]:
    async def route() -> FileResponse:
        return FileResponse(file)

    return route


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError, one sentence, if the address is taken or is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f"Cannot listen on {host}, port {port} ({error}): give another --port or --host.") from error
    return listener


def make_server(app: Any) -> uvicorn.Server:
    """A server that drops dead connections within ten seconds, and stops within ten when it is told to."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        ws_max_size=protocol.MAX_MESSAGE_BYTES,
        ws_ping_interval=5.0,
        ws_ping_timeout=5.0,
        ws_per_message_deflate=False,  # pixels of a few frames a second are small, and time matters more
        timeout_graceful_shutdown=10,
    )
    return uvicorn.Server(config)
