"""Measurements of speed; nothing imports them."""
