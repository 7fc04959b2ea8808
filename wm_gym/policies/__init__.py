"""Policies that act in environments: random ones, the navigators of Memory Maze, and those of users."""

from wm_gym.policies.base import Policy
from wm_gym.policies.loading import load_policy

__all__ = ["Policy", "load_policy"]
