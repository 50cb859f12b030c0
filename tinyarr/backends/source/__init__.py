"""Source: the text of scalar expressions, in C and in CUDA. Floor 2."""
