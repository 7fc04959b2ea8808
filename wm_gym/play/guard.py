"""Who may talk to the server: pages that it served itself, under a name that cannot be rebound to it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SECURITY_HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; {}"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


class Guard:
    """ASGI middleware: refuses requests that name another host, or come from a page of another origin, with status 403.

    A name in the Host header that is neither an address nor one of the machine's own may have been rebound to this
    machine by whoever owns it (DNS rebinding), so it is refused unless it is allowed by name. Browsers send Origin
    with every WebSocket and every request across origins; programs that are no browsers send none and are let in.

    Args:
        app: what is guarded.
        allowed_hosts: further names under which the server may be reached.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], allowed_hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reason = self.refusal(headers.get("host", ""), headers.get("origin"))
        if reason is None:
            await self._app(scope, receive, _with_headers(send, headers["host"]))
        else:
            await _refuse(scope, receive, send, reason)

    def refusal(self, host: str, origin: str | None) -> str | None:
        """Why a request with these headers is refused, None if it is not."""
        name = _split_host(host)
        if name is None or not (name in self._names or _is_address(name)):
            return f"This server is not {host or 'nameless'}: use its address, or start it with --allow-host NAME."
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "Pages of another origin cannot use this server."
        return None


def _split_host(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send, host: str) -> Send:
    # Older Safari does not count WebSockets as 'self'.
    connect = (
        f"connect-src 'self' ws://{host} wss://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    added = [(name.lower().encode(), value.format(connect).encode("latin-1")) for name, value in SECURITY_HEADERS]

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return send_with_headers


async def _refuse(scope: Scope, receive: Receive, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        # Closing before accepting answers the handshake with status 403.
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
