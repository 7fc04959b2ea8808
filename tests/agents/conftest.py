from typing import Any

import pytest

from tests.tiny import (
    TINY_MAP,
    save_tiny_checkpoint,
    save_tiny_clips,
    set_termination_bias,
    tiny_model,
    tiny_model_with_odometry,
)


@pytest.fixture(scope="session")
def tiny_kwargs(tmp_path_factory):
    """Arguments that make a dream of a tiny random model, whose episodes terminate now and then: 6 steps at most."""
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_model()
    set_termination_bias(model, 0.0)
    return {
        "checkpoint": str(save_tiny_checkpoint(folder / "tiny.safetensors", model)),
        "contexts": str(save_tiny_clips(folder / "clips.npz")),
        "context_frames": 6,
        "horizon": 6,
    }


@pytest.fixture(scope="session")
def map_kwargs(tmp_path_factory, tiny_kwargs):
    """Arguments that make a dream of one that has a map."""
    model = tiny_model_with_odometry(**TINY_MAP)
    path = save_tiny_checkpoint(tmp_path_factory.mktemp("map") / "map.safetensors", model)
    return {**tiny_kwargs, "checkpoint": str(path)}


@pytest.fixture(scope="session")
def line_dream(tmp_path_factory) -> dict[str, Any]:
    """Arguments that make a dream of the example's world, by a model that is trained here, within a minute."""
    pytest.importorskip("stable_baselines3")
    from examples.agent_in_a_dream import make_dream

    return make_dream(tmp_path_factory.mktemp("line"))
