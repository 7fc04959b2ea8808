"""How much of what a model was shown it still knows later: the two protocols of arXiv 2505.20171, and its baselines."""
