"""Scoring: real and dreamed episodes, and the figures that are made of them."""
