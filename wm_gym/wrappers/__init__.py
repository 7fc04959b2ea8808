"""Wrappers that give an agent the memory of a world model, in the dream and in the real environment alike."""
