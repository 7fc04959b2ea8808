"""Episodes in the formats of others: Memory Maze's published NPZ files, LeRobotDataset v3, mp4 + npz."""
