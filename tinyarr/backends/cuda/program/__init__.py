"""Programs on a GPU: lowered to launches, and captured in a CUDA graph. Floor 3."""
