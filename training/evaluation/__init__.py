"""Measurements of a model on held-out mazes, by the two protocols of arXiv 2505.20171."""
