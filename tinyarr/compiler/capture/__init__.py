"""Capture: the state that a function reaches, and whether the next call's is like it. Floor 2."""
