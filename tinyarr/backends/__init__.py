"""Backends, which run operations: one package a kind of device, found by name when its first device is made."""
