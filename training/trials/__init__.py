"""Small trials of training options, in a world that a CPU learns to recall: ``python -m training.trials --out JSON``."""
