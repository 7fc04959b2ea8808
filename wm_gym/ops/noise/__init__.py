"""Noise that is the same on every device."""
