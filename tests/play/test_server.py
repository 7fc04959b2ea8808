"""Real connections: what a server does with players, with strangers and with whoever leaves."""

from __future__ import annotations

import gc
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.play.serving import Served, serving, tiny_play
from wm_gym.cli import main
from wm_gym.play.command import Troupe


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_play(tmp_path_factory.mktemp("play"), max_players=2)) as served:
        yield served


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def test_a_player_sees_the_dream_answer_the_keys(served: Served) -> None:
    with served.player() as player:
        welcome = player.until("welcome")
        assert welcome["main"] == {
            "label": "dream",
            "id": "LSSVWM-MemoryMaze-v0",
            "passes": {"number": 1, "reason": "1 network pass per frame."},
        }
        header = player.start()
        assert (header["phase"], header["worlds"]["dream"]["steps"]) == ("play", 0)
        first = player.views["dream"]
        second = player.step(2)
        assert player.header["worlds"]["dream"]["steps"] == 1
        assert first.shape == second.shape == (16, 16, 3)
        assert not np.array_equal(first, second)


def test_going_back_over_the_wire_returns_to_the_very_frame(served: Served) -> None:
    with served.player() as player:
        player.start()
        kept = player.step(1)
        player.send("remember")
        moment = player.until("moment")["id"]
        future = player.step(0)
        player.send("go_back", moment=moment)
        player.until("frame", lambda frame: frame["phase"] == "play")
        assert np.array_equal(player.views["dream"], kept)
        assert np.array_equal(player.step(0), future)


def test_the_same_seed_is_the_same_dream_for_two_players_and_each_has_their_own(served: Served) -> None:
    assert eventually(lambda: served.players == 0)
    with served.player() as one, served.player() as other:
        for player in (one, other):
            player.start()
            player.send("reset", seed=3)
            player.until("frame", lambda frame: frame["seed"] == 3)
        assert np.array_equal(one.views["dream"], other.views["dream"])
        first = one.step(0)
        one.step(1)
        assert np.array_equal(other.step(0), first)


def test_a_full_server_says_so_and_a_place_is_free_soon_after_somebody_left(served: Served) -> None:
    assert eventually(lambda: served.players == 0)
    with served.player() as one:
        one.start()
        with served.player() as other:
            other.start()
            with served.player() as late, pytest.raises(ConnectionClosed) as closed:
                late.receive()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
                1013,
                "The server is full: all 2 places are taken.",
            )
        assert eventually(lambda: served.players == 1)
        with served.player() as late:
            late.start()


@pytest.mark.parametrize(
    ("message", "reason"),
    [("hello", "no JSON"), ('{"type": "launch"}', "has a type"), (b"\x00\x01", "binary"), ("[" * 900, "no JSON")],
)
def test_a_message_that_is_not_ours_is_answered_with_a_reason(served: Served, message: Any, reason: str) -> None:
    assert eventually(lambda: served.players < 2)
    with served.player() as player:
        player.start()
        player.socket.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            player.until("never")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert reason in closed.value.rcvd.reason
    assert eventually(lambda: served.players == 0)


def test_a_message_that_is_too_long_ends_the_connection(served: Served) -> None:
    with served.player() as player:
        player.start()
        player.socket.send("x" * 100_000)
        with pytest.raises(ConnectionClosed):
            player.until("never")
    assert eventually(lambda: served.players == 0)


def test_a_flood_of_keys_does_not_queue_up(served: Served) -> None:
    with served.player() as player:
        player.start()
        player.send("speed", fps=20)
        for index in range(3000):
            player.act(index % 3)
        player.act(None)
        player.send("pause", on=True)
        player.until("status", lambda status: status["paused"])
        steps = player.header["worlds"]["dream"]["steps"]
        assert steps < 60  # 3000, if each had been a step
        with pytest.raises(TimeoutError):
            player.socket.recv(timeout=0.3)
        player.send("pause", on=False)
        player.act(1)
        player.until("frame", lambda frame: frame["action"] == 1)


def test_no_frame_is_sent_before_the_one_ahead_of_it_was_drawn(served: Served) -> None:
    with served.player() as player:
        player.start()
        player.act(1)
        frame = player.receive(acknowledge=False)
        while frame["type"] != "frame":
            frame = player.receive(acknowledge=False)
        with pytest.raises(TimeoutError):
            player.socket.recv(timeout=0.4)  # at 60 frames a second
        player.send("ack", frame=frame["frame"])
        assert player.until("frame")["frame"] == frame["frame"] + 1


def test_what_a_command_cannot_do_is_a_notice_and_the_game_goes_on(served: Served) -> None:
    with served.player() as player:
        player.start()
        player.send("step")
        assert "Hold the key" in player.until("notice")["text"]
        player.send("go_back", moment=77)
        assert "no moment 77" in player.until("notice")["text"]
        player.send("record", on=True)
        assert "--record-dir" in player.until("notice")["text"]
        player.act(99)
        assert "not in Discrete(3)" in player.until("notice")["text"]
        player.act(None)
        player.send("pause", on=False)
        player.step(1)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null"])
