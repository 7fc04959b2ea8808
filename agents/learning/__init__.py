"""Learning: PPO whose rollouts stay on one device, its settings and its scores in reality."""
