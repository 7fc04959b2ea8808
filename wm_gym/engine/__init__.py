"""The engine: one imagined frame for each of many dreams, over memories that are written in place."""

from wm_gym.engine.graph import StepGraph

__all__ = ["StepGraph"]
