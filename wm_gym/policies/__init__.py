"""Policies that act in environments: random ones, the navigators of Memory Maze, and those of users."""
