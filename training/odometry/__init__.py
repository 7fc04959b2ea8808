"""Training of odometry: python -m training.odometry --help."""
