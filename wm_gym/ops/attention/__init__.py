"""Frame-local attention."""
