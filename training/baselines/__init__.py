"""Other networks behind the same world model: what ours is compared with. Real and trainable
(`training.baselines.recipes`).

They share our embeddings, conditioning, feed-forward part and heads, and differ in how tokens see the past.
"""

from __future__ import annotations

from training.baselines.config import Architecture, BaselineConfig, baseline_config
from training.baselines.model import BaselineModel, build_model, matching_config, model_type

__all__ = [
    "Architecture",
    "BaselineConfig",
    "BaselineModel",
    "baseline_config",
    "build_model",
    "matching_config",
    "model_type",
]
