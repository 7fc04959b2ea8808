"""Agents that learn and plan inside a world model, and are scored outside it, in the real environment."""
