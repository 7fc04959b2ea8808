"""Training data: windows of recorded episodes as batches on a device."""
