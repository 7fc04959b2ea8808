"""The store: episodes on disk, and their exchange with other formats (python -m training.store --help)."""
