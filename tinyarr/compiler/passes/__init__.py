"""Passes over a graph, each of which can be read alone. Floor 2."""