def test_a_page_of_another_origin_can_neither_read_nor_drive(served: Served, origin: str) -> None:
    assert served.get("/", Origin=origin) == (403, "Pages of another origin cannot use this server.")
    with pytest.raises(InvalidStatus) as refused, served.player(origin=origin):
        pass
    assert refused.value.response.status_code == 403
    with served.player(origin=served.url) as player:
        player.start()


def test_a_name_that_was_rebound_to_this_machine_is_refused(served: Served) -> None:
    status, text = served.get("/", Host="evil.example")
    assert status == 403
    assert "--allow-host" in text
    assert served.get("/", Host=f"localhost:{served.port}")[0] == 200
    with pytest.raises(InvalidStatus), served.player(additional_headers={"Host": "evil.example"}):
        pass


def test_an_allowed_name_is_let_in(tmp_path: Path) -> None:
    with serving(tiny_play(tmp_path, allow_host=("play.example",))) as served:
        assert served.get("/", Host="play.example")[0] == 200


def test_the_page_asks_for_nothing_from_elsewhere(served: Served) -> None:
    for path in ("/", "/app.js", "/socket.js", "/keys.js", "/draw.js", "/style.css", "/icon.svg"):
        status, text = served.get(path)
        assert status == 200
        assert not [line for line in text.splitlines() if "//" in line and "http" in line and "w3.org/2000" not in line]
    assert served.get("/../command.py")[0] == 404


def test_nothing_is_left_of_a_player_who_leaves_in_mid_episode(tmp_path: Path, monkeypatch) -> None:
    sessions: list[weakref.ref[Any]] = []
    make = Troupe.make_session

    def make_session(self: Troupe) -> Any:
        session = make(self)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(Troupe, "make_session", make_session)
    with serving(tiny_play(tmp_path, real=True)) as served:
        with served.player() as player:
            player.start()
            player.send("remember")
            player.until("moment")
            player.act(0)
            player.until("frame")
        with served.player() as player:  # this one leaves before the dream has begun
            player.until("welcome")
        stranger = socket.create_connection(("127.0.0.1", served.port))  # and this one in the middle of a word
        stranger.sendall(b"GET /play HTTP/1.1\r\nHost: localhost\r\nUpgr")
        stranger.close()
        assert eventually(lambda: served.players == 0)
        assert len(sessions) == 2
        assert eventually(lambda: gc.collect() >= 0 and all(session() is None for session in sessions))
        assert eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("player")])


def test_a_session_that_cannot_be_made_is_explained_and_gives_its_place_back(tmp_path: Path, monkeypatch) -> None:
    def make_session(self: Troupe) -> Any:
        raise ImportError("The real environment is not installed.")

    monkeypatch.setattr(Troupe, "make_session", make_session)
    with serving(tiny_play(tmp_path)) as served:
        with served.player() as player, pytest.raises(ConnectionClosed) as closed:
            player.receive()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "The real environment is not installed.")
        assert eventually(lambda: served.players == 0)


def test_an_agent_that_errs_stops_and_the_player_goes_on(tmp_path: Path) -> None:
    with serving(tiny_play(tmp_path, policy="tests.play.test_server:clumsy")) as served, served.player() as player:
        player.start()
        assert "chose the action 3, which is not in Discrete(3)" in player.until("notice")["text"]
        assert not player.until("status")["agent"]
        assert player.header["worlds"]["dream"]["steps"] == 3
        player.send("pause", on=False)
        player.step(0)


def clumsy(env: Any, seed: int) -> Any:
    actions = iter(range(10))
    return lambda obs, info: next(actions)


def test_a_key_takes_over_from_the_agent_and_the_agent_can_go_on(tmp_path: Path) -> None:
    with serving(tiny_play(tmp_path, policy="random")) as served, served.player() as player:
        player.start()
        player.until("frame", lambda frame: frame["by_agent"])
        player.act(1)
        player.until("status", lambda status: not status["agent"])
        player.until("frame", lambda frame: not frame["by_agent"])
        player.act(None)
        player.send("agent", on=True)
        player.until("frame", lambda frame: frame["by_agent"])


def test_single_steps_work_while_paused(served: Served) -> None:
    with served.player() as player:
        player.start()
        player.send("pause", on=True)
        player.until("status", lambda status: status["paused"])
        player.act(1)
        with pytest.raises(TimeoutError):
            player.socket.recv(timeout=0.2)
        for steps in (1, 2):
            player.send("step")
            assert player.until("frame")["worlds"]["dream"]["steps"] == steps


def test_a_busy_port_is_one_sentence_and_exit_status_1(capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["play", "--port", str(port)]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"wm-gym: Cannot listen on 127.0.0.1, port {port}")
    assert "\n" not in error
