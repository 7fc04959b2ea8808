"""How fast `wm-gym play` is: ``python -m training.benchmarks.play --out docs/results/play_cpu.json``.

Starts the server as a user does, in a process of its own, and plays over a real WebSocket as the page does: it draws
nothing, but acknowledges each frame and presses and releases keys at random moments. For each pace it reports

- frames per second, as they arrive;
- the latency from a key to the first frame that obeys it, which includes the wait for the next step;
- the server's share of a frame: everything between the beginning of a step and the end of sending, but for the
  environment's own code and the wait for the page.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from wm_gym.files import write_json
from wm_gym.play.protocol import decode_frame
from wm_gym.provenance import command_arguments, provenance

SECONDS_TO_START = 180.0
TARGETS = {"cpu": {"pace": 10.0, "frames_per_second": 8.0}, "cuda": {"pace": 30.0, "frames_per_second": 30.0}}
MAX_LATENCY_MS = 200.0
MAX_SERVER_MS = 5.0
PACE_TOLERANCE = 0.99  # a paced loop that meets its ticks falls short of the pace by less than this, by timers alone


@dataclass(frozen=True)
class BenchPlay:
    """Measures a server of wm-gym play."""

    out: Path
    """JSON file of the results."""
    device: str = "cpu"
    """Where the model runs."""
    paces: tuple[float, ...] = (10.0, 30.0, 60.0)
    """Frames per second that are asked for, one after the other."""
    seconds: float = 20.0
    """For each pace."""
    warm_up: float = 3.0
    """Seconds before each measurement."""
    real: bool = False
    """With the real environment beside the dream."""
    denoising_steps: Literal["auto"] | int = "auto"
    """Network passes per frame; auto is what wm-gym play does."""
    play: tuple[str, ...] = ()
    """Further arguments of wm-gym play."""
    seed: int = 0
    """Of the moments at which keys are pressed."""


@dataclass
class Measured:
    """What arrived within one measurement."""

    arrivals: list[float] = field(default_factory=list)  # seconds
    latencies: list[float] = field(default_factory=list)  # ms
    server: list[float] = field(default_factory=list)  # ms
    environment: list[float] = field(default_factory=list)  # ms

    def summary(self, pace: float) -> dict[str, Any]:
        """JSON types. Raises RuntimeError if too little arrived."""
        if len(self.arrivals) < 3 or not self.latencies:
            raise RuntimeError(f"Only {len(self.arrivals)} frames arrived at a pace of {pace}; give --seconds more.")
        seconds = self.arrivals[-1] - self.arrivals[0]
        return {
            "pace": pace,
            "frames": len(self.arrivals),
            "frames_per_second": round((len(self.arrivals) - 1) / seconds, 2),
            "key_to_frame_ms": _quantiles(self.latencies),
            "server_ms": _quantiles(self.server),
            "environment_ms": _quantiles(self.environment),
        }


def main(config: BenchPlay) -> None:
    """The command."""
    load_before = os.getloadavg()
    with server(config) as port, connect(f"ws://127.0.0.1:{port}/play", proxy=None) as socket:
        actions, passes = start(socket)
        results = [measure(socket, actions, pace, config) for pace in config.paces]
    report = {
        **provenance("training.benchmarks.play", command_arguments()),
        "device": config.device,
        "real_beside": config.real,
        "denoising_steps": passes,
        "seconds_per_pace": config.seconds,
        "niceness": os.nice(0),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "paces": results,
        "targets": targets(config.device, results),
    }
    write_json(config.out, report)
    for result in results:
        latency, share = result["key_to_frame_ms"], result["server_ms"]
        print(
            f"pace {result['pace']:>4.0f}: {result['frames_per_second']:>6.2f} frames/s, key to frame "
            f"{latency['median']:.0f} ms (95%: {latency['p95']:.0f}), server {share['median']:.2f} ms of a frame "
            f"(99%: {share['p99']:.2f}), environment {result['environment_ms']['median']:.1f} ms"
        )
    print(json.dumps(report["targets"]))


def targets(device: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What was to be reached on this kind of device, and whether it was. Empty without the pace that is asked for."""
    target = TARGETS["cuda" if device.startswith("cuda") else "cpu"]
    result = next((result for result in results if result["pace"] == target["pace"]), None)
    if result is None:
        return {}
    required = target["frames_per_second"] * (PACE_TOLERANCE if target["frames_per_second"] == target["pace"] else 1)
    return {
        "pace": target["pace"],
        "frames_per_second": {"at_least": round(required, 2), "met": result["frames_per_second"] >= required},
        "key_to_frame_ms": {"below": MAX_LATENCY_MS, "met": result["key_to_frame_ms"]["p95"] < MAX_LATENCY_MS},
        "server_ms": {"below": MAX_SERVER_MS, "met": result["server_ms"]["p99"] < MAX_SERVER_MS},
    }


