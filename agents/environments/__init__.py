"""Environments as agents meet them, one at a time or many at once."""
