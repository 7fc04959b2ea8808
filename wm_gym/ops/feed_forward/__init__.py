"""The feed-forward part."""