@contextmanager
def server(config: BenchPlay) -> Iterator[int]:
    """Runs wm-gym play on a free port, and gives that port. Raises RuntimeError if it does not start."""
    command = [sys.executable, "-m", "wm_gym.cli", "play", "--port", "0", "--device", config.device]
    command += ["--denoising-steps", str(config.denoising_steps), *(["--real"] if config.real else []), *config.play]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()  # it prints one when it listens, or ends
            if "http://" not in line:
                raise RuntimeError(f"The server did not start; see above. Command: {' '.join(command)}")
            yield int(line.split("http://")[1].split()[0].rpartition(":")[2])
        finally:
            process.terminate()


def start(socket: ClientConnection) -> tuple[list[int], dict[str, Any] | None]:
    """Waits for the first frame of the dream; returns the actions that keys can choose, and what the server says of its
    network passes per frame."""
    actions, passes = [], None
    deadline = time.perf_counter() + SECONDS_TO_START
    while True:
        message = socket.recv(timeout=max(0.1, deadline - time.perf_counter()))
        if isinstance(message, bytes):
            header = decode_frame(message)[0]
            _send(socket, "ack", frame=header["frame"])
            if header["phase"] == "play":
                return actions, passes
        elif (event := json.loads(message))["type"] == "welcome":
            actions, passes = list(event["controls"]["actions"].values()), event["main"]["passes"]


def measure(socket: ClientConnection, actions: list[int], pace: float, config: BenchPlay) -> dict[str, Any]:
    """Plays at a pace, starting a new episode when one ends."""
    generator = random.Random(config.seed)
    measured = Measured()
    _send(socket, "speed", fps=pace)
    begin = time.perf_counter() + config.warm_up
    end = begin + config.seconds
    next_key, held, pressed = 0.0, None, 0.0
    with tqdm(total=round(config.seconds), desc=f"pace {pace:.0f}", unit="s") as progress:
        while (now := time.perf_counter()) < end:
            if now - begin >= progress.n + 1:
                progress.update()
            if now >= next_key:
                # Another action than before, so that the frame which obeys it is told apart.
                held = generator.choice([action for action in actions if action != held])
                pressed, next_key = now, now + generator.uniform(0.2, 0.6)
                _send(socket, "act", action=held, stamp=1000 * pressed)
            try:
                message = socket.recv(timeout=max(0.0005, next_key - now))
            except TimeoutError:
                continue
            if isinstance(message, bytes):
                _note(socket, message, measured if time.perf_counter() >= begin else Measured())
    return measured.summary(pace)


def _note(socket: ClientConnection, message: bytes, measured: Measured) -> None:
    now = time.perf_counter()
    header = decode_frame(message)[0]
    _send(socket, "ack", frame=header["frame"])
    if header["ended"]:
        _send(socket, "reset", seed=None)
    if header["phase"] != "play":
        return
    measured.arrivals.append(now)
    measured.server.append(header["server_ms"])
    measured.environment.append(header["env_ms"])
    if header["stamp"] is not None:
        measured.latencies.append(1000 * now - header["stamp"])


def _send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def _quantiles(values: list[float]) -> dict[str, float]:
    levels = {"median": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, level)), 2) for name, level in levels.items()}


if __name__ == "__main__":
    try:
        main(tyro.cli(BenchPlay))
    except (RuntimeError, ConnectionClosed, TimeoutError) as error:
        sys.exit(str(error))
