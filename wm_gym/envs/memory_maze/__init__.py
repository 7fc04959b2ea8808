"""The real Memory Maze as a Gymnasium environment, single and vector."""
