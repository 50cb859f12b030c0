"""Backends, which run operations: one package a kind of device, found by name at its first use. Floor 1."""
