"""CUDA: so far, what a plan of kernel launches is."""
