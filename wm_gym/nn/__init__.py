"""The network: layers, the block-wise scan, frame-local attention, the backbone, and the state that it carries."""
