import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.line_env import ENV_ID as LINE_ID
from tests.tiny import save_tiny_checkpoint, save_tiny_clips, set_termination_bias, tiny_model
from training.make_clips import clips_from_store
from training.policies import make_policy
from training.recipes import Stage, tiny
from training.recording import make_env, policy_seed, record_episode
from training.store import EpisodeWriter, StoreHeader, create_store
from training.train import Arguments, train
from wm_gym.contexts import save_clips
from wm_gym.world_model import WorldModelConfig

LINE_ENV = f"tests.line_env:{LINE_ID}"


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


def record_line(path: Path, split: str, seeds: range) -> None:
    """Random play in the line world."""
    env = make_env(LINE_ENV)
    store = create_store(path, StoreHeader(LINE_ENV, env.observation_space, env.action_space, "random"))
    writer = EpisodeWriter(store, split)
    for seed in seeds:
        writer.write(record_episode(env, make_policy("random", env, policy_seed(seed)), seed))


@pytest.fixture(scope="session")
def line_dream(tmp_path_factory) -> dict[str, Any]:
    """Arguments that make a dream of the line world, by a model that is trained here, in some seconds."""
    folder: Path = tmp_path_factory.mktemp("line")
    record_line(folder / "data", "train", range(100))
    record_line(folder / "data", "test", range(7_000_000, 7_000_012))
    model = WorldModelConfig(
        width=32, block_sizes=(2, 1), head_dim=16, state_dim=8, window=2, num_attention_heads=2, condition_width=32
    )
    stages = (Stage(length=8, batch_size=16, fraction=1.0),)
    recipe = dataclasses.replace(tiny(), model=model, stages=stages, steps=300, max_minutes=0.0, learning_rate=4e-3)
    checkpoint = train(Arguments(data=folder / "data", out=folder / "run", recipe=recipe, recipe_name="tiny"))
    save_clips(folder / "clips.npz", clips_from_store(folder / "data", "test", num_clips=12, num_frames=5))
    return {
        "checkpoint": str(checkpoint),
        "contexts": str(folder / "clips.npz"),
        "context_frames": 4,
        "horizon": 24,
    }
