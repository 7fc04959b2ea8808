"""Norms, with what stands before and after them."""
