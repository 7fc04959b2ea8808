"""Policies by name, and trained agents as policies."""
