"""Planners: policies that dream before they act."""
