"""Training options, each tried in a world that a CPU learns to recall: ``python -m training.trials --out JSON``."""
