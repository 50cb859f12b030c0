"""NVIDIA's libraries: cuBLASLt, cuDNN and NCCL."""
