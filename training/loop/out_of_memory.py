"""Says which setting to lower where a GPU has not enough memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.recipes import Recipe, Stage


@contextmanager
def explain_oom(step: int, recipe: Recipe, stage: Stage) -> Iterator[None]:
    """Makes of an out-of-memory error of the GPU a MemoryError that names the settings of the stage."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"The GPU has not enough memory at step {step}; lower --recipe.stages.{recipe.stages.index(stage)}"
            f".batch-size (now {stage.batch_size}) or .length ({stage.length}).{held_by_others()}"
        ) from error


def held_by_others() -> str:
    """A sentence about a GPU of which other processes hold more than a hundredth, else nothing."""
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    held = total - free - torch.cuda.memory_reserved()
    if held < 0.01 * total:  # what this process holds beside its tensors is less
        return ""
    return f" Other processes hold {held / 2**30:.0f} of its {total / 2**30:.0f} GiB."
