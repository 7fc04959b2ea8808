"""Rollouts of a real environment -> data -> world model. Not part of the installed package."""
