"""NVIDIA's libraries: cuBLASLt, cuDNN and NCCL. Floor 3."""
