"""Kernels: what plans them beside their CUDA sources. Floor 3."""
