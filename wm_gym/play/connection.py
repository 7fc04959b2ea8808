"""One player's connection: a paced loop between a session, which works in a thread of its own, and a browser.

The loop never runs ahead: a frame is sent when the one before has been drawn, and a step is taken with the keys that
are held when it begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import gymnasium as gym
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from wm_gym.play import protocol
from wm_gym.play.inbox import Inbox
from wm_gym.play.session import Picture, Session, maze_map

CONTEXT_FPS = 60.0
STALLED_SECONDS = 30.0  # a page that draws nothing for so long is gone
REPEAT_DELAY = 0.35  # seconds
MAX_REASON_BYTES = 120  # of a close frame, by RFC 6455 at most 123
T = TypeVar("T")

logger = logging.getLogger(__name__)


class Connection:
    """Plays one session with one browser until either goes.

    Args:
        websocket: accepted.
        make_session: called in the session's thread, where the session stays.
        welcome: JSON types that the page needs before the first frame.
        idle_action: taken while no key is held; None: the session waits.
        fps: the pace in the beginning.
    """

    def __init__(
        self,
        websocket: WebSocket,
        make_session: Callable[[], Session],
        welcome: dict[str, Any],
        idle_action: int | None,
        fps: float,
    ) -> None:
        self._websocket = websocket
        self._make_session = make_session
        self._welcome = welcome
        self._idle_action = idle_action
        self._period = 1 / fps
        # Where the world waits for keys, a tap is one step, however long a finger takes.
        self._inbox = Inbox(REPEAT_DELAY if idle_action is None else 0.0)
        # Renderers and CUDA graphs belong to the thread that made them.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="player")
        self._frame = 0
        self._paused = False
        self._single = False  # one step is wanted, paused or not
        self._work: Iterator[Picture] | None = None  # a reset or a way back that is not finished
        self._server_seconds = 0.0

    async def run(self) -> None:
        """Returns when the connection is closed and everything that the session held is free."""
        receiving = asyncio.create_task(self._receive())
        playing = asyncio.create_task(self._play())
        try:
            done, _ = await asyncio.wait({receiving, playing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await self._explain(task.exception(), by_page=task is receiving)
        finally:
            for task in (receiving, playing):
                task.cancel()
            await asyncio.gather(receiving, playing, return_exceptions=True)
            self._thread.shutdown(wait=False)

    async def _receive(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            text = message.get("text")
            if text is None:
                raise ValueError("Messages are text, and this one was binary.")
            self._inbox.put(protocol.parse(text))

    async def _explain(self, error: BaseException | None, by_page: bool) -> None:
        """Closes the connection with a reason, unless the page has gone."""
        if isinstance(error, WebSocketDisconnect) or self._websocket.application_state != WebSocketState.CONNECTED:
            return
        if not by_page and not isinstance(error, ConnectionError):
            logger.error("A session failed.", exc_info=error)
        reason = str(error).encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._websocket.close(protocol.CLOSE_BAD_MESSAGE if by_page else protocol.CLOSE_FAILED, reason)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _play(self) -> None:
        making = asyncio.ensure_future(self._in_thread(self._make_session))
        try:
            session = await asyncio.shield(making)
            await self._send({"type": "welcome", **self._welcome})
            await self._send_status(session)
            self._work = session.start()
            await self._loop(session)
        finally:
            await asyncio.shield(asyncio.ensure_future(self._close(making)))

    async def _close(self, making: asyncio.Future[Session]) -> None:
        """Closes the session in its thread, after whatever that thread is still doing."""
        with contextlib.suppress(Exception):  # making it failed, which was reported
            session = await making
            self._work = None
            await self._in_thread(session.close)

    async def _loop(self, session: Session) -> None:
        due = time.perf_counter()
        while True:
            self._inbox.changed.clear()
            await self._obey(session)
            seconds = self._seconds_to_advance(session)
            if seconds is None or seconds > 0:
                await self._wait(seconds)
                continue
            remaining = due - time.perf_counter()
            if remaining > 0 and not self._single:
                await self._wait(remaining)
                continue
            period = self._period if self._work is None else 1 / CONTEXT_FPS
            due = max(due, time.perf_counter() - period) + period  # a late frame is not made up for
            await self._advance(session)

    async def _wait(self, seconds: float | None) -> None:
        """Until the page says something, or `seconds` are over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._inbox.changed.wait(), seconds)

    def _seconds_to_advance(self, session: Session) -> float | None:
        """0 if there is something to do; None if only the page can change that."""
        if self._work is not None:
            return 0.0
        if session.ended or (self._paused and not self._single):
            return None
        if session.agent_acts or self._single or self._idle_action is not None:
            return 0.0
        return self._inbox.seconds_to_action()

    async def _obey(self, session: Session) -> None:
        """Carries out the commands that have come, and tells the page what has become of them."""
        if session.agent_acts and self._inbox.seconds_to_action() is not None:
            session.agent_acts = False  # a key takes over
            await self._send_status(session)
        while self._inbox.commands:
            command = self._inbox.commands.popleft()
            try:
                await self._carry_out(session, command)
            except (ValueError, OSError, ImportError, gym.error.Error) as error:
                await self._notify(str(error))
            await self._send_status(session)

    async def _carry_out(self, session: Session, command: protocol.Message) -> None:
        match command:
            case protocol.Reset(seed):
                self._work = session.start(seed)
            case protocol.Pause(on):
                self._paused = on
            case protocol.Step():
                self._check_step(session)
                self._single = True
            case protocol.Speed(fps):
                self._period = 1 / fps
            case protocol.Remember():
                self._check_idle()
                moment = await self._in_thread(session.remember)
                await self._send({"type": "moment", "id": moment, "steps": len(session.main.actions)})
            case protocol.GoBack(moment):
                if session.recording:
                    await self._notify("Going back ends the recording; what was played so far is stored.")
                self._work = session.go_back(moment)
            case protocol.Forget(moment):
                session.forget(moment)
            case protocol.Agent(on):
                session.agent_acts = on and session.policy is not None
                self._inbox.let_go()
            case protocol.Record(on):
                await self._in_thread(session.start_recording if on else session.stop_recording)
                if on:
                    self._work = session.start()
                await self._notify(
                    "This new episode and those after it are recorded until you stop."
                    if on
                    else "The recording is stored."
                )

    def _check_step(self, session: Session) -> None:
        self._check_idle()
        if session.ended:
            raise ValueError(f"The episode has ended ({session.ended}): start another one.")
        if self._idle_action is None and not session.agent_acts and self._inbox.seconds_to_action() is None:
            raise ValueError("Hold the key of the action that the step should take.")

    def _check_idle(self) -> None:
        if self._work is not None:
            raise ValueError("The episode has not begun yet: wait for its first frame.")

    async def _advance(self, session: Session) -> None:
        """The next picture: a part of the work that is to be done, else a step."""
        begin = time.perf_counter()
        stamp = self._inbox.take_stamp()
        from_work = self._work is not None
        try:
            picture: Picture | None
            if self._work is not None:
                picture = await self._in_thread(_next_picture, self._work)
            else:
                self._single = False
                action = self._take_action(session)
                if action is None and not session.agent_acts:
                    return  # the key was let go meanwhile
                picture = await self._in_thread(session.step, action)
        except (ValueError, gym.error.Error) as error:
            if not from_work:  # or it would fail again at the next tick
                self._paused, session.agent_acts = True, False
            self._work = None
            await self._notify(str(error))
            await self._send_status(session)
            return
        if picture is None:
            self._work = None
            await self._send_status(session)
            return
        begins = picture.progress is not None and picture.progress[0] == 1
        if from_work and (begins or picture.phase == "play"):
            walls = maze_map(session.worlds[-1].info) or {"walls": None, "targets": []}
            points = len(session.path) if begins else session.context_path_points
            await self._send({"type": "map", "path": session.path, "context_points": points, **walls})
        computed = time.perf_counter() - begin
        await self._drawn()
        begin = time.perf_counter()
        await self._send_picture(session, picture, stamp)
        self._server_seconds = computed - picture.env_seconds + time.perf_counter() - begin

    def _take_action(self, session: Session) -> int | None:
        action = self._inbox.take_action()
        if action is not None or session.agent_acts:
            return action
        return self._idle_action

    async def _drawn(self) -> None:
        """Until the page has drawn the last frame. Raises ConnectionError if it does not."""
        deadline = time.perf_counter() + STALLED_SECONDS
        while self._inbox.acked < self._frame:
            if time.perf_counter() > deadline:
                raise ConnectionError(f"The page has drawn nothing for {STALLED_SECONDS:.0f} seconds.")
            self._inbox.changed.clear()
            await self._wait(deadline - time.perf_counter())

    async def _send_picture(self, session: Session, picture: Picture, stamp: float | None) -> None:
        self._frame += 1
        header = {
            "frame": self._frame,
            "phase": picture.phase,
            "seed": session.seed,
            "worlds": picture.worlds,
            "progress": picture.progress,
            "action": picture.action,
            "by_agent": picture.by_agent,
            "psnr": picture.psnr,
            "pose": picture.pose,
            "target": picture.target,
            "ended": picture.ended,
            "stamp": stamp,
            "env_ms": round(1000 * picture.env_seconds, 2),
            "server_ms": round(1000 * self._server_seconds, 2),  # of the frame before: this one is not sent yet
        }
        await self._websocket.send_bytes(protocol.encode_frame(header, picture.views))

    async def _send_status(self, session: Session) -> None:
        await self._send(
            {
                "type": "status",
                "paused": self._paused,
                "agent": session.agent_acts,
                "recording": session.recording,
                "busy": self._work is not None,
                "moments": list(session.moments),
            }
        )

    async def _notify(self, text: str) -> None:
        await self._send({"type": "notice", "text": text})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._websocket.send_text(json.dumps(message))


def _next_picture(work: Iterator[Picture]) -> Picture | None:
    """None at the end: a StopIteration cannot come out of a thread."""
    return next(work, None)
