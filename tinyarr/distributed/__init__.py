"""Distributed: the same script on many processes, which compute together over MPI or NCCL."""

from .group import Group, Mesh, init, local_rank, world
