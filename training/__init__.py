"""Rollouts of a real environment, data, and the training and measuring of world models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wm_gym.moved import accept_old_names

if TYPE_CHECKING:
    from training.data.dataset import EpisodeDataset
    from training.loop.run import RunArguments
    from training.recipes import RECIPES, Recipe, Stage
    from training.record import RecordEpisodes
    from training.recording.config import CollectConfig
    from training.recording.frames import RecordingOptions
    from training.staged import STAGED_RECIPES, Phase, StagedArguments, StagedRecipe
    from training.store.episode import Episode, StoreHeader
    from training.store.episode_store import EpisodeStore, EpisodeWriter, create_store, open_store

__all__ = [
    "RECIPES",
    "STAGED_RECIPES",
    "CollectConfig",
    "Episode",
    "EpisodeDataset",
    "EpisodeStore",
    "EpisodeWriter",
    "Phase",
    "Recipe",
    "RecordEpisodes",
    "RecordingOptions",
    "RunArguments",
    "Stage",
    "StagedArguments",
    "StagedRecipe",
    "StoreHeader",
    "create_store",
    "open_store",
]
# Where they are; each is loaded when it is first used, so that commands start at once.
_MODULES = {
    "CollectConfig": "training.recording.config",
    "Episode": "training.store.episode",
    "EpisodeDataset": "training.data.dataset",
    "EpisodeStore": "training.store.episode_store",
    "EpisodeWriter": "training.store.episode_store",
    "Phase": "training.staged",
    "RECIPES": "training.recipes",
    "Recipe": "training.recipes",
    "RecordEpisodes": "training.record",
    "RecordingOptions": "training.recording.frames",
    "RunArguments": "training.loop.run",
    "STAGED_RECIPES": "training.staged",
    "Stage": "training.recipes",
    "StagedArguments": "training.staged",
    "StagedRecipe": "training.staged",
    "StoreHeader": "training.store.episode",
    "create_store": "training.store.episode_store",
    "open_store": "training.store.episode_store",
}

accept_old_names()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
