"""Trace: a run of the function on traced values, and the graph that it leaves. Floor 2."""
