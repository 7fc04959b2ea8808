"""The training loop's parts: one step, optimizers, averages of weights, processes, the state of a run and its log."""
