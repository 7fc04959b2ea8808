"""Agents that learn and plan inside a world model, and are scored outside it, in the real environment."""

from wm_gym.moved import accept_old_names

accept_old_names()
