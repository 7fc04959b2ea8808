"""Rollouts of a real environment, data, and the training and measuring of world models."""

from wm_gym.moved import accept_old_names

accept_old_names()
