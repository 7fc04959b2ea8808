"""Odometry: where the next frame will be seen from."""
