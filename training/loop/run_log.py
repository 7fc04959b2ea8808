"""Progress bar and TensorBoard of a training run; silent in all processes but the main one."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class RunLog:
    """Writes to RUN/logs and to a progress bar on stderr."""

    def __init__(self, folder: Path, num_steps: int, step: int, is_main: bool) -> None:
        # Entries that an earlier session wrote after its last checkpoint are repeated now; purge_step drops the old.
        self._writer = SummaryWriter(str(folder / "logs"), purge_step=step + 1) if is_main else None
        interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds; keeps log files short
        self._bar = tqdm(
            total=num_steps, initial=step, unit="step", disable=not is_main, smoothing=0.05, mininterval=interval
        )
        self._frames = 0
        self._since = time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def advance(self, num_frames: int) -> None:
        """Counts one step with so many frames."""
        self._bar.update()
        self._frames += num_frames

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs `values` and the speed since the last call."""
        now = time.monotonic()
        values = values | {"frames_per_second": self._frames / max(now - self._since, 1e-9)}
        self._frames, self._since = 0, now
        shown = {"loss": "loss", "psnr": "psnr/from_noise", "frames/s": "frames_per_second"}
        self._bar.set_postfix(
            {label: f"{values[name]:.4g}" for label, name in shown.items() if name in values}, refresh=False
        )
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def say(self, message: str) -> None:
        """One line above the progress bar."""
        if self._writer is not None:
            self._bar.write(message)
