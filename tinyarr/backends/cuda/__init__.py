"""The CUDA backend: raw kernels over memory, streams and modules that CuPy provides. Floor 3."""
