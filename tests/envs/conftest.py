import pytest

from tests.tiny import save_tiny_checkpoint, save_tiny_clips


@pytest.fixture(scope="session")
def tiny_kwargs(tmp_path_factory):
    """Arguments that make the dreamed environment with a tiny random model: 6 frames of context, 8 steps."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "checkpoint": str(save_tiny_checkpoint(folder / "tiny.safetensors")),
        "contexts": str(save_tiny_clips(folder / "clips.npz")),
        "context_frames": 6,
        "horizon": 8,
    }
