"""Wrappers that give an agent the memory of a world model, in the dream and in the real environment alike."""

from wm_gym.wrappers.memory import MemoryObservation, MemoryVectorObservation

__all__ = ["MemoryObservation", "MemoryVectorObservation"]
