"""Passes over a graph, each of which can be read alone."""
