"""Recording: whole episodes of real environments, written into a store by one or many workers."""
