"""One GPU: its memory, streams and copies, and how kernels are launched on it. Floor 3."""
